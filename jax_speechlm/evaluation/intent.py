"""Evaluates spoken commands: accuracy of intents, F1 of slots, and commands that are right as a whole."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
from jaxtyping import Int
from rich.markup import escape
from rich.table import Table
from tyro.conf import arg

from data_pipelines.batching.noise import NoiseReader
from data_pipelines.core.commands import read_slots
from data_pipelines.storage import index as indexes
from data_pipelines.storage.index import Index
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.evaluation.batches import item_ids, speech_batches
from jax_speechlm.evaluation.noise import noisy
from jax_speechlm.evaluation.resampling import Interval
from jax_speechlm.inference.intent import Command, CommandClassifier

CLEAN = "clean"

NoiseSet = Annotated[
    str | None, arg(help='prepared set of noise to test with at each --snr too; "name:split" selects a split.')
]
Ratios = Annotated[tuple[float, ...], arg(help="signal-to-noise ratios in dB.")]


class CommandScore(Config):
    """Measures of commands in one condition, each with its 95 % interval.

    Attributes:
      condition: "clean", or the signal-to-noise ratio.
      intent: share of the utterances with the right intent; of one intent alone, that are not rejected.
      f1: of the slots' values, over all utterances: harmonic mean of the shares of the predicted values that are right
        and of the actual ones that are found. The interval is by bootstrap over utterances.
      exact: share of the utterances with the right intent and all slots right, no more and no fewer. The intervals of
        shares are Wilson's (1927).
      rejected: share of the utterances without a predicted intent.
      by_slot: F1 by slot.
      items: by utterance.

    With many speakers all intervals are by bootstrap over speakers. Those of F1 are None for few utterances.
    """

    condition: str
    utterances: int
    intent: float
    intent_interval: Interval | None
    f1: float
    f1_interval: Interval | None
    exact: float
    exact_interval: Interval | None
    rejected: float
    rejected_interval: Interval | None = None
    by_slot: dict[str, float]
    by_slot_intervals: dict[str, Interval | None] = pydantic.Field(default_factory=dict)
    items: tuple[base.Item, ...] = ()


class CommandReport(base.SetReport):
    """The evaluation of a method on spoken commands.

    Attributes:
      method: description of the method.
      intents: number of intents in the data.
      scores: one for each condition.
      noise_set: of the noisy conditions.
    """

    method: str = ""
    intents: int = 0
    noise_set: str = ""
    scores: tuple[CommandScore, ...]

    def measures(self) -> dict[str, base.Measure]:
        """Returns the accuracy of intents, F1 of slots, and share of commands right as a whole, in each condition."""
        return {
            f"{name}, {score.condition}": base.Measure.of_items(score.items, name)
            for score in self.scores
            for name in (score.items[0].sums if score.items else ())
        }

    def tables(self) -> Iterator[Table]:
        """Yields a table with a row per condition, and one of the slots."""
        noise = f", noise of {self.noise_set}" if self.noise_set else ""
        title = f"{self.title}: {self.scores[0].utterances:,} commands, {self.intents} intent(s){noise}"
        table = base.new_table("", "intent", "slot F1", "all right", "rejected", title=title)
        for each in self.scores:
            pairs = ((each.intent, each.intent_interval), (each.f1, each.f1_interval))
            pairs += ((each.exact, each.exact_interval), (each.rejected, each.rejected_interval))
            table.add_row(each.condition, *(base.percent(*pair) for pair in pairs))
        yield table
        slots = base.new_table("slot F1", *(each.condition for each in self.scores))
        for name in self.scores[0].by_slot:
            cells = (base.percent(each.by_slot[name], each.by_slot_intervals.get(name)) for each in self.scores)
            slots.add_row(escape(name), *cells)
        yield slots


def commands_of(index: Index) -> list[Command]:
    """Returns the commands that the rows of an index are labelled with."""
    columns = (index.column(name).to_pylist() for name in ("intent", "slots"))
    return [Command(intent, read_slots(slots), 1.0) for intent, slots in zip(*columns, strict=True)]


def score_commands(
    actual: Sequence[Command],
    predicted: Sequence[Command],
    condition: str = CLEAN,
    ids: Sequence[str] = (),
    speakers: Sequence[str] = (),
) -> CommandScore:
    """Compares predicted with actual commands, row by row.

    Args:
      ids, speakers: of the utterances; by default they are numbered, of unknown speakers.

    Raises:
      ValueError: there are none.
    """
    if not actual:
        raise ValueError("there is nothing to evaluate: the data set has no commands")
    pairs = list(zip(actual, predicted, strict=True))
    right = [sum(each.slots.get(name) == value for name, value in true.slots.items()) for true, each in pairs]
    sizes = [len(true.slots) + len(each.slots) for true, each in pairs]
    intent = [true.intent == each.intent for true, each in pairs]
    exact = [true[:2] == each[:2] for true, each in pairs]
    rejected = [each.intent is None for _, each in pairs]
    ids, speakers = ids or [str(row) for row in range(len(pairs))], speakers or [""] * len(pairs)
    units = resampling.units_of(speakers)
    names = sorted({name for true in actual for name in true.slots})
    of_slots = {name: _slot_terms(pairs, name) for name in names}
    return CommandScore(
        condition=condition,
        utterances=len(pairs),
        intent=float(np.mean(intent)),
        intent_interval=resampling.share_interval(intent, units),
        f1=2 * sum(right) / max(sum(sizes), 1),
        f1_interval=resampling.bootstrap([2 * np.array(right), np.array(sizes)], unit_of_row=units),
        exact=float(np.mean(exact)),
        exact_interval=resampling.share_interval(exact, units),
        rejected=float(np.mean(rejected)),
        rejected_interval=resampling.share_interval(rejected, units),
        by_slot={name: float(each.sum(1)[0] / max(each.sum(1)[1], 1)) for name, each in of_slots.items()},
        by_slot_intervals={name: resampling.bootstrap(each, unit_of_row=units) for name, each in of_slots.items()},
        items=tuple(
            base.Item(
                id=ids[row],
                speaker=speakers[row] or "",
                reference=f"{true.intent} {sorted(true.slots.items())}",
                sums={
                    "intent": (intent[row], 1),
                    "slot F1": (2 * right[row], sizes[row]),
                    "all right": (exact[row], 1),
                },
            )
            for row, (true, _) in enumerate(pairs)
        ),
    )


def _slot_terms(pairs: Sequence[tuple[Command, Command]], name: str) -> Int[np.ndarray, "2 utterances"]:
    """Returns, of one slot, twice the right values and the values in reference and prediction: the terms of its F1."""
    values = [(true.slots.get(name), each.slots.get(name)) for true, each in pairs]
    right = [2 * (true == each is not None) for true, each in values]
    return np.array([right, [sum(value is not None for value in pair) for pair in values]])


def in_conditions(
    predict: Callable[[Iterable[Batch]], dict[int, Command]],
    index: Index,
    frame_samples: int,
    *,
    noise_set: str | None,
    snr: Sequence[float],
    data_dir: Path,
    seconds_per_batch: float,
) -> tuple[CommandScore, ...]:
    """Scores a method on the rows of an index, clean and, with a noise set, at each signal-to-noise ratio in dB.

    Args:
      predict: returns the commands of the rows of batches by `example_id`; rows that are missing are no command.
    """
    actual, conditions = commands_of(index), {CLEAN: None}
    ids, speakers = item_ids(index), index.column("speaker").to_pylist()
    if noise_set is not None:
        noise = NoiseReader(indexes.read_sets(data_dir, (noise_set,), "train", index.sample_rate), seed=0)
        conditions |= {f"{ratio:g} dB": ratio for ratio in sorted(snr, reverse=True)}
    scores = []
    for name, ratio in conditions.items():
        batches = speech_batches(index, frame_samples, seconds_per_batch)
        found = predict(batches if ratio is None else noisy(batches, noise, ratio))
        rows = [found.get(row, Command(None, {}, 0.0)) for row in range(len(index))]
        scores.append(score_commands(actual, rows, name, ids, speakers))
    return tuple(scores)


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    data_dir: base.DataDir = Path("data"),
    out: base.Out = None,
    seconds_per_batch: base.BatchSeconds = 120.0,
    noise_set: NoiseSet = None,
    snr: Ratios = (20.0, 10.0, 5.0, 0.0),
) -> CommandReport:
    """Measures intent and slots on prepared data sets: accuracy of intents, F1 of slots, commands right as a whole."""
    classifier = CommandClassifier.load(checkpoint)
    experiment = classifier.run.experiment
    index = indexes.read_sets(data_dir, sets, split, experiment.sample_rate)
    conditions = {"noise_set": noise_set, "snr": snr, "data_dir": data_dir, "seconds_per_batch": seconds_per_batch}
    report = CommandReport(
        checkpoint=str(classifier.run.checkpoint),
        sets=sets,
        split=split,
        method="intent",
        intents=len(experiment.objective.intents),
        noise_set=noise_set or "",
        scores=in_conditions(classifier.of_batches, index, experiment.frame_samples, **conditions),
    )
    return report.publish(out or base.report_folder(checkpoint, sets, split), report.checkpoint)
