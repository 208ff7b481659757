"""The bootstrap over utterances (Bisani and Ney 2004), for any measure that is a ratio of two sums over utterances."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

MIN_UTTERANCES = 30
"""With fewer utterances, intervals and p-values are unreliable and left out."""

_DRAWS_AT_ONCE = 1 << 22  # bounds the bootstrap's memory to some 100 MB


def resampled_sums(
    rows: Sequence[Shaped[np.ndarray, " utterances"]], resamples: int, seed: int
) -> Shaped[np.ndarray, "rows resamples"]:
    """Sums each row over resamples of its utterances with replacement, the same resamples for all rows."""
    stacked = np.stack(rows)
    num_utterances = stacked.shape[1]
    rng, sums = np.random.default_rng(seed), []
    at_once = max(1, _DRAWS_AT_ONCE // num_utterances)
    for start in range(0, resamples, at_once):
        drawn = rng.integers(num_utterances, size=(min(at_once, resamples - start), num_utterances))
        sums.append(np.stack([row[drawn].sum(1) for row in stacked]))
    return np.concatenate(sums, axis=1)


def interval(values: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """Returns the bounds of the central 95 %."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def p_value(differences: Float[np.ndarray, " resamples"]) -> float:
    """Returns twice the share of resamples on the less frequent side of zero, zero included."""
    contradicting = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (contradicting + 1) / (len(differences) + 1)))  # + 1: the sample itself; never 0
