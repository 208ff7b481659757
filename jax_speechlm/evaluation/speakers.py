"""Speaker verification measured: x-vectors of two recordings, and whether the same person speaks in both."""

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

_MOST_ROWS = 4000  # whose pairs are all looked at: eight million
_TARGET_PRIOR = 0.01  # of the detection cost, as papers on VoxCeleb have it


class SpeakerReport(Config):
    """How well a model tells whether two recordings are of one speaker.

    Attributes:
      checkpoint, sets, split: what was evaluated, and on what.
      trials: the file that named the pairs; "" for all pairs.
      equal_error_rate: at the threshold where as many pairs of one speaker are missed, in share, as others are taken
        for one.
      min_cost: the least detection cost over all thresholds, at a prior of 0.01 and with equal costs; 1 is what saying
        no to every pair costs.
      threshold: the cosine at the equal error rate.
      speakers, recordings: that are compared.
      targets, others: pairs of one speaker, and of two.
      skipped: recordings too short for a vector, or, where all pairs are compared, without a speaker.
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
        """What to print."""
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
    """Rows to compare, and whether one speaker is heard in both."""

    one: Int[np.ndarray, " pairs"]
    other: Int[np.ndarray, " pairs"]
    is_target: Bool[np.ndarray, " pairs"]

    def among(self, usable: Bool[np.ndarray, " rows"]) -> "Pairs":
        """The pairs of which both rows are usable."""
        kept = usable[self.one] & usable[self.other]
        return Pairs(self.one[kept], self.other[kept], self.is_target[kept])


def score(cosine: Float[np.ndarray, " pairs"], is_target: Bool[np.ndarray, " pairs"]) -> SpeakerReport:
    """Error rates over all thresholds.

    Raises:
      ValueError: there is no pair of one speaker, or none of two.
    """
    targets, others = int(is_target.sum()), int((~is_target).sum())
    if not targets or not others:
        raise ValueError(f"{targets} pairs of one speaker and {others} of two: there must be some of both")
    order = np.argsort(-cosine, kind="stable")
    cosine, is_target = cosine[order], is_target[order]
    last = np.r_[cosine[1:] != cosine[:-1], True]  # a threshold takes all pairs that are as alike
    misses = 1 - np.r_[0, np.cumsum(is_target)[last]] / targets
    alarms = np.r_[0, np.cumsum(~is_target)[last]] / others
    place = int(np.argmax(alarms >= misses))  # at least 1: nothing accepted is no alarm and all misses
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
    """Measures speaker verification on prepared data sets: equal error rate and least detection cost.

    The speakers need not be those of the training data, and to say anything they should not be.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      sets: names of prepared data sets; "name:split" takes another split than --split.
      split: "test", "dev" or "train".
      trials: lines "1 ID ID" for one speaker and "0 ID ID" for two, as VoxCeleb's lists have them, with the ids of
        the prepared rows; by default every pair of recordings, of at most 4,000 that are drawn if there are more.
      data_dir: folder of the prepared data sets.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>.
      seconds_per_batch: padded audio at a time: memory and speed, never the result.
    """
    run = LoadedRun.load(checkpoint, SpeakerVerification, "compare speakers")
    index = indexes.read_sets(data_dir, sets, split)
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
    """Every row's x-vector at unit length, and which rows have one: those of enough frames."""
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
    """Arrays cut alike, so that no gathered copy of all vectors is held."""
    return [tuple(each[start : start + size] for each in arrays) for start in range(0, len(arrays[0]), size)]
