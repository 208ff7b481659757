from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.logmel import LogMel, log_mel

GOLDEN, NEMO = (np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") for name in ("logmel", "fast_conformer"))
AUDIO = [GOLDEN[f"audio_{i}"] for i in range(4)]
LENGTHS = np.array([len(x) for x in AUDIO], np.int32)

compute = jax.jit(log_mel, static_argnames="config")


def padded(rows, samples, junk=0):
    return np.stack([np.concatenate([x, np.full(samples - len(x), junk, np.int16)]) for x in rows])


def speech_like(seed, samples):
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (3000 * noise * np.sin(np.arange(samples) / 900)).astype(np.int16)


class TestKaldi:
    """Against `SeamlessM4TFeatureExtractor`, padding full of junk."""

    audio = padded(AUDIO, 17_000, junk=777)

    @pytest.mark.parametrize(("normalize", "name"), [(False, "kaldi"), (True, "kaldi_normalized")])
    def test_features(self, normalize, name):
        features, length = compute(self.audio, LENGTHS, config=LogMel(normalize=normalize))
        np.testing.assert_array_equal(length, GOLDEN["kaldi_length"])
        for row, frames in enumerate(length):
            np.testing.assert_allclose(features[row, :frames], GOLDEN[name][row, :frames], rtol=0, atol=1e-3)
            assert not np.any(features[row, frames:])

    def test_stacking_is_laying_frames_end_to_end(self):
        single, _ = compute(self.audio, LENGTHS, config=LogMel(stack=1))
        for stack in (3, 4):
            features, length = compute(self.audio, LENGTHS, config=LogMel(stack=stack))
            for row, frames in enumerate(length):
                expected = single[row, : frames * stack].reshape(frames, 80 * stack)
                np.testing.assert_allclose(features[row, :frames], expected, atol=1e-6)


class TestLibrosa:
    config = LogMel(variant="librosa", stack=1, normalize=False)

    def test_features(self):
        """At float32's limit: bins 90 dB below their frame's loudest, at the rounding of the samples, may stray."""
        features, length = compute(padded(AUDIO, 17_000, junk=777), LENGTHS, config=self.config)
        for row in range(4):
            expected = GOLDEN[f"librosa_{row}"]
            ours = features[row, : length[row]]
            assert ours.shape == expected.shape
            audible = expected > expected.max(axis=1, keepdims=True) - np.log(10) * 9
            np.testing.assert_allclose(np.where(audible, ours, 0), np.where(audible, expected, 0), rtol=0, atol=1e-3)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-2)
            assert np.mean(audible) > 0.3


