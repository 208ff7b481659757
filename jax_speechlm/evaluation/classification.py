"""Evaluates classifiers: accuracy, precision, recall and F1 per class, confusion matrix."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from rich.markup import escape
from rich.table import Table

from data_pipelines.storage import index as indexes
from data_pipelines.storage.tokens import open_tokens
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.batches import speech_batches, text_batches
from jax_speechlm.inference.predictor import rows_by_id
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.tasks.inputs import class_ids
from jax_speechlm.training.runs import LoadedRun

FRAME = "frame"
"""The `label` of a report on frames."""

_WIDEST_MATRIX = 20  # number of classes that fit on a terminal


class ClassScore(Config):
    """Precision, recall and F1 of one class; 0 where the denominator is 0."""

    precision: float
    recall: float
    f1: float
    rows: int


class ClassificationReport(base.SetReport):
    """The evaluation of one classifier.

    Attributes:
      label: the column that was predicted.
      accuracy: share of the rows with the correct class.
      precision, recall, f1: unweighted (macro) means over the classes.
      majority: accuracy of always predicting the most frequent class.
      skipped: rows without audio or text, or utterances without frame labels; excluded from all figures.
      classes: score per class, in the objective's order.
      confusion: counts; rows are true classes, columns predicted ones.
    """

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
        table = base.new_table(self.label, "precision", "recall", "F1", "rows", title=self.title)
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
            matrix = base.new_table("true, by predicted", *self.classes)
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
    from sklearn import metrics  # slow import

    labels = range(len(classes))
    confusion = metrics.confusion_matrix(true, predicted, labels=labels)
    figures = metrics.precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    precision, recall, f1, actual = figures
    return ClassificationReport(
        accuracy=float(confusion.trace() / len(true)),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
        majority=float(actual.max() / len(true)),
        skipped=skipped,
        classes={
            name: ClassScore(precision=p, recall=r, f1=f, rows=n)
            for name, p, r, f, n in zip(classes, *(figure.tolist() for figure in figures), strict=True)
        },
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    data_dir: base.DataDir = Path("data"),
    out: base.Out = None,
    seconds_per_batch: base.BatchSeconds = 120.0,
) -> ClassificationReport:
    """Measures a classifier on prepared data sets: accuracy, precision, recall, F1 and the confusion matrix."""
    run = LoadedRun.load(checkpoint, Classification, "classify")
    objective, label = run.experiment.objective, run.experiment.data.label
    is_text = isinstance(run.experiment.model, TransformerConfig)
    index = indexes.read_sets(data_dir, sets, split, None if is_text else run.experiment.sample_rate)
    actual = class_ids(index.column(label).to_pylist(), objective.classes)
    if is_text:
        batches = text_batches(run, open_tokens(index, run.tokenizer), is_packed=False)
    else:
        batches = speech_batches(index, run.experiment.frame_samples, seconds_per_batch)
    report = score(actual, predict(run, batches, len(index)), objective.classes)
    report = report.replace(checkpoint=str(run.checkpoint), sets=sets, split=split, label=label)
    return report.publish(out or base.report_folder(checkpoint, sets, split), report.checkpoint)


def predict(run: LoadedRun, batches: Iterator[Batch], num_rows: int) -> Int[np.ndarray, " rows"]:
    """Predicts the class id of every row, indexed by `example_id`; -1 for rows in no batch."""
    tokenizer = run.tokenizer if isinstance(run.experiment.model, TransformerConfig) else None
    class_logits = run.experiment.objective.classifier(run.experiment.model, run.experiment.frontend, tokenizer)
    best = jax.jit(lambda params, batch: (jnp.argmax(class_logits(params, batch, None), axis=-1),))
    rows = rows_by_id(functools.partial(best, run.params), batches)
    return np.array([rows[row][0] if row in rows else -1 for row in range(num_rows)])
