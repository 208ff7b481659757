"""Evaluates speaker verification: compares the x-vectors of pairs of recordings."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import text_lines
from data_pipelines.core.paths import as_path
from data_pipelines.storage import index as indexes
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation.classification import speech_batches
from jax_speechlm.evaluation.language import save_report
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification

_MOST_ROWS = 4000  # limit for comparing all pairs: eight million
_TARGET_PRIOR = 0.01  # of the detection cost; usual on VoxCeleb


class SpeakerReport(Config):
    """The evaluation of one speaker verification model.

    Attributes:
      checkpoint, sets, split: the run and its test data.
      trials: the file of pairs; "" for all pairs.
      equal_error_rate: at the threshold where the miss rate equals the false alarm rate.
      min_cost: minimum detection cost over all thresholds, at a target prior of 0.01 and equal costs, normalised so
        that rejecting every pair costs 1.
      threshold: the cosine at the equal error rate.
      speakers, recordings: numbers of speakers and recordings compared.
      targets, others: numbers of pairs of one speaker, and of two.
      skipped: recordings too short for a vector or, if all pairs are compared, without a speaker.
      skipped_trials: listed pairs with such a recording.
    """

    checkpoint: str = ""
    sets: tuple[str, ...] = ()
    split: str = ""
    trials: str = ""
    equal_error_rate: float
    min_cost: float
    threshold: float
    speakers: int = 0
    recordings: int = 0
    targets: int
    others: int
    skipped: int = 0
    skipped_trials: int = 0

    def table(self) -> Table:
        """Returns the report as a table for the terminal."""
        table = Table("", "", title=f"{', '.join(self.sets)} {self.split}", title_justify="left", show_header=False)
        table.add_row("equal error rate", f"{self.equal_error_rate:.2%} (cosine {self.threshold:.3f})")
        table.add_row(f"least cost at a prior of {_TARGET_PRIOR:g}", f"{self.min_cost:.3f}")
        table.add_row("pairs of one speaker, of two", f"{self.targets:,}, {self.others:,}")
        table.add_row("recordings, speakers", f"{self.recordings:,}, {self.speakers:,}")
        if self.skipped:
            table.add_row("recordings too short or of nobody", f"{self.skipped:,}")
        if self.skipped_trials:
            table.add_row("listed pairs with such, skipped", f"{self.skipped_trials:,}")
        return table


class Pairs(NamedTuple):
    """Rows to compare, and whether both are of one speaker."""

    one: Int[np.ndarray, " pairs"]
    other: Int[np.ndarray, " pairs"]
    is_target: Bool[np.ndarray, " pairs"]

    def among(self, usable: Bool[np.ndarray, " rows"]) -> "Pairs":
        """Returns the pairs with two usable rows."""
        kept = usable[self.one] & usable[self.other]
        return Pairs(self.one[kept], self.other[kept], self.is_target[kept])


def score(cosine: Float[np.ndarray, " pairs"], is_target: Bool[np.ndarray, " pairs"]) -> SpeakerReport:
    """Computes error rates over all thresholds. Raises `ValueError` unless there are pairs of both kinds."""
    targets, others = int(is_target.sum()), int((~is_target).sum())
    if not targets or not others:
        raise ValueError(f"{targets} pairs of one speaker and {others} of two: there must be some of both")
    order = np.argsort(-cosine, kind="stable")
    cosine, is_target = cosine[order], is_target[order]
    last = np.r_[cosine[1:] != cosine[:-1], True]  # pairs of equal score share a threshold
    misses = 1 - np.r_[0, np.cumsum(is_target)[last]] / targets
    alarms = np.r_[0, np.cumsum(~is_target)[last]] / others
    place = int(np.argmax(alarms >= misses))  # at least 1: at 0, everything is rejected
    gap, before = alarms[place] - misses[place], misses[place - 1] - alarms[place - 1]
    share = before / (gap + before)
    cost = _TARGET_PRIOR * misses + (1 - _TARGET_PRIOR) * alarms
    return SpeakerReport(
        equal_error_rate=float(misses[place - 1] + share * (misses[place] - misses[place - 1])),
        min_cost=float(cost.min() / min(_TARGET_PRIOR, 1 - _TARGET_PRIOR)),
        threshold=float(cosine[last][place - 1]),
        targets=targets,
        others=others,
    )


def evaluate_run(
    checkpoint: Positional[Path],
    sets: tuple[str, ...],
    split: str = "test",
    trials: Path | None = None,
    data_dir: Path = Path("data"),
    out: Path | None = None,
    seconds_per_batch: float = 120.0,
) -> SpeakerReport:
    """Measures speaker verification on prepared data sets: equal error rate and minimum detection cost.

    Test speakers should differ from the training speakers, or the result is too optimistic.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      sets: names of prepared data sets; "name:split" selects another split than --split.
      split: "test", "dev" or "train".
      trials: lines "1 ID ID" for one speaker and "0 ID ID" for two, the format of VoxCeleb's lists, with the ids of the
        prepared rows; by default all pairs of recordings, of a random 4,000 if there are more.
      data_dir: folder of the prepared data sets.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>.
      seconds_per_batch: padded audio per batch, in seconds; affects memory and speed only.
    """
    run = LoadedRun.load(checkpoint, SpeakerVerification, "compare speakers")
    index = indexes.read_sets(data_dir, sets, split, run.experiment.sample_rate)
    speakers = np.array(index.column("speaker").to_pylist(), object)
    listed = None if trials is None else _listed(trials, index)
    vectors, has_vector = x_vectors(run, index, seconds_per_batch)
    usable = has_vector if trials else has_vector & (speakers != "")
    pairs = _all_pairs(speakers, usable) if listed is None else listed.among(usable)
    cosine = np.concatenate(
        [(vectors[one] * vectors[other]).sum(1) for one, other in _chunks(pairs.one, pairs.other)] or [np.zeros(0)]
    )
    compared = np.unique(np.concatenate([pairs.one, pairs.other]))
    try:
        report = score(cosine, pairs.is_target)
    except ValueError as error:
        raise DataError(f"{', '.join(sets)} {split}: {error}") from error
    report = report.replace(
        checkpoint=str(run.checkpoint),
        sets=sets,
        split=split,
        trials=str(trials or ""),
        speakers=len(set(speakers[compared])),
        recordings=len(compared),
        skipped=int((~usable).sum()),
        skipped_trials=0 if listed is None else len(listed.one) - len(pairs.one),
    )
    out = as_path(out or checkpoint / "eval" / f"{'+'.join(sets)}-{split}")
    save_report(report, out)
    console = Console(highlight=False)
    console.print(report.table())
    console.print(f"{run.checkpoint}; {out / 'report.json'}", soft_wrap=True)
    return report


def x_vectors(
    run: LoadedRun, index: indexes.Index, seconds_per_batch: float = 120.0
) -> tuple[Float[np.ndarray, "rows dim"], Bool[np.ndarray, " rows"]]:
    """Computes the x-vectors of all rows.

    Returns:
      Vectors of unit length, and which rows have one, because they have enough frames.
    """
    experiment, objective = run.experiment, run.experiment.objective
    compute = jax.jit(objective.vectors(experiment.model, experiment.frontend))
    vectors, has_vector = np.zeros((len(index), objective.head.dim), np.float32), np.zeros(len(index), bool)
    for batch in speech_batches(run, index, seconds_per_batch):
        real = batch["example_id"] >= 0
        found, frames = jax.device_get(compute(run.params, batch))
        vectors[batch["example_id"][real]] = found[real]
        has_vector[batch["example_id"][real]] = frames[real] >= objective.head.shortest
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), has_vector


def _all_pairs(speakers: np.ndarray, usable: Bool[np.ndarray, " rows"]) -> Pairs:
    rows = np.flatnonzero(usable)
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MOST_ROWS, replace=False))
    one, other = np.triu_indices(len(rows), 1)
    _, number = np.unique(speakers[rows].astype(str), return_inverse=True)
    return Pairs(rows[one], rows[other], number[one] == number[other])


def _listed(file: Path, index: indexes.Index) -> Pairs:
    if not file.is_file():
        raise DataError(f'{file} is not there: --trials names a file of lines "1 ID ID" and "0 ID ID"')
    row_of: dict[str, int] = {}
    for row, name in enumerate(index.column("id").to_pylist()):
        if row_of.setdefault(name, row) != row:
            raise DataError(f"two rows of the data sets have the id {name!r}, so {file} cannot say which is meant")
    found = []
    for number, line in text_lines(file):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise DataError(f'{file}, line {number}: {line[:80]!r} is not of the form "1 ID ID" or "0 ID ID"')
        missing = [name for name in fields[1:] if name not in row_of]
        if missing:
            raise DataError(f"{file}, line {number}: no row of the data sets has the id {missing[0]!r}")
        one, other = (row_of[name] for name in fields[1:])
        found.append((one, other, fields[0] == "1"))
    one, other, is_target = np.array(found, int).reshape(-1, 3).T
    return Pairs(one, other, is_target.astype(bool))


def _chunks(*arrays: np.ndarray, size: int = 1 << 14) -> list[tuple[np.ndarray, ...]]:
    """Splits arrays into chunks, to avoid a gathered copy of all vectors."""
    return [tuple(each[start : start + size] for each in arrays) for start in range(0, len(arrays[0]), size)]