class TestOtherRates:
    @pytest.mark.parametrize("rate", [8_000, 24_000])
    def test_features(self, rate):
        audio = speech_like(0, 3 * rate // 2)
        config = LogMel(variant="librosa", stack=1, normalize=False, num_mel_bins=40, sample_rate=rate)
        features, length = compute(audio[None], np.array([len(audio)]), config=config)
        power = librosa.feature.melspectrogram(
            y=audio / 2.0**15, sr=rate, n_fft=rate // 40, hop_length=rate // 100, n_mels=40, pad_mode="constant"
        )
        assert length[0] == config.num_frames(len(audio)) == power.shape[1]
        np.testing.assert_allclose(features[0], np.log(np.maximum(power, 1e-10)).T, rtol=0, atol=2e-3)

    @pytest.mark.parametrize("variant", ["kaldi", "librosa", "nemo"])
    def test_frames_are_as_frequent_at_every_rate(self, variant):
        at = {rate: LogMel(variant=variant, sample_rate=rate) for rate in (8_000, 16_000, 48_000)}
        assert len({mel.frame_samples / rate for rate, mel in at.items()}) == 1
        assert len({mel.num_frames(rate) for rate, mel in at.items()}) == 1
        for rate, mel in at.items():
            features, length = compute(speech_like(0, rate)[None], np.array([rate]), config=mel)
            assert features.shape[1] == length[0] == mel.num_frames(rate)
            assert np.isfinite(features).all()


class TestNeMo:
    """Against `ParakeetFeatureExtractor`, padding full of junk."""

    @pytest.mark.parametrize("bins", [16, 80])
    @pytest.mark.parametrize("samples", [16_123, 20_000])
    def test_features(self, bins, samples):
        config = LogMel(variant="nemo", num_mel_bins=bins, stack=1)
        rows = [NEMO[f"audio_{row}"] for row in range(4)]
        audio, lengths = padded(rows, samples, junk=777), np.array([len(row) for row in rows])
        features, length = compute(audio, lengths, config=config)
        np.testing.assert_array_equal(length, NEMO["num_features"])
        for row, frames in enumerate(length):
            expected = NEMO[f"features_{bins}"][row, :frames]
            np.testing.assert_allclose(features[row, :frames], expected, rtol=0, atol=1e-4)
            assert not np.any(features[row, frames:])

    def test_hard_cases(self):
        """Against its definition in float64, on a signal where a float32 DFT is wrong by a tenth of the power."""
        audio = padded(AUDIO, 17_000, junk=-9_000)
        features, length = compute(audio, LENGTHS, config=LogMel(variant="nemo", stack=1, normalize=False))
        filters = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=80, dtype=np.float64)
        for row, samples in enumerate(AUDIO):
            x = samples / 32768
            frames = np.pad(np.append(x[:1], x[1:] - 0.97 * x[:-1]), (200, 400))
            frames = np.stack([frames[160 * t :][:400] for t in range(length[row])]) * np.hanning(400)
            expected = np.log(np.abs(np.fft.rfft(frames, 512)) ** 2 @ filters.T + 2.0**-24)
            np.testing.assert_allclose(features[row, : length[row]], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("variant", ["kaldi", "librosa", "nemo"])
@pytest.mark.parametrize("samples", [0, 1, 159, 399, 400, 559, 560, 720, 1000])
def test_frame_counts(variant, samples):
    for stack in (1, 2):
        config = LogMel(variant=variant, stack=stack)
        counted = config.num_frames(samples)
        assert isinstance(counted, int)
        full, _ = compute(np.zeros((1, samples), np.int16), np.array([samples]), config=config)
        assert full.shape == (1, counted, config.input_dim)
        _, length = compute(np.zeros((1, 1200), np.int16), np.array([samples]), config=config)
        assert length.tolist() == [counted]
        np.testing.assert_array_equal(config.num_frames(np.array([samples, samples])), [counted] * 2)


# Of two or three windows a bin may have nearly the same values, and normalising magnifies float32's rounding of them.
UTTERANCES = st.one_of(st.just(0), st.integers(1000, 6000))


@settings(max_examples=10)
@given(length=UTTERANCES, rows=st.permutations(range(3)), variant=st.sampled_from(["kaldi", "librosa", "nemo"]))
def test_an_utterance_depends_on_its_own_samples_only(length, rows, variant):
    config = LogMel(variant=variant)
    audio = np.stack([speech_like(seed, 6000) for seed in range(3)])
    lengths = np.array([length, 6000, 2000], np.int32)
    together, frames = compute(audio, lengths, config=config)
    junk = np.where(np.arange(6000) < lengths[:, None], audio, 30_000).astype(np.int16)
    shuffled, _ = compute(junk[list(rows)], lengths[list(rows)], config=config)
    np.testing.assert_allclose(shuffled, together[jnp.array(rows)], atol=1e-5)
    alone, _ = compute(audio[:1], lengths[:1], config=config)
    np.testing.assert_allclose(alone[0], together[0], atol=1e-5)
    assert np.isfinite(together).all()
    assert not np.any(together[0, frames[0] :])


def test_normalisation_gives_each_bin_zero_mean_and_unit_variance():
    features, length = compute(speech_like(0, 9000)[None], np.array([9000]), config=LogMel(stack=1))
    valid = np.asarray(features[0, : length[0]], np.float64)
    np.testing.assert_allclose(valid.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(valid.std(0, ddof=1), 1, atol=1e-4)


@pytest.mark.parametrize("seconds", [2, 20])
def test_normalisation_is_as_exact_over_a_long_utterance(seconds):
    """A plain float32 mean would put whole bins off by 2e-6 and more, on each backend by other amounts."""
    audio = speech_like(0, seconds * 16_000)[None]
    length = np.array([audio.shape[1]])
    raw, found = (compute(audio, length, config=LogMel(stack=1, normalize=each))[0][0] for each in (False, True))
    raw = np.asarray(raw, np.float64)
    exact = (raw - raw.mean(0)) / np.sqrt(raw.var(0, ddof=1) + 1e-7)
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.mean(found, 0, np.float64), 0, atol=2e-7)


@pytest.mark.parametrize(("variant", "frames"), [("kaldi", [1, 23, 0]), ("nemo", [1, 25, 0])])
def test_one_frame_silence_and_filler_rows_are_finite(variant, frames):
    audio = np.stack([speech_like(0, 4000), np.zeros(4000, np.int16), speech_like(1, 4000)])
    lengths = np.array([400 if variant == "kaldi" else 160, 4000, 0])
    features, length = compute(audio, lengths, config=LogMel(variant=variant, stack=1))
    assert length.tolist() == frames
    assert np.isfinite(features).all()
    assert not np.any(features[2])


@pytest.mark.parametrize("variant", ["kaldi", "nemo"])
def test_the_sharded_front_end_gathers_nothing(variant):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    audio = jax.ShapeDtypeStruct((16, 4000), jnp.int16, sharding=rows)
    length = jax.ShapeDtypeStruct((16,), jnp.int32, sharding=rows)
    sharded = jax.jit(partial(log_mel, config=LogMel(variant=variant)), out_shardings=(rows, rows))
    text = sharded.lower(audio, length).compile().as_text()
    assert not [op for op in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if op in text]


@pytest.mark.parametrize("variant", ["kaldi", "librosa", "nemo"])
def test_windows_do_not_read_another_utterance_of_the_row_across_the_gap(variant):
    config = LogMel(variant=variant, stack=1, normalize=False)

    def windows_that_differ(end, start):
        """Windows of an utterance that ends, and of one that starts, which the other's samples change."""
        samples = start + 4000
        base = speech_like(0, samples)
        base[end:start] = 0
        changed = [base.copy(), base.copy()]
        changed[0][start:] = speech_like(1, samples - start)
        changed[1][:end] = speech_like(2, end)
        row = np.full(1, samples, np.int32)
        features = [np.asarray(compute(audio[None], row, config=config)[0][0]) for audio in (base, *changed)]
        count, first = config.num_frames(end), -(-start // config.hop)
        before = np.abs(features[1] - features[0]).max(axis=1)[:count]
        after = np.abs(features[2] - features[0]).max(axis=1)[first:]
        return (before > 0).sum(), (after > 0).sum()

    for end in range(8000, 8160, 23):
        for start in (end + config.gap_samples, -(-(end + config.gap_samples) // 640) * 640):
            assert windows_that_differ(end, start) == (0, 0)
    if variant == "librosa":  # as tight; NeMo's has room for the decay after the first and the zeros before the second
        assert windows_that_differ(8000, 8000 + config.gap_samples - 40) != (0, 0)


@pytest.mark.parametrize("variant", ["kaldi", "librosa", "nemo"])
@pytest.mark.parametrize(("normalize", "stack"), [(False, 1), (True, 4)])
def test_an_utterance_of_a_packed_row_gets_the_features_that_it_gets_alone(variant, normalize, stack):
    config = LogMel(variant=variant, stack=stack, normalize=normalize)
    lengths = np.array([8000, 3177, 0, 399, 6400], np.int32)
    utterances = [speech_like(seed, length) for seed, length in enumerate(lengths)]
    alone, vectors = compute(padded(utterances, 8000), lengths, config=config)
    slots = -(-(lengths + config.gap_samples) // config.frame_samples) * config.frame_samples
    start = (np.cumsum(slots) - slots).astype(np.int32)
    row = np.full((1, slots.sum() + 640), 999, np.int16)  # junk in the gaps
    for at, samples in zip(start, utterances, strict=True):
        row[0, at : at + len(samples)] = samples
    packed, segments = compute(row, Segments(jnp.array(start)[None], jnp.array(lengths)[None]), config=config)
    np.testing.assert_array_equal(segments.length[0], vectors)
    valid = np.asarray(segments.mask(packed.shape[1]))[0]
    assert not packed[0, ~valid].any()
    for number, count in enumerate(vectors):
        first = start[number] // config.frame_samples
        np.testing.assert_allclose(packed[0, first : first + count], alone[number, :count], atol=2e-5)
