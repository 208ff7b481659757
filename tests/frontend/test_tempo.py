"""The phase vocoder against librosa's."""

import math

import jax
import librosa
import numpy as np
import pytest

from jax_speechlm.frontend.tempo import change_tempo

compute = jax.jit(change_tempo, static_argnames=("num_samples", "sample_rate"))
RATE = 8000  # windows of 512 samples every 128


def rows():
    rng, time = np.random.default_rng(0), np.arange(12_000) / RATE
    tones = sum(np.sin(2 * np.pi * (100 + 60 * time) * k * time) for k in range(1, 8))
    return (1500 * np.stack([tones, tones]) + 50 * rng.standard_normal((2, 12_000))).astype(np.float32)


@pytest.mark.parametrize("tempo", [0.8, 1.0, 1.5])
def test_equals_librosas(tempo):
    audio, lengths = rows(), np.array([12_000, 5000])
    audio[1, 5000:] = 30_000  # padding
    changed, counts = compute(audio, lengths, np.float32([tempo, tempo]), num_samples=16_000, sample_rate=RATE)
    for row, length in enumerate(lengths):
        signal = audio[row, :length].astype(np.float64)
        # The windows of `librosa.effects.time_stretch`, and silence after the last: what follows it differs by version.
        windows = np.pad(librosa.stft(signal, n_fft=512, hop_length=128), ((0, 0), (0, 2)))
        stretched = librosa.phase_vocoder(windows, rate=tempo)[:, : math.ceil((length // 128 + 1) / tempo)]
        wanted = librosa.istft(stretched, n_fft=512, hop_length=128, length=round(length / tempo))
        assert counts[row] == len(wanted)
        # Phases add up over 100 windows of some 1e-6 radians each, on amplitudes up to 10,000.
        np.testing.assert_allclose(changed[row, : counts[row]], wanted, atol=1e-4 * np.abs(wanted).max())
        assert not changed[row, counts[row] :].any()


def test_rows_have_a_tempo_each_so_that_lengths_become_equal():
    audio, lengths = rows(), np.array([12_000, 6000])
    changed, counts = compute(audio, lengths, np.float32(lengths / 8000), num_samples=8000, sample_rate=RATE)
    assert counts.tolist() == [8000, 8000]
    alone, _ = compute(audio[1:, :6000], lengths[1:], np.float32([0.75]), num_samples=8000, sample_rate=RATE)
    np.testing.assert_allclose(changed[1], alone[0], atol=0.5)
    assert np.sqrt(np.mean(np.square(changed))) > 1000


def test_bad_input():
    """No samples, one sample, silence, and a row that is not finite."""
    audio = np.zeros((4, 2000), np.float32)
    audio[1, 0], audio[3] = 100.0, np.nan
    args = np.array([0, 1, 2000, 2000]), np.ones(4, np.float32)
    changed, counts = compute(audio, *args, num_samples=2000, sample_rate=RATE)
    assert counts.tolist() == [0, 1, 2000, 2000]
    assert np.isfinite(changed[:3]).all()
    assert not changed[2].any()
