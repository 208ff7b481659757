"""Clean-up against librosa's spectra and plain numpy, on noise of known power, and on bad input."""

import functools

import jax
import librosa
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from jax_speechlm.frontend.clean_up import CleanUp, clean_up, high_pass, noise_power, speech_frames
from jax_speechlm.frontend.filters import butterworth, sos_filter

RATE, SAMPLES = 8000, 16_000  # windows of 256 samples every 64
METHODS = ("wiener", "subtraction", "gate")

compute = jax.jit(clean_up, static_argnames=("config", "sample_rate"))
detect = jax.jit(speech_frames, static_argnums=2)
filtered = jax.jit(sos_filter, static_argnums=1)
run = functools.partial(compute, sample_rate=RATE)


def noisy_speech(num_samples=SAMPLES, seed=0):
    """Vowel-like syllables of 0.2 s with pauses, and white noise; both float64, at an SNR of about 20 dB."""
    rng, time = np.random.default_rng(seed), np.arange(num_samples) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * time + rng.uniform(0, 6)) / k for k in range(1, 20))
    syllables = np.sin(2 * np.pi * 2.5 * time).clip(0) ** 2
    return 3000 * voice * syllables, 150 * rng.standard_normal(num_samples)


def expected(signal, method, reduction):
    """[samples] of one recording, by librosa's transforms and a loop over windows."""
    spectrum = librosa.stft(signal, n_fft=256, hop_length=64)
    power = np.abs(spectrum) ** 2
    count = scipy.ndimage.uniform_filter1d(np.ones(power.shape[1]), 13, mode="constant")
    smoothed = scipy.ndimage.uniform_filter1d(power, 13, axis=1, mode="constant") / count
    noise = 2.9 * scipy.ndimage.minimum_filter1d(smoothed, 251, axis=1, mode="nearest")
    noise = np.maximum(noise, np.sum(scipy.signal.windows.hann(256, sym=False) ** 2) / 12)
    floor = 10 ** (-reduction / 20)
    gains = np.zeros_like(power)
    if method == "subtraction":
        decibels = (10 * np.log10(power.sum(0) / noise.sum(0))).clip(-5, 20)
        left = np.maximum(power - (4 - 0.15 * decibels) * noise, floor**2 * noise)
        gains = np.minimum(np.sqrt(left / power), 1)
    else:
        before = np.maximum(power[:, 0] / noise[:, 0] - 1, 0)
        for frame in range(power.shape[1]):
            posterior = power[:, frame] / noise[:, frame]
            prior = np.maximum(0.96 * before + 0.04 * np.maximum(posterior - 1, 0), 10**-2.5)
            before = (prior / (1 + prior)) ** 2 * posterior
            gains[:, frame] = np.maximum(prior / (1 + prior), floor)
    return librosa.istft(spectrum * gains, hop_length=64, n_fft=256, length=len(signal))


