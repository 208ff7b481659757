"""Distances of an utterance to a natural recording of the same words: spectrum, pitch, voicing.

Both are cut into frames of 10 ms, and dynamic time warping over mel cepstra pairs their frames, so that durations may
differ. Distances are sums over pairs with their number: a corpus's value is total over total.

- Mel-cepstral distortion in dB (Kubichek 1993): 10 / ln 10 sqrt(2 sum_d (c_d - c'_d)^2) over cepstra 1 to 24. With
  cepstra of the natural logarithm of amplitudes, log|H(w)| = c_0 + sum_d c_d cos(d w), this is the difference of two
  smoothed spectra in dB, as root mean square over mel frequency; c_0, the level, is left out.
- Difference of log F0: root mean square of ln f - ln f' over the pairs where both are voiced; 0.0578 is a semitone.
- Voicing error: share of pairs of which one is voiced and the other is not.

F0 and voicing are those of `librosa.pyin` (Mauch and Dixon 2014). Silence counts like speech. Published values differ
in frames, filters, order and treatment of silence, so compare values of one table only.
"""

import dataclasses
import functools
import math

import librosa
import numpy as np
import scipy.fft
from jaxtyping import Bool, Float, Int

SAMPLE_RATE = 16_000
MAX_SECONDS = 60.0
"""The matrix of two recordings of this length takes 600 MB."""

_WINDOW, _HOP = 1024, 160
_BINS, _LOW, _HIGH = 80, 80.0, 7600.0
_FLOOR = 1e-5  # of mel amplitudes
_ORDER = 24
_PITCH = {"fmin": 65.0, "fmax": 500.0}


@dataclasses.dataclass(frozen=True)
class Contours:
    """Features of a recording, a row each 10 ms.

    Attributes:
      cepstra: float64, mel cepstra 1 to 24 of the natural logarithm of amplitudes.
      pitch: F0 in Hz, NaN where unvoiced.
    """

    cepstra: Float[np.ndarray, "frames order"]
    pitch: Float[np.ndarray, " frames"]


@dataclasses.dataclass(frozen=True)
class Distance:
    """Sums over pairs of frames.

    Attributes:
      distortion: sum of mel-cepstral distortions in dB.
      pairs: number of pairs.
      squared_log_pitch: sum of squared differences of ln F0 over the pairs where both are voiced.
      voiced_pairs: their number.
      voicing_errors: number of pairs of which one is voiced.
    """

    distortion: float
    pairs: int
    squared_log_pitch: float
    voiced_pairs: int
    voicing_errors: int


def contours(samples: Float[np.ndarray, " samples"]) -> Contours:
    """Computes the features of a recording in [-1, 1] at 16 kHz."""
    samples = np.pad(samples, (0, max(0, _WINDOW - len(samples))))
    pitch, voiced, _ = librosa.pyin(samples, sr=SAMPLE_RATE, frame_length=_WINDOW, hop_length=_HOP, **_PITCH)
    return Contours(mel_cepstra(samples), np.where(voiced, pitch, np.nan))


def mel_cepstra(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "frames order"]:
    """Computes mel cepstra c_1 to c_24 with log|H(w)| = c_0 + sum_d c_d cos(d w), w the mel frequency from 0 to pi."""
    amplitudes = np.abs(librosa.stft(samples, n_fft=_WINDOW, hop_length=_HOP, pad_mode="reflect"))
    log_mel = np.log(np.maximum(_filters() @ amplitudes, _FLOOR)).T.astype(np.float64)
    return scipy.fft.dct(log_mel, type=2, axis=1)[:, 1 : _ORDER + 1] / _BINS


def distance(natural: Contours, other: Contours) -> Distance:
    """Pairs the frames of two recordings and sums their distances."""
    one, two = align(natural.cepstra, other.cepstra).T
    difference = natural.cepstra[one] - other.cepstra[two]
    distortion = 10 / math.log(10) * np.sqrt(2 * (difference**2).sum(1))
    voiced: list[Bool[np.ndarray, " pairs"]] = [~np.isnan(natural.pitch[one]), ~np.isnan(other.pitch[two])]
    both = voiced[0] & voiced[1]
    log_pitch = np.log(natural.pitch[one][both]) - np.log(other.pitch[two][both])
    return Distance(
        distortion=float(distortion.sum()),
        pairs=len(one),
        squared_log_pitch=float((log_pitch**2).sum()),
        voiced_pairs=int(both.sum()),
        voicing_errors=int((voiced[0] != voiced[1]).sum()),
    )


def align(one: Float[np.ndarray, "frames order"], two: Float[np.ndarray, "others order"]) -> Int[np.ndarray, "pairs 2"]:
    """Finds the path of pairs from the first frames to the last with the least sum of Euclidean distances.

    A path advances by a frame of one, of the other, or of both (Sakoe and Chiba 1978, without weights or slopes).
    """
    _, path = librosa.sequence.dtw(one.T, two.T, metric="euclidean")
    return path[::-1]


@functools.cache
def _filters() -> Float[np.ndarray, "bins frequencies"]:
    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=_WINDOW, n_mels=_BINS, fmin=_LOW, fmax=_HIGH)
