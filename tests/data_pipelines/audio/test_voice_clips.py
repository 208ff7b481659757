"""Trimming and loudness of clips for a voice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.audio.voice import VoiceForm, fit_voice, loudness, speech_span

pytest.importorskip("pyloudnorm", reason="loudness needs pyloudnorm: pip install -e '.[tts]'")
RATE = 16_000


def sine(seconds: float, amplitude: float, hertz: float = 997.0, rate: int = RATE) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def speech(seconds: float, amplitude: float = 0.2, seed: int = 0) -> np.ndarray:
    """Noise with the syllables of speech, four a second."""
    noise = np.random.default_rng(seed).normal(0, amplitude, round(seconds * RATE))
    return noise * (0.1 + np.abs(np.sin(4 * np.pi * np.arange(len(noise)) / RATE + 1)))


def to_int16(samples: np.ndarray) -> np.ndarray:
    return np.rint(samples * 32_768).clip(-32_768, 32_767).astype(np.int16)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("decibels", [-3, -20, -40])
def test_loudness_of_the_standards_tone(rate, decibels):
    """A tone of 997 Hz at full scale has -3.01 LUFS (ITU-R BS.1770-4, section 2.8)."""
    tone = to_int16(sine(2.0, 10 ** (decibels / 20), rate=rate))
    assert loudness(tone, rate) == pytest.approx(decibels - 3.01, abs=0.15)


def test_loudness_of_short_and_quiet_clips():
    tone = to_int16(sine(2.0, 0.1))
    for seconds in (0.01, 0.1, 0.3, 0.4):
        assert loudness(tone[: round(seconds * RATE)], RATE) == pytest.approx(loudness(tone, RATE), abs=0.5)
    assert loudness(np.zeros(RATE, np.int16), RATE) == -70.0
    pauses = np.concatenate([tone, np.zeros(3 * RATE, np.int16), tone])
    assert loudness(pauses, RATE) == pytest.approx(loudness(tone, RATE), abs=0.5)  # the gate leaves the pause out


@pytest.mark.parametrize("level", [0.01, 0.3])
@pytest.mark.parametrize("noise", [0.0, 0.003, 0.02])
@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (1.0, 0.5), (0.05, 2.0)])
def test_silence_is_trimmed_whatever_level_and_noise(level, noise, before, after):
    words = speech(2.0, level)
    clip = np.concatenate([np.zeros(round(before * RATE)), words, np.zeros(round(after * RATE))])
    clip += np.random.default_rng(1).normal(0, noise * level, len(clip))
    start, end = speech_span(to_int16(clip), RATE, 0.1)
    assert start / RATE == pytest.approx(max(0.0, before - 0.1), abs=0.06)
    assert end / RATE == pytest.approx(2.0 + before + min(0.1, after), abs=0.06)


def test_clicks_and_pauses_are_no_edges():
    silence = np.zeros(RATE)
    clicks = silence.copy()
    clicks[3000:3010] = 0.5
    clip = to_int16(np.concatenate([clicks, speech(1.0), silence, speech(1.0, seed=1), clicks]))
    start, end = speech_span(clip, RATE, 0.1)
    assert start / RATE == pytest.approx(0.9, abs=0.06)
    assert end / RATE == pytest.approx(4.1, abs=0.06)


@pytest.mark.parametrize("samples", [np.ones(1), np.zeros(1000), sine(0.02, 0.1), np.full(5 * RATE, 0.3)])
def test_clips_without_edges_remain_whole(samples):
    assert speech_span(to_int16(samples), RATE, 0.1) == (0, len(samples))


@given(st.floats(-50, -10), st.floats(0, 0.5), st.floats(0.02, 0.9), st.integers(0, 9))
def test_clips_get_the_loudness_asked_for_unless_they_would_clip(target, margin, amplitude, seed):
    clip = np.concatenate(
        [np.zeros(RATE), speech(1.0, amplitude / 4, seed).clip(-amplitude, amplitude), np.zeros(RATE)]
    )
    changed, change = fit_voice(to_int16(clip), RATE, VoiceForm(target, margin))
    assert change.trimmed == pytest.approx((len(clip) - len(changed)) / RATE)
    assert change.trimmed > 0.9
    assert np.abs(changed.astype(int)).max() <= 0.9 * 32_768 or change.gain < 0
    if change.is_limited:
        assert loudness(changed, RATE) < target
        assert change.gain == pytest.approx(30) or np.abs(changed.astype(int)).max() > 0.88 * 32_768
    else:
        assert loudness(changed, RATE) == pytest.approx(target, abs=0.1 if target > -40 else 1.0)
