"""Loudness of clips, and clips as recordings of a voice: silence trimmed at the ends, loudness normalised."""

import math
import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.core.errors import DataError

_FULL_SCALE = 32_768
_HOP = 0.01  # seconds between frames of two hops
_RUN = 3  # frames; a shorter sound is a click, not speech
_BELOW_SPEECH = 25.0, 40.0  # dB; bounds of the threshold of silence, below the level of speech
_ABOVE_NOISE = 6.0  # dB; least distance of the threshold from the noise of the pauses
_PEAK = 10 ** (-1 / 20)  # of full scale; a gain stops here
_MOST_GAIN = 30.0  # dB; more would turn noise into speech
_BLOCK = 0.4  # seconds, of BS.1770's gating blocks


class VoiceForm(NamedTuple):
    """The form of clips for a voice.

    Attributes:
      loudness: integrated loudness of every clip, in LUFS (ITU-R BS.1770).
      edge_silence: most silence before and after the speech, in seconds.
      max_clipped: clips with a larger share of samples at full scale are dropped.
    """

    loudness: float = -23.0
    edge_silence: float = 0.1
    max_clipped: float = 0.001


@dataclass(frozen=True)
class VoiceChange:
    """What `fit_voice` or `fit_loudness` changed.

    Attributes:
      trimmed: seconds removed at both ends; None where silence is not trimmed.
      gain: in dB.
      is_limited: whether the clip has less than the loudness asked for, since its peaks would clip or its noise would
        become loud.
    """

    trimmed: float | None
    gain: float
    is_limited: bool


def fit_voice(samples: NDArray[np.int16], rate: int, form: VoiceForm) -> tuple[NDArray[np.int16], VoiceChange]:
    """Trims the silence at the ends of a clip and normalises its loudness.

    Args:
      samples: int16 [samples], not empty and not silent.

    Returns:
      int16 [samples], and the changes.
    """
    start, end = speech_span(samples, rate, form.edge_silence)
    changed, change = fit_loudness(samples[start:end], rate, form.loudness)
    return changed, replace(change, trimmed=(len(samples) - len(changed)) / rate)


def fit_loudness(samples: NDArray[np.int16], rate: int, target: float) -> tuple[NDArray[np.int16], VoiceChange]:
    """Normalises the loudness of a clip; arguments and results as of `fit_voice`, `target` in LUFS."""
    peak = int(np.abs(samples.astype(np.int32)).max())
    wanted = target - loudness(samples, rate)
    allowed = min(_MOST_GAIN, 20 * math.log10(_PEAK * _FULL_SCALE / peak) if peak else 0.0)
    gain = min(wanted, allowed)
    changed = np.rint(samples * np.float64(10 ** (gain / 20))).astype(np.int16)
    return changed, VoiceChange(None, gain, wanted > allowed)


def speech_span(samples: NDArray[np.int16], rate: int, margin: float) -> tuple[int, int]:
    """Finds the speech of a clip by the energy of frames relative to the clip's own level.

    A frame of 20 ms is silence if it is 40 dB below the level of speech (the 95th percentile of frames), or less than
    that if the clip's pauses are noisy. Sounds of less than three frames at the ends are taken for clicks.

    Args:
      samples: int16 [samples].
      margin: seconds of silence to keep at both ends.

    Returns:
      Start and end, in samples; the whole clip if it has no speech.
    """
    hop = max(1, round(rate * _HOP))
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    starts = np.arange(0, max(1, len(samples) - hop), hop)
    ends = np.minimum(starts + 2 * hop, len(samples))
    decibels = 10 * np.log10((energy[ends] - energy[starts]) / (ends - starts) + 1e-4)  # relative to a step of int16
    level, noise = np.percentile(decibels, 95), np.percentile(decibels, 5)
    threshold = np.clip(noise + _ABOVE_NOISE, level - _BELOW_SPEECH[1], level - _BELOW_SPEECH[0])
    loud = decibels > threshold
    if len(loud) < _RUN:
        return 0, len(samples)
    runs = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(loud, _RUN).all(axis=1))
    if not len(runs):
        return 0, len(samples)
    kept = round(margin * rate)
    return max(0, starts[runs[0]] - kept), min(len(samples), ends[runs[-1] + _RUN - 1] + kept)


def loudness(samples: NDArray[np.int16], rate: int) -> float:
    """Computes the integrated loudness of a clip by ITU-R BS.1770-4; a clip under 0.4 s is repeated up to that length.

    Args:
      samples: int16 [samples].

    Returns:
      LUFS; at least -70, the standard's absolute gate.
    """
    import pyloudnorm

    signal = samples / np.float64(_FULL_SCALE)
    shortest = math.ceil(_BLOCK * rate) + 1
    if len(signal) < shortest:
        signal = np.resize(signal, shortest)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of an empty mean, where every block is below the gate
        value = pyloudnorm.Meter(rate, block_size=_BLOCK).integrated_loudness(signal)
    return max(-70.0, float(value)) if math.isfinite(value) else -70.0


def check_installed() -> None:
    """Checks that loudness can be measured.

    Raises:
      DataError: the package `pyloudnorm` is not installed.
    """
    try:
        import pyloudnorm  # noqa: F401
    except ModuleNotFoundError:
        raise DataError("--voice and --loudness need the package pyloudnorm: pip install 'jax_speechlm[tts]'") from None
