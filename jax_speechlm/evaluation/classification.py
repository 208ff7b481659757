"""Evaluates classifiers: accuracy, precision, recall and F1 per class, confusion matrix."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from rich.markup import escape
from rich.table import Table

from data_pipelines.storage import index as indexes
from data_pipelines.storage.tokens import open_tokens
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.evaluation.batches import item_ids, speech_batches, text_batches
from jax_speechlm.evaluation.resampling import Interval
from jax_speechlm.inference.predictor import rows_by_id
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.tasks.inputs import class_ids
from jax_speechlm.training.runs import LoadedRun

FRAME = "frame"
"""The `label` of a report on frames."""

_FIGURES = "precision", "recall", "f1"
_WIDEST_MATRIX = 20  # number of classes that fit on a terminal


class Figures(Config):
    """Precision, recall and F1; 0 where the denominator is 0.

    Attributes:
      precision_interval, recall_interval, f1_interval: 95 % intervals, by bootstrap over speakers where there are many,
        else over utterances or texts; None for few.
    """

    precision: float
    precision_interval: Interval | None = None
    recall: float
    recall_interval: Interval | None = None
    f1: float
    f1_interval: Interval | None = None

    def cells(self) -> list[str]:
        """Formats the figures with their intervals."""
        return [base.percent(getattr(self, name), getattr(self, f"{name}_interval")) for name in _FIGURES]


class ClassScore(Figures):
    """The figures of one class; their intervals are of the resamples that have the class.

    Attributes:
      rows: with this class.
    """

    rows: int


class ClassifiedItem(Config):
    """An utterance or text: how many of its rows of each class are classified as which; one row, or its frames.

    Attributes:
      counts: true class, predicted class, rows.
    """

    id: str
    speaker: str = ""
    counts: tuple[tuple[int, int, int], ...]


class ClassificationReport(Figures, base.SetReport):
    """The evaluation of one classifier.

    Attributes:
      label: the column that was predicted.
      accuracy: share of the rows with the correct class.
      accuracy_interval: 95 % interval: Wilson's (1927) of independent rows, else as of the other figures.
      precision, recall, f1: unweighted (macro) means over the classes.
      majority: accuracy of always predicting the most frequent class.
      skipped: rows without audio or text, or utterances without frame labels; excluded from all figures.
      classes: score per class, in the objective's order.
      confusion: counts; rows are true classes, columns predicted ones.
      items: by utterance or text.
    """

    label: str = ""
    accuracy: float
    accuracy_interval: Interval | None = None
    majority: float
    skipped: int = 0
    classes: dict[str, ClassScore]
    confusion: tuple[tuple[int, ...], ...]
    items: tuple[ClassifiedItem, ...] = ()

    def measures(self) -> dict[str, base.Measure]:
        """Returns the accuracy and the mean F1 of the classes."""
        if not self.items:
            return {}
        terms = np.stack([_terms(item.counts, len(self.classes)) for item in self.items])
        references = []
        for item in self.items:
            rows: Counter[int] = Counter()
            for true, _, count in item.counts:
                rows[true] += count
            references.append(", ".join(f"{list(self.classes)[true]} {count}" for true, count in sorted(rows.items())))
        about = [item.id for item in self.items], references, [item.speaker for item in self.items]
        tested = terms.sum(0).reshape(-1, 3)[:, 2] > 0
        setting = f"the classes {', '.join(self.classes)}"
        return {
            "accuracy": base.Measure(*about, terms, _accuracy, setting=setting),
            "F1": base.Measure(*about, terms, lambda sums: _macro(_per_class(sums, tested)[2]), setting=setting),
        }

    def tables(self) -> Iterator[Table]:
        """Yields the table of scores, then the confusion matrix unless it is too wide for a terminal."""
        table = base.new_table(self.label, "precision", "recall", "F1", "rows", title=self.title)
        for name, each in self.classes.items():
            table.add_row(escape(name), *each.cells(), f"{each.rows:,}")
        table.add_section()
        rows = sum(each.rows for each in self.classes.values())
        table.add_row("mean of classes", *self.cells(), f"{rows:,}")
        table.add_row("accuracy", base.percent(self.accuracy, self.accuracy_interval), "", "", "")
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
    true: Int[np.ndarray, " rows"],
    predicted: Int[np.ndarray, " rows"],
    classes: Sequence[str],
    item_of_row: Int[np.ndarray, " rows"] | None = None,
    *,
    ids: Sequence[str] = (),
    speakers: Sequence[str | None] = (),
) -> ClassificationReport:
    """Compares predicted with true classes, row by row.

    Args:
      true, predicted: class ids from 0; rows with a prediction of -1 are skipped.
      item_of_row: number of the utterance that a row is a frame of; by default each row is an item.
      ids, speakers: of the items; by default they are numbered, of unknown speakers.

    Raises:
      ValueError: no rows are left.
    """
    known = predicted >= 0
    item_of_row = (np.arange(len(true)) if item_of_row is None else item_of_row)[known]
    skipped, true, predicted = int((~known).sum()), true[known], predicted[known]
    if not len(true):
        raise ValueError("there is nothing to evaluate: the data set has no rows with any audio or text")
    from sklearn import metrics  # slow import

    labels = range(len(classes))
    confusion = metrics.confusion_matrix(true, predicted, labels=labels)
    figures = metrics.precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    precision, recall, f1, actual = figures
    items = _items(true, predicted, item_of_row, ids, speakers)
    units = resampling.units_of([item.speaker for item in items])
    terms = np.stack([_terms(item.counts, len(classes)) for item in items])
    bounds = _intervals(terms, units, actual > 0)
    if len(items) == len(true):
        right = [item.counts[0][0] == item.counts[0][1] for item in items]
        bounds["accuracy"] = resampling.share_interval(right, units)
    return ClassificationReport(
        accuracy=float(confusion.trace() / len(true)),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
        **{f"{name}_interval": each for name, each in bounds.items() if isinstance(name, str)},
        majority=float(actual.max() / len(true)),
        skipped=skipped,
        classes={
            name: ClassScore(
                precision=p,
                recall=r,
                f1=f,
                rows=n,
                **{f"{figure}_interval": bounds.get((figure, number)) for figure in _FIGURES},
            )
            for number, (name, p, r, f, n) in enumerate(
                zip(classes, *(figure.tolist() for figure in figures), strict=True)
            )
        },
        confusion=tuple(map(tuple, confusion.tolist())),
        items=items,
    )


def _items(true, predicted, item_of_row, ids: Sequence[str], speakers: Sequence[str | None]):
    """Counts the rows of every item by true and predicted class."""
    triples, counts = np.unique(np.stack([item_of_row, true, predicted]), axis=1, return_counts=True)
    of_items: dict[int, list[tuple[int, int, int]]] = {}
    for (item, *pair), count in zip(triples.T.tolist(), counts.tolist(), strict=True):
        of_items.setdefault(item, []).append((*pair, count))
    return tuple(
        ClassifiedItem(
            id=ids[item] if ids else str(item), speaker=(speakers[item] or "") if speakers else "", counts=each
        )
        for item, each in of_items.items()
    )


def _terms(counts: Sequence[tuple[int, int, int]], num_classes: int) -> Float[np.ndarray, " terms"]:
    """Returns of every class the hits, the predicted and the true rows, one class after the other."""
    terms = np.zeros((num_classes, 3))
    for true, predicted, count in counts:
        terms[true, 0] += count * (true == predicted)
        terms[predicted, 1] += count
        terms[true, 2] += count
    return terms.reshape(-1)


def _accuracy(sums: Float[np.ndarray, "terms resamples"]) -> Float[np.ndarray, " resamples"]:
    return resampling.ratio(np.stack([sums[0::3].sum(0), sums[2::3].sum(0)]))


def _per_class(
    sums: Float[np.ndarray, "terms resamples"], tested: Bool[np.ndarray, " classes"]
) -> list[Float[np.ndarray, "classes resamples"]]:
    """Computes precision, recall and F1 of every class; NaN of classes that only the resample lacks."""
    hits, predicted, true = (sums[first::3] for first in range(3))
    figures = hits / np.maximum(predicted, 1), hits / np.maximum(true, 1), 2 * hits / np.maximum(predicted + true, 1)
    return [np.where((true > 0) | ~tested[:, None], figure, np.nan) for figure in figures]


def _macro(figure: Float[np.ndarray, "classes resamples"]) -> Float[np.ndarray, " resamples"]:
    return np.nanmean(figure, axis=0)


def _intervals(
    terms: Float[np.ndarray, "items terms"], units: Int[np.ndarray, " items"], tested: Bool[np.ndarray, " classes"]
) -> dict[Any, Interval | None]:
    """Computes the intervals of accuracy and of the figures' means by name, and of a class by (figure, class)."""
    by_unit = resampling.by_unit(terms.T, units)
    if by_unit.shape[1] < resampling.MIN_UTTERANCES:
        return {}
    sums = resampling.resampled_sums(by_unit, resampling.RESAMPLES // 10, 0)
    bounds: dict[Any, Interval | None] = {"accuracy": resampling.interval(_accuracy(sums))}
    for name, figure in zip(_FIGURES, _per_class(sums, tested), strict=True):
        bounds[name] = resampling.interval(_macro(figure))
        for number, of_class in enumerate(figure):
            if tested[number]:
                bounds[name, number] = resampling.interval(of_class[~np.isnan(of_class)])
    return bounds


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
    about = {"ids": item_ids(index), "speakers": () if is_text else index.column("speaker").to_pylist()}
    report = score(actual, predict(run, batches, len(index)), objective.classes, **about)
    report = report.replace(checkpoint=str(run.checkpoint), sets=sets, split=split, label=label)
    return report.publish(out or base.report_folder(checkpoint, sets, split), report.checkpoint)


def predict(run: LoadedRun, batches: Iterator[Batch], num_rows: int) -> Int[np.ndarray, " rows"]:
    """Predicts the class id of every row, indexed by `example_id`; -1 for rows in no batch."""
    tokenizer = run.tokenizer if isinstance(run.experiment.model, TransformerConfig) else None
    class_logits = run.experiment.objective.classifier(run.experiment.model, run.experiment.frontend, tokenizer)
    best = jax.jit(lambda params, batch: (jnp.argmax(class_logits(params, batch, None), axis=-1),))
    rows = rows_by_id(functools.partial(best, run.params), batches)
    return np.array([rows[row][0] if row in rows else -1 for row in range(num_rows)])
