"""Speed perturbation (Ko et al. 2015, "Audio augmentation for speech recognition"): pitch and tempo change together.

It runs on the host, which decodes the utterances: a compiled step cannot change its shapes, and resampling costs about
half as much as decoding the FLAC. The plan must know the new lengths, so a run with speeds trains on items, not rows:
item `k * rows + r` is row r at `speeds[k]`. Lengths stay exact, with no padding to the slowest version, and as in the
paper's recipe an epoch plays every utterance once at every speed.
"""

from collections.abc import Sequence

import numpy as np
import soxr


def with_speeds(
    num_samples: np.ndarray, token_lengths: np.ndarray | None, speeds: Sequence[float]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Computes the lengths of all items, [len(speeds) * rows], for the plan."""
    lengths = np.concatenate([perturbed_length(num_samples, speed) for speed in speeds])
    return lengths, None if token_lengths is None else np.tile(token_lengths, len(speeds))


def perturbed_length(num_samples: np.ndarray | int, speed: float) -> np.ndarray:
    """Returns the length of audio played at `speed` times its speed, int64 in samples."""
    if not speed > 0:
        raise ValueError(f"a speed must be positive, got {speed}")
    return np.ceil(np.asarray(num_samples) / speed).astype(np.int64)


def change_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Resamples int16 [samples] to int16 [perturbed_length(samples, speed)] at the same rate."""
    if speed == 1:
        return samples
    changed = np.zeros(int(perturbed_length(len(samples), speed)), np.int16)
    resampled = soxr.resample(samples, speed, 1.0, quality="MQ")[: len(changed)]
    changed[: len(resampled)] = resampled  # the resampler may end a sample early
    return changed