@pytest.mark.parametrize("method", ["wiener", "subtraction"])
def test_equals_a_loop_in_numpy(method):
    signal = sum(noisy_speech())
    config = CleanUp(method=method, most_reduction=15, high_pass=0)
    cleaned = run(signal[None], np.array([SAMPLES]), config=config)[0]
    # Where the power is the multiple of the noise, the gain of subtraction is the root of what float32 leaves of their
    # difference, 1e-3, of amplitudes of noise up to 500.
    np.testing.assert_allclose(cleaned, expected(signal, method, 15), atol=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_neither_padding_nor_other_rows_matter(method):
    speech, noise = noisy_speech()
    audio = np.stack([speech + noise] * 3).astype(np.int16)
    lengths = np.array([SAMPLES, 9000, 700])
    config = CleanUp(method=method)
    together = np.asarray(run(audio, lengths, config=config))
    junk = audio.copy()
    junk[1, 9000:], junk[2, 700:] = 20_000, -20_000
    np.testing.assert_array_equal(run(junk, lengths, config=config), together)
    for row, length in enumerate(lengths):
        alone = run(audio[row : row + 1, :length], lengths[row : row + 1], config=config)
        np.testing.assert_allclose(together[row, :length], alone[0], atol=0.05)
        assert not together[row, length:].any()


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_lowered_and_speech_is_kept(method):
    speech, noise = noisy_speech()
    lengths = np.array([SAMPLES])
    config = CleanUp(method=method, most_reduction=15)
    cleaned = np.asarray(run((speech + noise)[None], lengths, config=config))[0]
    reference = np.asarray(run(speech[None], lengths, config=CleanUp(method="none")))[0]
    loud = np.abs(speech) > 1000
    pauses = np.convolve(np.abs(speech), np.ones(2001), "same") < 1  # 0.1 s and more from any sound
    pauses[:300] = pauses[-300:] = False

    def decibels(x, where):
        return 10 * np.log10(np.mean(x[where] ** 2))

    assert decibels(cleaned, pauses) - decibels(noise, pauses) < -11
    assert decibels(cleaned - reference, loud) - decibels(reference, loud) < -18


def test_noise_of_known_power_is_estimated():
    white = np.random.default_rng(0).standard_normal((2, 40_000))
    power = np.abs(librosa.stft(white, n_fft=256, hop_length=64)) ** 2
    frames = np.array([power.shape[2], 300])
    estimate = np.asarray(jax.jit(noise_power)(np.swapaxes(power, 1, 2), frames))
    wanted = np.sum(scipy.signal.windows.hann(256, sym=False) ** 2)
    for row, count in enumerate(frames):
        assert abs(10 * np.log10(estimate[row, :count, 2:-2].mean() / wanted)) < 0.5


def test_speech_frames_are_those_of_syllables():
    speech, noise = noisy_speech()
    found = np.asarray(detect((speech + noise)[None], np.array([SAMPLES]), RATE))[0]
    at = np.arange(len(found)) * 64
    level = np.abs(speech)
    syllable = np.array([level[max(0, i - 64) : i + 64].max() > 1500 for i in at])
    quiet = np.array([level[max(0, i - 1200) : i + 1200].max() < 30 for i in at])
    assert found[syllable].all()
    assert not found[quiet].any()


@pytest.mark.parametrize("method", METHODS)
def test_bad_input(method):
    """Silence, one sample, no samples, a row that is not finite, and speech without any noise."""
    audio = np.zeros((6, 4000), np.float32)
    audio[1, 0] = 5.0
    audio[3] = np.nan
    audio[4, 1000:3000] = 8000 * np.sin(np.arange(2000))  # an infinite SNR
    audio[5] = 1234.0  # an offset alone
    cleaned = np.asarray(run(audio, np.array([4000, 1, 0, 4000, 4000, 4000]), config=CleanUp(method=method)))
    assert np.isfinite(np.delete(cleaned, 3, axis=0)).all()
    assert not cleaned[0].any()
    assert not cleaned[2].any()
    np.testing.assert_allclose(cleaned[5], 0, atol=1e-3)
    if method != "subtraction":  # which takes the noise's multiple even then
        filtered = np.asarray(run(audio[4:5], np.array([4000]), config=CleanUp(method="none")))[0]
        assert np.corrcoef(cleaned[4], filtered)[0, 1] > 0.99


@pytest.mark.parametrize("hertz", [38.0, 300.0])
def test_filters_equal_scipys(hertz):
    rows = 8000 * np.random.default_rng(0).standard_normal((2, 3001)) + 20_000
    sections = butterworth("highpass", hertz, 48_000)
    wanted = scipy.signal.sosfilt(np.array(sections), rows, axis=1)
    np.testing.assert_allclose(filtered(rows, sections), wanted, atol=28_000 * 1e-5)


def test_an_offset_leaves_no_trace():
    tone = 1000 * np.sin(2 * np.pi * 500 * np.arange(4000) / RATE)
    rows = np.stack([tone, tone + 15_000, tone])
    filtered = np.asarray(jax.jit(high_pass, static_argnums=(2, 3))(rows, np.array([4000, 4000, 2000]), 60.0, RATE))
    np.testing.assert_allclose(filtered[1], filtered[0], atol=0.1)
    np.testing.assert_allclose(filtered[2, :2000], filtered[0, :2000], atol=0.1)
    assert not filtered[2, 2000:].any()
