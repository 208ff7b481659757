"""Error rates by group of speakers or recordings, and whether the gap between groups is more than chance."""

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path
from data_pipelines.storage import index as indexes
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, resampling, wer
from jax_speechlm.evaluation.report import EvaluationReport, Metric, Score, count_errors, score_counts

OWN_COLUMNS = "speaker", "language", "duration"
"""Columns that a report has itself."""

_BINS = 4  # of a column of numbers
_PERMUTATIONS = 10_000


class Gap(Config):
    """The largest difference of error rates between two groups.

    Attributes:
      best, worst: the groups with the lowest and the highest rate.
      difference: of their rates.
      interval: 95 % interval of the difference of these two groups, by bootstrap over `units`; None of few speakers.
      p_value: share of permutations of the groups among `units` whose largest difference is at least as large, so that
        it holds for all pairs of groups at once.
      units: "speakers" if each is of one group, since the utterances of a speaker are alike; else "utterances".
    """

    best: str
    worst: str
    difference: float
    interval: resampling.Interval | None = None
    p_value: float
    units: str


class FairnessReport(base.Report):
    """Error rates of one system by group.

    Attributes:
      report: the evaluation.
      by: the column that divides the utterances.
      metric: the evaluation's headline.
      groups: the score of each group.
      unknown: utterances that are in no group.
      gap: None with fewer than two groups of `resampling.MIN_UTTERANCES` utterances, among which it is looked for.
    """

    report: str
    by: str
    metric: Metric
    groups: dict[str, Score]
    unknown: int
    gap: Gap | None

    def tables(self) -> Iterator[Table]:
        """Yields a table with a row per group, and the gap below it."""
        table = base.new_table(
            self.by, f"{self.metric.upper()} [95 %]", "tokens", "utterances", caption=self._caption()
        )
        table.caption_justify = "left"
        for name, score in self.groups.items():
            table.add_row(escape(name), str(score), f"{score.tokens:,}", f"{score.utterances:,}")
        yield table

    def _caption(self) -> str:
        unknown = f"{self.unknown:,} utterances have no {self.by}. " if self.unknown else ""
        if self.gap is None:
            return f"{unknown}No gap: fewer than two groups have {resampling.MIN_UTTERANCES} utterances."
        gap = self.gap
        bounds = gap.interval and tuple(100 * bound for bound in gap.interval)
        difference = base.number(100 * gap.difference, bounds, ".1f")
        return (
            f"{unknown}Largest gap, of groups with {resampling.MIN_UTTERANCES} utterances or more: "
            f'"{gap.best}" and "{gap.worst}", '
            f"{difference} points, p = {gap.p_value:.2g} (permutations of {gap.units})."
        )


def measure_fairness(
    report: Positional[Path],
    by: str = "speaker",
    sets: tuple[str, ...] = (),
    split: base.Split = "test",
    table: Path | None = None,
    data_dir: base.DataDir = Path("data"),
    out: Path | None = None,
) -> FairnessReport:
    """Compares error rates between groups of speakers or recordings, by any column of the data.

    Columns of numbers are divided into four groups of the same size. The gap between the best and the worst group is
    tested by permutations; groups of few utterances have no interval and are not part of it.

    Args:
      report: a report.json of `jax-speechlm eval`.
      by: speaker, language or duration; gender, age or accent of prepared --sets; or a column of a --table.
      sets: the prepared sets of the evaluation, for columns that the report itself does not have.
      table: a CSV file with a column "id" and further ones, such as an SNR that you measured.
      out: folder of report.json; by default fairness-BY beside the evaluation's.
    """
    path = as_path(report)
    evaluation = EvaluationReport.load(path)
    values = [getattr(utterance, by, None) for utterance in evaluation.utterances]
    if table is not None or by not in OWN_COLUMNS:
        if table is None and not sets:
            raise DataError(
                f"--by {by}: a report has {', '.join(OWN_COLUMNS)}; name the prepared --sets, or a --table, for others"
            )
        column = _read_table(table, by) if table is not None else _column(data_dir, sets, split, by)
        values = [column.get(utterance.id) for utterance in evaluation.utterances]
    measured = fairness(evaluation, values, by).replace(report=str(report))
    return measured.publish(out or path.parent / f"fairness-{by}", str(report))


def fairness(
    evaluation: EvaluationReport, values: Sequence[str | float | int | None], by: str, *, seed: int = 0
) -> FairnessReport:
    """Computes error rates by the values of a column, one per utterance; None or "" if unknown.

    Raises:
      DataError: no utterance has a value.
    """
    names = group_names(values)
    rows_of = {name: [row for row, own in enumerate(names) if own == name] for name in _in_order(names, values)}
    if not rows_of:
        raise DataError(
            f"--by {by}: no utterance of the report has a value: name the --sets and --split it was made on"
        )
    counts = count_errors(evaluation.utterances, evaluation.normalizer, evaluation.headline, evaluation.headline)
    groups = {}
    for name, rows in rows_of.items():
        spoken_by = [evaluation.utterances[row].speaker for row in rows]
        groups[name] = score_counts(counts[rows], spoken_by, evaluation.resamples, evaluation.seed)
    large = {
        name: rows
        for name, rows in rows_of.items()
        if len(rows) >= resampling.MIN_UTTERANCES and groups[name].rate is not None
    }
    speakers = [utterance.speaker for utterance in evaluation.utterances]
    return FairnessReport(
        report="",
        by=by,
        metric=evaluation.headline,
        groups=groups,
        unknown=len(values) - sum(map(len, rows_of.values())),
        gap=_gap(counts, large, speakers, seed) if len(large) > 1 else None,
    )


