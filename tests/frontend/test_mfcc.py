"""MFCCs against scipy's DCT and librosa's differences."""

import jax
import librosa
import numpy as np
import pytest
import scipy.fft

from jax_speechlm.frontend.logmel import LogMel, log_mel
from jax_speechlm.frontend.mfcc import mfcc

compute, mel = jax.jit(mfcc, static_argnames="config"), jax.jit(log_mel, static_argnames="config")
LENGTHS = np.array([9000, 5123, 1300, 399, 0], np.int32)
AUDIO = np.random.default_rng(0).integers(-8000, 8000, (5, 9000)).astype(np.int16)
CONFIG = LogMel(num_mel_bins=24, stack=1, normalize=False)


def expected(row: int) -> np.ndarray:
    """[windows, 39] of an utterance alone."""
    bins = np.asarray(
        mel(AUDIO[row : row + 1, : LENGTHS[row]], LENGTHS[row : row + 1], config=CONFIG)[0][0], np.float64
    )
    cepstra = scipy.fft.dct(bins, type=2, norm="ortho")[:, :13]
    first = librosa.feature.delta(cepstra, width=5, mode="nearest", axis=0)
    return np.concatenate([cepstra, first, librosa.feature.delta(first, width=5, mode="nearest", axis=0)], axis=1)


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("variant", ["kaldi", "librosa", "nemo"])
def test_there_is_a_vector_for_each_frame_of_the_front_end(variant, stack):
    config = CONFIG.replace(variant=variant, stack=stack)
    x, length = compute(AUDIO, LENGTHS, config=config)
    np.testing.assert_array_equal(length, config.num_frames(LENGTHS))
    assert x.shape == (5, config.num_frames(9000), 39)
    for row, frames in enumerate(length):
        assert not x[row, frames:].any()


def test_equal_scipy_and_librosa_whatever_the_padding():
    x, length = compute(AUDIO, LENGTHS, config=CONFIG)
    for row in range(3):
        np.testing.assert_allclose(x[row, : length[row]], expected(row), atol=2e-4)


def test_a_frame_is_the_mean_of_its_windows():
    x, length = compute(AUDIO, LENGTHS, config=CONFIG.replace(stack=3))
    for row in range(3):
        windows = expected(row)[: length[row] * 3]
        np.testing.assert_allclose(x[row, : length[row]], windows.reshape(length[row], 3, 39).mean(1), atol=2e-4)


def test_normalised_over_the_utterance():
    x, length = compute(AUDIO, LENGTHS, config=CONFIG.replace(normalize=True))
    for row in range(3):
        alone = expected(row)
        np.testing.assert_allclose(
            x[row, : length[row]], (alone - alone.mean(0)) / alone.std(0, ddof=1), rtol=1e-3, atol=2e-3
        )


@pytest.mark.parametrize("variant", ["kaldi", "librosa", "nemo"])
@pytest.mark.parametrize("stack", [1, 2, 4])
def test_frames_are_counted_from_hop_and_context_alone(variant, stack):
    """As `data_pipelines.storage.units.Units` counts them, which knows nothing of variants."""
    config, samples = LogMel(variant=variant, stack=stack), np.arange(5000)
    counted = np.maximum(samples - config.context_samples, 0) // config.frame_samples * (samples > 0)
    np.testing.assert_array_equal(counted, config.num_frames(samples))
