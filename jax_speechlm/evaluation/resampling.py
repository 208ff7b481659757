"""95 % intervals: the bootstrap over independent units (Efron 1979; Bisani and Ney 2004), and Wilson's of shares.

The unit that is resampled is what is independent of all others: an utterance, a document of a text, or a speaker with
all of its utterances where there are many speakers (`units_of`). Every measure that is a function of sums over rows,
such as a ratio, an F1 or BLEU, has its interval from `bootstrap`; quantiles have theirs from `bootstrap_quantile`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

MIN_UTTERANCES = 30
"""With fewer units (of a ratio: with a denominator) intervals and p-values are unreliable and left out."""

RESAMPLES = 10_000

_MOST_DRAWS = 10**8  # of units in all: more units get fewer resamples, at least a thousand

Rows = Sequence[Shaped[np.ndarray, " _"]] | Shaped[np.ndarray, "_ _"]
"""A value of each row for every term of a measure."""

Interval = tuple[float, float]

Statistic = Callable[[Float[np.ndarray, "rows _"]], Float[np.ndarray, " _"]]
"""Computes a measure from the sums of each row, of many resamples at once; NaN where it is not defined."""

_DRAWS_AT_ONCE = 1 << 22  # bounds the bootstrap's memory to some 100 MB


def units_of(speakers: Sequence[str | None]) -> Int[np.ndarray, " rows"]:
    """Numbers the independent unit of each row: its speaker if all are known and they are many, else the row itself."""
    if all(speakers):
        names, unit_of_row = np.unique(np.array(speakers, object).astype(str), return_inverse=True)
        if len(names) >= MIN_UTTERANCES:
            return unit_of_row
    return np.arange(len(speakers))


def by_unit(
    rows: Rows,
    unit_of_row: Int[np.ndarray, " rows"] | None,
) -> Float[np.ndarray, "terms units"]:
    """Sums each measure of the rows over the rows of every unit; None: each row is one."""
    if unit_of_row is None:
        return np.stack(rows).astype(np.float64)
    num_units = int(unit_of_row.max(initial=-1)) + 1
    return np.stack([np.bincount(unit_of_row, row, num_units) for row in rows])


def draws(num_units: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "some units"]]:
    """Draws resamples of units with replacement, some at a time; yields how often each has each unit."""
    rng, at_once = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // num_units)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = rng.integers(num_units, size=(count, num_units)) + num_units * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * num_units).reshape(count, num_units).astype(np.float64)


def resampled_sums(rows: Rows, resamples: int, seed: int) -> Float[np.ndarray, "terms resamples"]:
    """Sums each row over resamples of its units with replacement, the same resamples for all rows."""
    stacked = np.stack(rows).astype(np.float64)
    return np.concatenate([stacked @ counts.T for counts in draws(stacked.shape[1], resamples, seed)], axis=1)


def num_resamples(num_units: int) -> int:
    """Returns the number of resamples: `RESAMPLES`, or fewer of very many units."""
    return min(RESAMPLES, max(1_000, _MOST_DRAWS // max(num_units, 1)))


def ratio(sums: Float[np.ndarray, "2 _"]) -> Float[np.ndarray, " _"]:
    """Divides the first row by the second: the statistic of a rate; NaN where the second is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[1] > 0, sums[0] / sums[1], np.nan)


def _are_enough(units: Float[np.ndarray, "terms units"], statistic: Statistic) -> bool:
    return int(np.count_nonzero(units[1]) if statistic is ratio else units.shape[1]) >= MIN_UTTERANCES


