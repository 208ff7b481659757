"""Spectral losses against librosa and formulae in numpy."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.objectives.tts import spectral_losses as losses

WINDOWS = 64, 128
LENGTHS = np.array([1024, 700, 33])


def waves(seed):
    rng = np.random.default_rng(seed)
    audio = 0.1 * rng.standard_normal((len(LENGTHS), LENGTHS.max()))
    return np.where(np.arange(LENGTHS.max()) < LENGTHS[:, None], audio, 0)


def librosa_magnitudes(audio, length, window):
    """Frames whose middle lies in the row, at least the root of 1e-7."""
    hop = window // 4
    spectrum = librosa.stft(audio, n_fft=window, hop_length=hop, window="hann", center=True, pad_mode="constant")
    return np.sqrt(np.maximum(np.abs(spectrum) ** 2, 1e-7))[:, : -(-length // hop)]


def test_the_multi_resolution_loss_is_that_of_librosas_spectra():
    real, fake = waves(0), waves(1)
    convergence, distance = losses.multi_resolution_stft(
        jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32), jnp.asarray(LENGTHS), WINDOWS
    )
    for row, length in enumerate(LENGTHS):
        expected = []
        for window in WINDOWS:
            one, other = (librosa_magnitudes(audio[row], length, window) for audio in (real, fake))
            ratio = np.linalg.norm(one - other) / np.linalg.norm(one)
            expected.append((ratio, np.abs(np.log(one) - np.log(other)).mean()))
        np.testing.assert_allclose((convergence[row], distance[row]), np.mean(expected, axis=0), rtol=1e-4)


def test_the_mel_distance_is_that_of_librosas_mel_spectrogram():
    mel = SynthesisMel(num_mel_bins=20, hop=64, window=256, low_hertz=80.0, high_hertz=7000.0)
    real, fake = waves(2), waves(3)
    fake[0, :500] = 1e-7  # below the floor
    filters = librosa.filters.mel(sr=16_000, n_fft=256, n_mels=20, fmin=80, fmax=7000)
    actual = losses.mel_distance(
        jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32), jnp.asarray(LENGTHS), mel
    )
    for row, length in enumerate(LENGTHS):
        logs = []
        for audio in (real, fake):
            spectrum = librosa.stft(audio[row], n_fft=256, hop_length=64, center=True, pad_mode="reflect")
            logs.append(np.log(np.maximum(filters @ np.abs(spectrum), 1e-5))[:, : -(-length // 64)])
        np.testing.assert_allclose(actual[row], np.abs(logs[0] - logs[1]).mean(), rtol=1e-4)


def test_equal_waves_have_no_loss_and_finite_gradients():
    real = jnp.asarray(waves(0), jnp.float32)

    def total(fake):
        parts = losses.multi_resolution_stft(real, fake, jnp.asarray([*LENGTHS[:2], 0]), WINDOWS)
        return sum(part.sum() for part in parts)

    value, gradient = jax.value_and_grad(total)(real)
    assert value < 1e-4
    assert np.isfinite(gradient).all()
    assert not losses.multi_resolution_stft(real, 2 * real, jnp.zeros(3, int), WINDOWS)[0].any()


@pytest.mark.parametrize("kind", ["hinge", "least_squares"])
def test_adversarial_losses_are_their_formulae(kind):
    rng = np.random.default_rng(0)
    real, fake = ([rng.standard_normal((2, size)) * 2 for size in (3, 7)] for _ in range(2))

    def mean(terms):
        return np.mean([[row.mean() for row in term] for term in terms], axis=0)

    if kind == "hinge":
        generator = mean([np.clip(1 - x, 0, None) for x in fake])
        discriminator = mean([np.clip(1 - x, 0, None) for x in real]) + mean([np.clip(1 + x, 0, None) for x in fake])
    else:
        generator = mean([(1 - x) ** 2 for x in fake])
        discriminator = mean([(1 - x) ** 2 for x in real]) + mean([x**2 for x in fake])
    real, fake = ([jnp.asarray(x, jnp.float32) for x in each] for each in (real, fake))
    np.testing.assert_allclose(losses.generator_loss(fake, kind), generator, rtol=1e-5)
    np.testing.assert_allclose(losses.discriminator_loss(real, fake, kind), discriminator, rtol=1e-5)
    matching = mean([np.abs(np.asarray(x) - np.asarray(y)) for x, y in zip(real, fake, strict=True)])
    np.testing.assert_allclose(losses.feature_matching(real, fake), matching, rtol=1e-5)