def group_names(values: Sequence[str | float | int | None]) -> list[str | None]:
    """Names the group of each value: the value itself, or of numbers the quarter that it is in; None if unknown."""
    known = [value for value in values if value is not None and value != ""]
    numeric = all(isinstance(value, int | float) for value in known) and len(set(known)) > _BINS
    if not numeric:
        return [None if value is None or value == "" else str(value) for value in values]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bounds = [min(known), *edges.tolist(), max(known)]
    labels = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(bounds)]
    return [None if value is None or value == "" else labels[np.searchsorted(edges, value, "left")] for value in values]


def _in_order(names: Sequence[str | None], values: Sequence[str | float | int | None]) -> list[str]:
    """Returns the groups by their least value."""
    least: dict[str, str | float | int] = {}
    for name, value in zip(names, values, strict=True):
        if name is not None and value is not None:
            least[name] = min(least.get(name, value), value)
    return sorted(least, key=least.__getitem__)


def _gap(
    counts: wer.Counts,
    rows_of: Mapping[str, Sequence[int]],
    speakers: Sequence[str | None],
    seed: int,
) -> Gap:
    """Finds the largest gap between groups and tests it by permutations."""
    names = list(rows_of)
    rows = np.concatenate([np.asarray(each) for each in rows_of.values()])
    group_of_row = np.repeat(np.arange(len(names)), [len(each) for each in rows_of.values()])
    errors, tokens = counts[rows, :3].sum(1), counts[rows, 3]
    spoken_by = [speakers[row] for row in rows]
    pairs = set(zip(spoken_by, group_of_row.tolist(), strict=True))
    # A speaker of one group is one draw from it; with a speaker per group there is nothing to permute but utterances.
    clustered = None not in spoken_by and len(pairs) == len(set(spoken_by)) > len(names)
    units, unit_of_row = np.unique(spoken_by if clustered else np.arange(len(rows)), return_inverse=True)
    group_of_unit = np.zeros(len(units), int)
    group_of_unit[unit_of_row] = group_of_row
    sums = np.stack([np.bincount(unit_of_row, each, len(units)) for each in (errors, tokens)])

    def rates(groups: Int[np.ndarray, " units"]) -> Float[np.ndarray, " groups"]:
        wrong, of = (np.bincount(groups, each, len(names)) for each in sums)
        return wrong / np.maximum(of, 1)

    observed = rates(group_of_unit)
    difference, rng = np.ptp(observed), np.random.default_rng(seed)
    larger = sum(np.ptp(rates(rng.permutation(group_of_unit))) >= difference - 1e-12 for _ in range(_PERMUTATIONS))
    pair = [np.where(group_of_unit == each, sums, 0) for each in (observed.argmin(), observed.argmax())]

    def gap(drawn: Float[np.ndarray, "4 resamples"]) -> Float[np.ndarray, " resamples"]:
        return resampling.ratio(drawn[2:]) - resampling.ratio(drawn[:2])

    return Gap(
        interval=resampling.bootstrap(np.concatenate(pair), gap, seed=seed),
        best=names[observed.argmin()],
        worst=names[observed.argmax()],
        difference=float(difference),
        p_value=float((larger + 1) / (_PERMUTATIONS + 1)),
        units="speakers" if clustered else "utterances",
    )


def _read_table(path: Path, name: str) -> dict[str, str | float]:
    """Reads a column of a CSV file by its column "id", as numbers if all of its values are."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if missing := {"id", name} - set(rows.fieldnames or ()):
            raise DataError(
                f"{path}: has no column {' and '.join(sorted(missing))}, but {', '.join(rows.fieldnames or ())}"
            )
        values = {row["id"]: (row[name] or "").strip() for row in rows}
    try:
        return {key: float(value) if value else "" for key, value in values.items()}
    except ValueError:
        return values


def _column(data_dir: Path, sets: Sequence[str], split: str, name: str) -> dict[str, str]:
    """Reads a column of prepared sets by the ids that a report has."""
    index = indexes.read_sets(data_dir, tuple(sets), split, None)
    try:
        ids, values = index.column("id").to_pylist(), index.column(name).to_pylist()
    except KeyError as error:
        raise DataError(f"--by {name}: {error.args[0]}") from error
    if len(sets) > 1:
        ids = [f"{index.locate(row)[0].set_dir.name}/{each}" for row, each in enumerate(ids)]
    return dict(zip(ids, values, strict=True))