def bootstrap(
    rows: Rows,
    statistic: Statistic = ratio,
    unit_of_row: Int[np.ndarray, " rows"] | None = None,
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> Interval | None:
    """Computes the 95 % percentile interval of a function of the rows' sums.

    Args:
      resamples: by default `num_resamples`.
      statistic: by default the ratio of two rows. Resamples where it is not defined are left out.
      unit_of_row: as of `units_of`; by default every row is independent.

    Returns:
      The interval; None with fewer than `MIN_UTTERANCES` units, or if it is never defined.
    """
    units = by_unit(rows, unit_of_row)
    if not _are_enough(units, statistic):
        return None
    values = statistic(resampled_sums(units, resamples or num_resamples(units.shape[1]), seed))
    values = values[~np.isnan(values)]
    return interval(values) if len(values) else None


@dataclasses.dataclass(frozen=True)
class Difference:
    """The measure of the second system minus that of the first.

    Attributes:
      value: the difference on the data itself.
      interval: of 95 %; None with fewer than `MIN_UTTERANCES` units.
      p_value: two-sided: twice the share of resamples on the less frequent side of zero, zero included; None likewise.
    """

    value: float
    interval: Interval | None = None
    p_value: float | None = None


def paired_bootstrap(
    first: Rows,
    second: Rows,
    statistic: Statistic = ratio,
    unit_of_row: Int[np.ndarray, " rows"] | None = None,
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> Difference:
    """Compares two systems on the same rows, with the same resamples for both; arguments as of `bootstrap`."""
    systems = [by_unit(rows, unit_of_row) for rows in (first, second)]
    before, after = (float(statistic(rows.sum(1)[:, None])[0]) for rows in systems)
    if not all(_are_enough(units, statistic) for units in systems):
        return Difference(after - before)
    sums = resampled_sums([*systems[0], *systems[1]], resamples or num_resamples(systems[0].shape[1]), seed)
    differences = statistic(sums[len(first) :]) - statistic(sums[: len(first)])
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return Difference(after - before)
    return Difference(after - before, interval(differences), p_value(differences))


def bootstrap_mean(
    values: Shaped[np.ndarray, " rows"], unit_of_row: Int[np.ndarray, " rows"] | None = None
) -> Interval | None:
    """Computes the interval of a mean, as `bootstrap`."""
    return bootstrap([values, np.ones(len(values))], unit_of_row=unit_of_row)


def bootstrap_quantile(
    values: Shaped[np.ndarray, " values"], unit_of_value: Int[np.ndarray, " values"], share: float, *, seed: int = 0
) -> Interval | None:
    """Computes the 95 % percentile interval of a quantile of all values of the units, each of which may have several.

    The quantile of a resample is its least value that is not below `share` of its values.

    Returns:
      The interval; None if fewer than `MIN_UTTERANCES` units have values.
    """
    names, unit = np.unique(unit_of_value, return_inverse=True)
    if len(names) < MIN_UTTERANCES:
        return None
    order = np.argsort(values, kind="stable")
    ordered, unit = np.asarray(values, np.float64)[order], unit[order]
    quantiles = []
    for counts in draws(len(names), RESAMPLES // 10, seed):
        for drawn in counts:
            weights = np.cumsum(drawn[unit])
            quantiles.append(ordered[np.searchsorted(weights, share * weights[-1] - 1e-9)])
    return interval(np.array(quantiles))


def wilson_interval(share: float, count: int) -> Interval:
    """Returns the 95 % interval of a proportion from `count` independent trials (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def share_interval(
    is_right: Shaped[np.ndarray, " rows"] | Sequence[bool], unit_of_row: Int[np.ndarray, " rows"] | None = None
) -> Interval | None:
    """Computes the interval of a share: Wilson's if every row is a unit, valid for few rows; else by bootstrap.

    Returns:
      The interval; None without rows, or of fewer units than `MIN_UTTERANCES` that are not single rows.
    """
    is_right = np.asarray(is_right, np.float64)
    if unit_of_row is not None and len(np.unique(unit_of_row)) < len(is_right):
        return bootstrap_mean(is_right, unit_of_row)
    return wilson_interval(float(is_right.mean()), len(is_right)) if len(is_right) else None


def interval(values: Float[np.ndarray, " resamples"]) -> Interval:
    """Returns the bounds of the central 95 %."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def p_value(differences: Float[np.ndarray, " resamples"]) -> float:
    """Returns twice the share of resamples on the less frequent side of zero, zero included."""
    contradicting = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (contradicting + 1) / (len(differences) + 1)))  # + 1: the sample itself; never 0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects the p-values of several tests for their number (Holm 1979); None stays None and does not count."""
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        corrected[place] = largest
    return corrected
