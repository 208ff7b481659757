"""Features of a stream equal those of one pass, whatever pieces the samples arrive in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.logmel import START, LogMel, log_mel
from jax_speechlm.frontend.streaming import SampleChunks, StreamingLogMel, check_streams
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from tests.contracts.streaming import verify_streaming

compute = jax.jit(log_mel, static_argnames="config")


def speech_like(seed, samples):
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (3000 * noise * np.sin(np.arange(samples) / 900)).astype(np.int16)


class Rows:
    """The features of rows whose samples arrive together, by `verify_streaming`'s interface."""

    def __init__(self, config, num_vectors=2):
        self.stream = StreamingLogMel(config, num_vectors)
        self.step_on_device = jax.jit(self.stream.step)

    def init(self, batch):
        return [SampleChunks(self.stream) for _ in range(batch)], None

    def step(self, state, piece):
        rows, device = state
        for row, samples in zip(rows, np.asarray(piece), strict=True):
            row.add(samples)
        outputs = []
        while (chunks := [row.take() for row in rows])[0] is not None:
            device, vectors = self._run(device, chunks)
            outputs.append(vectors)
        return (rows, device), self._joined(outputs, len(rows))

    def finalize(self, state):
        rows, device = state
        outputs = []
        for chunks in zip(*(row.finish() for row in rows), strict=True):
            device, vectors = self._run(device, chunks)
            outputs.append(vectors)
        return self._joined(outputs, len(rows))

    def _run(self, device, chunks):
        if chunks[0].lead is not None:
            device = self.stream.start(jnp.stack([chunk.lead for chunk in chunks]))
        device, vectors = self.step_on_device(device, np.stack([chunk.samples for chunk in chunks]))
        return device, np.asarray(vectors)[:, : chunks[0].num_vectors]

    def _joined(self, outputs, rows):
        return np.concatenate([np.zeros((rows, 0, self.stream.config.input_dim), np.float32), *outputs], axis=1)


@pytest.mark.parametrize("variant", ["kaldi", "librosa", "nemo"])
@pytest.mark.parametrize(("normalize", "stack"), [(False, 1), ("running", 3)])
def test_any_cut_gives_the_features_of_one_pass(variant, normalize, stack):
    config = LogMel(variant=variant, normalize=normalize, stack=stack, num_mel_bins=12)
    rows = Rows(config)
    for length in (0, 1, 399, 2731):
        audio = np.stack([speech_like(row, length) for row in range(2)])
        verify_streaming(
            init=rows.init,
            step=rows.step,
            finalize=rows.finalize,
            full=lambda x: compute(x, np.full(len(x), x.shape[1], np.int32), config=config)[0],
            inputs=audio,
        )
    assert rows.step_on_device._cache_size() == 1


def test_the_first_chunk_waits_for_15_ms_beyond_its_length():
    chunks = SampleChunks(StreamingLogMel(LogMel(normalize=False), 8))
    chunks.add(np.zeros(16 * 160 + 239, np.int16))
    assert chunks.take() is None
    chunks.add(np.zeros(1, np.int16))
    assert chunks.take().num_vectors == 8
    assert chunks.take() is None


def test_the_running_mean_follows_its_definition_and_starts_anew_in_packed_rows():
    config = LogMel(normalize="running", stack=1, num_mel_bins=8)
    audio, lengths = speech_like(0, 12_000)[None], np.array([12_000], np.int32)
    raw = np.asarray(compute(audio, lengths, config=config.replace(normalize=False))[0][0], np.float64)
    expected, mean = np.empty_like(raw), START["kaldi"]
    for window, values in enumerate(raw):
        mean = mean * 299 / 300 + values / 300
        expected[window] = values - mean
    np.testing.assert_allclose(compute(audio, lengths, config=config)[0][0], expected, atol=2e-5)
    packed = np.concatenate([audio[0, :4000], np.zeros(160, np.int16), audio[0]])[None]
    segments = Segments(np.array([[0, 4160]]), np.array([[4000, 12_000]]))
    found = compute(packed, segments, config=config)[0][0, 26:]
    np.testing.assert_allclose(found[: len(raw)], expected, atol=2e-5)


def test_what_cannot_stream_names_the_setting_and_what_to_train():
    with pytest.raises(ValueError, match=r"mel.normalize is True.*train with --frontend.mel.normalize running"):
        StreamingLogMel(LogMel(), 4)
    with pytest.raises(ValueError, match="speecht5 cannot stream: train with kaldi"):
        check_streams(SynthesisMel())
