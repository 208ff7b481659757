"""Evaluates speaker verification: compares the x-vectors of pairs of recordings."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from rich.table import Table

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import text_lines
from data_pipelines.storage import index as indexes
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.evaluation.batches import speech_batches
from jax_speechlm.inference.predictor import rows_by_id
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification
from jax_speechlm.training.runs import LoadedRun

_MOST_ROWS = 4000  # limit for comparing all pairs: eight million
_MOST_PAIRS = 1 << 20  # of which a thousand resamples take some ten seconds
_PAIRS_AT_ONCE = 1 << 14
_TARGET_PRIOR = 0.01  # of the detection cost; usual on VoxCeleb


class SpeakerReport(base.SetReport):
    """The evaluation of one speaker verification model.

    Attributes:
      trials: the file of pairs; "" for all pairs.
      equal_error_rate: at the threshold where the miss rate equals the false alarm rate.
      equal_error_rate_interval, min_cost_interval: 95 % intervals by bootstrap; None for few recordings. Trials share
        recordings and are not independent, so recordings are resampled, or speakers where there are many; a trial
        counts as often as the product of the draws of its two (Poh and Bengio 2007).
      min_cost: minimum detection cost over all thresholds, at a target prior of 0.01 and equal costs, normalised so
        that rejecting every pair costs 1.
      threshold: the cosine at the equal error rate.
      targets, others: numbers of pairs of one speaker, and of two.
      skipped: recordings too short for a vector or, if all pairs are compared, without a speaker.
      skipped_trials: listed pairs with such a recording.
    """

    trials: str = ""
    equal_error_rate: float
    equal_error_rate_interval: resampling.Interval | None = None
    min_cost: float
    min_cost_interval: resampling.Interval | None = None
    threshold: float
    speakers: int = 0
    recordings: int = 0
    targets: int
    others: int
    skipped: int = 0
    skipped_trials: int = 0

    def tables(self) -> Iterator[Table]:
        """Yields the error rates and the extent of the test."""
        table = base.new_table("", "", title=self.title, left=2, show_header=False)
        rate = base.percent(self.equal_error_rate, self.equal_error_rate_interval)
        table.add_row("equal error rate [95 %]", f"{rate} (cosine {self.threshold:.3f})")
        cost = base.number(self.min_cost, self.min_cost_interval)
        table.add_row(f"least cost at a prior of {_TARGET_PRIOR:g} [95 %]", cost)
        table.add_row("pairs of one speaker, of two", f"{self.targets:,}, {self.others:,}")
        table.add_row("recordings, speakers", f"{self.recordings:,}, {self.speakers:,}")
        if self.skipped:
            table.add_row("recordings too short or of nobody", f"{self.skipped:,}")
        if self.skipped_trials:
            table.add_row("listed pairs with such, skipped", f"{self.skipped_trials:,}")
        yield table


class Pairs(NamedTuple):
    """Rows to compare, and whether both are of one speaker."""

    one: Int[np.ndarray, " pairs"]
    other: Int[np.ndarray, " pairs"]
    is_target: Bool[np.ndarray, " pairs"]


def score(cosine: Float[np.ndarray, " pairs"], is_target: Bool[np.ndarray, " pairs"]) -> SpeakerReport:
    """Computes error rates over all thresholds. Raises `ValueError` unless there are pairs of both kinds."""
    targets, others = int(is_target.sum()), int((~is_target).sum())
    if not targets or not others:
        raise ValueError(f"{targets} pairs of one speaker and {others} of two: there must be some of both")
    from sklearn.metrics import roc_curve  # slow import

    alarms, hits, thresholds = roc_curve(is_target, cosine, drop_intermediate=False)
    rate, cost, crossing = _rates(alarms, 1 - hits)
    return SpeakerReport(
        equal_error_rate=rate, min_cost=cost, threshold=float(thresholds[crossing]), targets=targets, others=others
    )


def _rates(alarms: Float[np.ndarray, " points"], misses: Float[np.ndarray, " points"]) -> tuple[float, float, int]:
    """Returns equal error rate, minimum cost, and the point after the crossing of a curve that starts at (0, 1)."""
    crossing = int(np.argmax(alarms >= misses))  # at least 1: at 0, everything is rejected
    gap, before = alarms[crossing] - misses[crossing], misses[crossing - 1] - alarms[crossing - 1]
    share = before / (gap + before)
    cost = _TARGET_PRIOR * misses + (1 - _TARGET_PRIOR) * alarms
    rate = misses[crossing - 1] + share * (misses[crossing] - misses[crossing - 1])
    return float(rate), float(cost.min() / min(_TARGET_PRIOR, 1 - _TARGET_PRIOR)), crossing


def intervals(
    cosine: Float[np.ndarray, " pairs"], pairs: Pairs, unit_of_row: Int[np.ndarray, " rows"], seed: int = 0
) -> tuple[resampling.Interval, resampling.Interval] | None:
    """Computes the 95 % intervals of equal error rate and minimum cost by resampling units of recordings.

    A pair of two units counts as often as both are drawn, one within a unit as often as that is.

    Args:
      unit_of_row: unit of each recording: itself, or its speaker.

    Returns:
      Both intervals; None with fewer than `MIN_UTTERANCES` units.
    """
    order = np.argsort(-cosine, kind="stable")
    names, units = np.unique(unit_of_row[np.stack([pairs.one, pairs.other])[:, order]], return_inverse=True)
    if len(names) < resampling.MIN_UTTERANCES:
        return None
    (one, other), is_target = units.reshape(2, -1), pairs.is_target[order]
    ends = np.append(np.flatnonzero(np.diff(cosine[order])), len(order) - 1)  # equal cosines have one threshold
    resamples, found = 1_000 if len(order) <= _MOST_PAIRS else 200, []
    for counts in resampling.draws(len(names), resamples, seed):
        for drawn in counts:
            weights = np.where(one == other, drawn[one], drawn[one] * drawn[other])
            accepted = [np.cumsum(np.where(kind, weights, 0))[ends] for kind in (~is_target, is_target)]
            if accepted[0][-1] and accepted[1][-1]:
                alarms, hits = (np.insert(each / each[-1], 0, 0.0) for each in accepted)
                found.append(_rates(alarms, 1 - hits)[:2])
    rates, costs = np.array(found).T
    return resampling.interval(rates), resampling.interval(costs)


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    trials: Path | None = None,
    data_dir: base.DataDir = Path("data"),
    out: base.Out = None,
    seconds_per_batch: base.BatchSeconds = 120.0,
) -> SpeakerReport:
    """Measures speaker verification on prepared data sets: equal error rate and minimum detection cost.

    Test speakers should differ from the training speakers, or the result is too optimistic.

    Args:
      trials: lines "1 ID ID" for one speaker and "0 ID ID" for two, the format of VoxCeleb's lists, with the ids of the
        prepared rows; by default all pairs of recordings, of a random 4,000 if there are more.
    """
    run = LoadedRun.load(checkpoint, SpeakerVerification, "compare speakers")
    index = indexes.read_sets(data_dir, sets, split, run.experiment.sample_rate)
    speakers = np.array(index.column("speaker").to_pylist(), object)
    listed = None if trials is None else _listed(trials, index)
    vectors, usable = x_vectors(run, index, seconds_per_batch)
    if listed is None:
        usable &= speakers != ""
        pairs = _all_pairs(speakers, usable)
    else:
        kept = usable[listed.one] & usable[listed.other]
        pairs = Pairs(*(column[kept] for column in listed))
    cosine = np.zeros(len(pairs.one), np.float32)
    for start in range(0, len(cosine), _PAIRS_AT_ONCE):  # avoids a gathered copy of all vectors
        chunk = slice(start, start + _PAIRS_AT_ONCE)
        cosine[chunk] = (vectors[pairs.one[chunk]] * vectors[pairs.other[chunk]]).sum(1)
    try:
        report = score(cosine, pairs.is_target)
    except ValueError as error:
        raise DataError(f"{', '.join(sets)} {split}: {error}") from error
    compared = np.unique(np.concatenate([pairs.one, pairs.other]))
    units = np.arange(len(index))
    units[compared] = len(units) + resampling.units_of(speakers[compared].tolist())
    bounds = intervals(cosine, pairs, units)
    report = report.replace(
        checkpoint=str(run.checkpoint),
        sets=sets,
        split=split,
        trials=str(trials or ""),
        speakers=len(set(speakers[compared])),
        equal_error_rate_interval=bounds and bounds[0],
        min_cost_interval=bounds and bounds[1],
        recordings=len(compared),
        skipped=int((~usable).sum()),
        skipped_trials=0 if listed is None else len(listed.one) - len(pairs.one),
    )
    return report.publish(out or base.report_folder(checkpoint, sets, split), report.checkpoint)


def x_vectors(
    run: LoadedRun, index: indexes.Index, seconds_per_batch: float
) -> tuple[Float[np.ndarray, "rows dim"], Bool[np.ndarray, " rows"]]:
    """Computes the x-vectors of all rows.

    Returns:
      Vectors of unit length, and which rows have one, because they have enough frames.
    """
    experiment, objective = run.experiment, run.experiment.objective
    compute = jax.jit(objective.vectors(experiment.model, experiment.frontend))
    batches = speech_batches(index, experiment.frame_samples, seconds_per_batch)
    vectors, has_vector = np.zeros((len(index), objective.head.dim), np.float32), np.zeros(len(index), bool)
    for row, (vector, frames) in rows_by_id(functools.partial(compute, run.params), batches).items():
        vectors[row], has_vector[row] = vector, frames >= objective.head.shortest
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), has_vector


def _all_pairs(speakers: np.ndarray, usable: Bool[np.ndarray, " rows"]) -> Pairs:
    rows = np.flatnonzero(usable)
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MOST_ROWS, replace=False))
    one, other = np.triu_indices(len(rows), 1)
    return Pairs(rows[one], rows[other], speakers[rows[one]] == speakers[rows[other]])


def _listed(file: Path, index: indexes.Index) -> Pairs:
    if not file.is_file():
        raise DataError(f'{file} is not there: --trials names a file of lines "1 ID ID" and "0 ID ID"')
    row_of: dict[str, int] = {}
    for row, name in enumerate(index.column("id").to_pylist()):
        if row_of.setdefault(name, row) != row:
            raise DataError(f"two rows of the data sets have the id {name!r}, so {file} cannot say which is meant")
    listed = []
    for line_number, line in text_lines(file):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise DataError(f'{file}, line {line_number}: {line[:80]!r} is not of the form "1 ID ID" or "0 ID ID"')
        missing = [name for name in fields[1:] if name not in row_of]
        if missing:
            raise DataError(f"{file}, line {line_number}: no row of the data sets has the id {missing[0]!r}")
        one, other = (row_of[name] for name in fields[1:])
        listed.append((one, other, fields[0] == "1"))
    one, other, is_target = np.array(listed, int).reshape(-1, 3).T
    return Pairs(one, other, is_target.astype(bool))
