"""Distances of recordings against numpy by enumeration, and against tones whose pitch and spectrum are known."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_speechlm.evaluation import speech_distance
from jax_speechlm.evaluation.speech_distance import Contours, Distance, align, contours, distance, mel_cepstra

RATE = 16_000


def voice(pitch: float, seconds: float = 1.0) -> np.ndarray:
    """Pulses at a pitch, with harmonics as a voice has them."""
    time = np.arange(int(seconds * RATE)) / RATE
    harmonics = range(1, int(3_000 / pitch))
    return np.float32(0.2 * sum(np.sin(2 * np.pi * pitch * n * time) / n for n in harmonics))


def noise(seed: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def cheapest(costs: np.ndarray) -> float:
    """The least sum of a path, by the recurrence in plain loops."""
    best = np.full(np.array(costs.shape) + 1, np.inf)
    best[0, 0] = 0
    for row, column in np.ndindex(*costs.shape):
        before = best[row, column], best[row, column + 1], best[row + 1, column]
        best[row + 1, column + 1] = costs[row, column] + min(before)
    return best[-1, -1]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_the_path_is_the_cheapest_and_moves_frame_by_frame(frames, others, seed):
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(frames, 3)), rng.normal(size=(others, 3))
    costs = np.linalg.norm(one[:, None] - two[None], axis=-1)
    path = align(one, two)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [frames - 1, others - 1]
    assert all(tuple(step) in {(0, 1), (1, 0), (1, 1)} for step in np.diff(path, axis=0))
    np.testing.assert_allclose(costs[tuple(path.T)].sum(), cheapest(costs), rtol=1e-12)


def test_identical_recordings_have_no_distance():
    speech = contours(np.concatenate([voice(150), noise(0, 5_000), voice(200)]))
    found = distance(speech, speech)
    assert found == Distance(0.0, len(speech.cepstra), 0.0, int((~np.isnan(speech.pitch)).sum()), 0)
    assert found.voiced_pairs > 100


def test_level_and_duration_alone_make_no_distortion():
    speech = noise(1, 16_000)
    quiet = distance(contours(speech), contours(0.5 * speech))
    assert quiet.distortion / quiet.pairs < 1e-3
    cepstra = mel_cepstra(speech)
    pitch = np.full(len(cepstra), 100.0)
    slow = distance(Contours(cepstra, pitch), Contours(np.repeat(cepstra, 2, axis=0), np.repeat(pitch, 2)))
    assert (slow.distortion, slow.squared_log_pitch, slow.pairs) == (0, 0, 2 * len(cepstra))


def test_distortion_is_the_difference_of_smooth_spectra_in_db():
    """A filter whose gain is a cosine over mel frequency changes one cepstrum, by a known amount."""
    rng = np.random.default_rng(0)
    cepstra = rng.normal(size=(1, 24))
    changed = cepstra.copy()
    changed[0, 4] += 0.3
    found = distance(Contours(cepstra, np.ones(1)), Contours(changed, np.ones(1)))
    mel = np.linspace(0, np.pi, 100_000)
    gain_db = 20 * np.log10(np.exp(0.3 * np.cos(5 * mel)))
    np.testing.assert_allclose(found.distortion, np.sqrt((gain_db**2).mean()), rtol=1e-4)


def test_cepstra_are_the_cosines_of_the_log_spectrum(monkeypatch):
    """The definition: log|H| is a sum of cosines over mel frequency; the level is left out."""
    mel = np.pi * (np.arange(80) + 0.5) / 80
    smooth = -3.0 + 0.7 * np.cos(2 * mel) - 0.2 * np.cos(7 * mel)
    # filters that give every frame this spectrum, at the level of the frame
    monkeypatch.setattr(speech_distance, "_filters", lambda: np.exp(smooth)[:, None] * np.ones((80, 513)))
    found = mel_cepstra(noise(2, 4_000))
    expected = np.zeros(24)
    expected[[1, 6]] = 0.7, -0.2
    np.testing.assert_allclose(found, np.tile(expected, (len(found), 1)), atol=1e-5)


@pytest.mark.parametrize(("one", "two"), [(110.0, 123.5), (220.0, 150.0)])
def test_log_f0_of_tones_of_known_pitch(one, two):
    found = distance(contours(voice(one)), contours(voice(two)))
    assert found.voiced_pairs > 90
    root = math.sqrt(found.squared_log_pitch / found.voiced_pairs)
    assert root == pytest.approx(abs(math.log(one / two)), abs=0.01)


def test_voicing_errors_are_the_pairs_where_one_is_voiced():
    cepstra = np.arange(6.0)[:, None] * np.ones((6, 24))  # so that the path is the diagonal
    one = np.array([np.nan, 100, 100, np.nan, 100, np.nan])
    two = np.array([np.nan, np.nan, 100 * math.e, 50, 100, np.nan])
    found = distance(Contours(cepstra, one), Contours(cepstra, two))
    assert dataclasses.astuple(found) == (0.0, 6, pytest.approx(1.0), 2, 2)


def test_noise_is_unvoiced_and_a_tone_is_voiced():
    assert np.isnan(contours(noise(0, RATE)).pitch).mean() > 0.9
    pitch = contours(voice(180)).pitch[10:-10]
    np.testing.assert_allclose(pitch, 180, rtol=0.01)


def test_recordings_shorter_than_a_frame():
    assert distance(contours(noise(0, 10)), contours(noise(0, 10))).distortion == 0
    assert len(contours(np.zeros(0, np.float32)).pitch) > 0
