from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.whisper_mel import WhisperMel, whisper_mel

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "whisper.npz")
AUDIO = [GOLDEN[f"audio_{row}"] for row in range(4)]
ALONE = WhisperMel(window_seconds=None)
WINDOWS = WhisperMel(window_seconds=1)
compute = jax.jit(whisper_mel, static_argnames="config")


def padded(audio, size, junk=777):
    rows = np.full((len(audio), size), junk, np.int16)
    for row, samples in zip(rows, audio, strict=True):
        row[: len(samples)] = samples[:size]
    return rows, np.array([len(samples) for samples in audio], np.int32)


@pytest.mark.parametrize("bins", [8, 80, 128])
def test_windows_are_those_of_hugging_face(bins):
    rows, lengths = padded(AUDIO, 17_000)
    x, frames = compute(rows, lengths, WhisperMel(num_mel_bins=bins, window_seconds=1))
    assert frames.tolist() == [100] * 4  # the first clip is longer, and is cut
    np.testing.assert_allclose(x, GOLDEN[f"features_{bins}"], atol=1e-4)


@pytest.mark.parametrize("bins", [8, 80, 128])
def test_an_utterance_by_itself_is_that_of_hugging_face(bins):
    rows, lengths = padded([AUDIO[2]], 9_000)
    x, frames = compute(rows, lengths, WhisperMel(num_mel_bins=bins, window_seconds=None))
    assert frames.tolist() == [50]
    np.testing.assert_allclose(x[0, :50], GOLDEN[f"alone_{bins}"], atol=1e-4)
    assert not x[0, 50:].any()


@pytest.mark.parametrize("config", [ALONE, WINDOWS])
def test_padding_batch_and_packing_change_nothing(config):
    lengths = [len(samples) for samples in AUDIO]
    lone = [compute(*padded([samples], 16_123), config) for samples in AUDIO]
    x, frames = compute(*padded(AUDIO, 20_000), config)
    starts, row = [], np.full(60_000, 999, np.int16)
    at = 0
    for samples in AUDIO[1:]:
        starts.append(at)
        row[at : at + len(samples)] = samples
        at += -(-(len(samples) + config.gap_samples) // 160) * 160
    segments = Segments(jnp.array([[*starts, 0]]), jnp.array([[*lengths[1:], 0]]))
    packed, lie = compute(row[None], segments, config)
    for i, (expected, count) in enumerate(lone):
        count = int(count[0])
        assert int(frames[i]) == count == config.num_frames(lengths[i])
        np.testing.assert_allclose(x[i, :count], expected[0, :count], atol=1e-5)
        if i:
            own = packed[0, int(lie.start[0, i - 1]) :][: int(lie.length[0, i - 1])]
            np.testing.assert_allclose(own, expected[0, :count], atol=1e-5)
    assert int(lie.length[0, 3]) == 0


@pytest.mark.parametrize("config", [ALONE, WINDOWS])
def test_nothing_and_silence_have_finite_features_and_gradients(config):
    lengths = jnp.array([0, 1, 161, 8_000])
    audio = jnp.zeros((4, 8_000)).at[2].set(1.0)
    total = jax.jit(jax.grad(lambda audio: jnp.sum(jnp.sin(whisper_mel(audio, lengths, config)[0]))))
    assert np.isfinite(total(audio)).all()
    x, frames = compute(audio, lengths, config)
    assert not x[0].any()
    assert int(frames[0]) == 0
    np.testing.assert_allclose(x[3, :50], -1.5)  # (log10(1e-10) + 4) / 4


def test_the_front_end_selects_it_by_its_variant():
    config = FrontEnd.model_validate({"mel": {"variant": "whisper", "window_seconds": 1}, "augment": {"time_masks": 2}})
    assert config == FrontEnd(mel=WINDOWS, augment=Augment(time_masks=2))
    rows, lengths = padded(AUDIO, 16_123)
    batch = {"audio": rows, "audio_length": lengths, "example_id": np.arange(4)}
    batch = {name: jnp.asarray(x) for name, x in batch.items()}
    x, _ = features(batch, config, None)
    np.testing.assert_array_equal(x, compute(rows, lengths, WINDOWS)[0])
    masked, _ = features(batch, config, jax.random.key(0))
    assert (np.asarray(masked) == 0).all(-1).any()
    with pytest.raises(pydantic.ValidationError, match="set 80 or 128"):
        WhisperMel(num_mel_bins=400)
