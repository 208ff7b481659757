"""Evaluates classifiers: accuracy, precision, recall and F1 per class, confusion matrix."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from data_pipelines.batching import packing
from data_pipelines.batching import plan as plans
from data_pipelines.batching.speech import open_batches
from data_pipelines.batching.text import open_text_batches
from data_pipelines.core.paths import AnyPath, as_path
from data_pipelines.storage import index as indexes
from data_pipelines.storage.frame_labels import FrameLabels
from data_pipelines.storage.tokens import open_tokens
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.evaluation.language import save_report
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.tasks.inputs import class_ids

_TOKENS_PER_BATCH = 8192
FRAME = "frame"
"""The `label` of a report on frames."""

_WIDEST_MATRIX = 20  # number of classes that fit on a terminal


class ClassScore(Config):
    """Precision, recall and F1 of one class; 0 where the denominator is 0."""

    precision: float
    recall: float
    f1: float
    rows: int


class ClassificationReport(Config):
    """The evaluation of one classifier.

    Attributes:
      checkpoint, sets, split: the run and its test data.
      label: the column that was predicted.
      accuracy: share of the rows with the correct class.
      precision, recall, f1: unweighted (macro) means over the classes.
      majority: accuracy of always predicting the most frequent class.
      skipped: rows without audio or text, or utterances without frame labels; excluded from all figures.
      classes: score per class, in the objective's order.
      confusion: counts; rows are true classes, columns predicted ones.
    """

    checkpoint: str = ""
    sets: tuple[str, ...] = ()
    split: str = ""
    label: str = ""
    accuracy: float
    precision: float
    recall: float
    f1: float
    majority: float
    skipped: int = 0
    classes: dict[str, ClassScore]
    confusion: tuple[tuple[int, ...], ...]

    def tables(self) -> Iterator[Table]:
        """Yields the table of scores, then the confusion matrix unless it is too wide for a terminal."""
        table = Table(title=f"{', '.join(self.sets)} {self.split}", title_justify="left")
        for column in (self.label, "precision", "recall", "F1", "rows"):
            table.add_column(column, justify="left" if column == self.label else "right")
        for name, each in self.classes.items():
            table.add_row(escape(name), *(f"{x:.1%}" for x in (each.precision, each.recall, each.f1)), f"{each.rows:,}")
        table.add_section()
        rows = sum(each.rows for each in self.classes.values())
        table.add_row("mean of classes", *(f"{x:.1%}" for x in (self.precision, self.recall, self.f1)), f"{rows:,}")
        table.add_row("accuracy", f"{self.accuracy:.1%}", "", "", "")
        table.add_row("most frequent class", f"{self.majority:.1%}", "", "", "")
        if self.skipped:
            what = "utterances without labels" if self.label == FRAME else "empty, skipped"
            table.add_row(what, "", "", "", f"{self.skipped:,}")
        yield table
        if len(self.classes) <= _WIDEST_MATRIX:
            matrix = Table("true, by predicted")
            for name in self.classes:
                matrix.add_column(escape(name), justify="right")
            for name, counts in zip(self.classes, self.confusion, strict=True):
                matrix.add_row(escape(name), *(f"{count:,}" for count in counts))
            yield matrix


def score(
    true: Int[np.ndarray, " rows"], predicted: Int[np.ndarray, " rows"], classes: Sequence[str]
) -> ClassificationReport:
    """Compares predicted with true classes, row by row.

    Args:
      true, predicted: class ids from 0; rows with a prediction of -1 are skipped.

    Raises:
      ValueError: no rows are left.
    """
    skipped = int((predicted < 0).sum())
    true, predicted = true[predicted >= 0], predicted[predicted >= 0]
    if not len(true):
        raise ValueError("there is nothing to evaluate: the data set has no rows with any audio or text")
    count = len(classes)
    confusion = np.bincount(true * count + predicted, minlength=count * count).reshape(count, count)
    hits, actual, guessed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)

    def divide(a, b):
        return np.divide(a, b, out=np.zeros(count), where=b > 0)

    precision, recall, f1 = divide(hits, guessed), divide(hits, actual), divide(2 * hits, actual + guessed)
    return ClassificationReport(
        accuracy=float(hits.sum() / len(true)),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
        majority=float(actual.max() / len(true)),
        skipped=skipped,
        classes={
            name: ClassScore(precision=p, recall=r, f1=f, rows=n)
            for name, p, r, f, n in zip(
                classes, precision.tolist(), recall.tolist(), f1.tolist(), actual.tolist(), strict=True
            )
        },
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def evaluate_run(
    checkpoint: Positional[Path],
    sets: tuple[str, ...],
    split: str = "test",
    data_dir: Path = Path("data"),
    out: Path | None = None,
    seconds_per_batch: float = 120.0,
) -> ClassificationReport:
    """Measures a classifier on prepared data sets: accuracy, precision, recall, F1 and the confusion matrix.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      sets: names of prepared data sets; "name:split" selects another split than --split.
      split: "test", "dev" or "train".
      data_dir: folder of the prepared data sets.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>.
      seconds_per_batch: padded audio per batch, in seconds; affects memory and speed only.
    """
    run = LoadedRun.load(checkpoint, Classification, "classify")
    objective, label = run.experiment.objective, run.experiment.data.label
    is_text = isinstance(run.experiment.model, TransformerConfig)
    index = indexes.read_sets(data_dir, sets, split, None if is_text else run.experiment.sample_rate)
    actual = class_ids(index.column(label).to_pylist(), objective.classes)
    batches = text_batches(run, index) if is_text else speech_batches(run, index, seconds_per_batch)
    report = score(actual, predict(run, batches, len(index)), objective.classes)
    report = report.replace(checkpoint=str(run.checkpoint), sets=sets, split=split, label=label)
    publish(report, as_path(out or checkpoint / "eval" / f"{'+'.join(sets)}-{split}"))
    return report


def publish(report: ClassificationReport, out: AnyPath) -> None:
    """Writes a report into a folder and prints it."""
    save_report(report, out)
    console = Console(highlight=False)
    for table in report.tables():
        console.print(table)
    console.print(f"{report.checkpoint}; {out / 'report.json'}", soft_wrap=True)


def predict(run: LoadedRun, batches: Iterator[Batch], num_rows: int) -> Int[np.ndarray, " rows"]:
    """Predicts the class id of every row, indexed by `example_id`; -1 for rows in no batch."""
    tokenizer = run.tokenizer if isinstance(run.experiment.model, TransformerConfig) else None
    _, class_logits, _ = run.experiment.objective.classifier(run.experiment.model, run.experiment.frontend, tokenizer)
    best = jax.jit(lambda params, batch: jnp.argmax(class_logits(params, batch, None), axis=-1))
    predicted = np.full(num_rows, -1)
    for batch in batches:
        real = batch["example_id"] >= 0
        predicted[batch["example_id"][real]] = np.asarray(best(run.params, batch))[real]
    return predicted


def speech_batches(
    run: LoadedRun, index: indexes.Index, seconds_per_batch: float, codes: FrameLabels | None = None
) -> Iterator[Batch]:
    """Reads every utterance of an index once, with the classes of the frames (`codes`) if given."""
    frame_samples = run.experiment.frame_samples
    shape = {"seconds_per_batch": seconds_per_batch, "frame_samples": frame_samples, "batch_multiple": 1}
    shape["sample_rate"] = index.sample_rate
    plan = plans.make_eval_plan(index.num_samples, **shape)
    return open_batches(index, plan, num_steps=plan.steps_per_epoch, frame_labels=codes)


def text_batches(run: LoadedRun, index: indexes.Index) -> Iterator[Batch]:
    """Reads every non-empty text of an index once, truncated to the model's context."""
    tokens, context = open_tokens(index, run.tokenizer), run.experiment.data.context
    rows = max(1, _TOKENS_PER_BATCH // context)
    plan = packing.make_text_eval_plan(tokens.lengths, context=context, sequences_per_batch=rows, is_packed=False)
    boundary = Vocabulary.of(run.tokenizer).boundary
    return open_text_batches(tokens, plan, boundary=boundary, begin=run.tokenizer.begin, num_steps=plan.steps_per_epoch)
