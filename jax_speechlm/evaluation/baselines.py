"""Classical baselines: MFCCs with an SVM, nearest neighbours or trees, beside pretrained encoders, in one table."""

import functools
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pydantic
from jaxtyping import Bool, Float, Shaped
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path
from data_pipelines.storage import index as indexes
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.evaluation.batches import speech_batches
from jax_speechlm.evaluation.probing import Fold, check_folds, majority_accuracy
from jax_speechlm.evaluation.resampling import wilson_interval
from jax_speechlm.frontend.utterance_vectors import VectorKind, utterance_vectors
from jax_speechlm.inference.classical import SAMPLE_RATE, save
from jax_speechlm.inference.embed import SpeechEncoder
from jax_speechlm.inference.predictor import rows_by_id
from jax_speechlm.models.classical.classifiers import ClassifierName, make_classifier

FRAME_SAMPLES = SAMPLE_RATE // 100

Vectors = Float[np.ndarray, "rows dim"]


class Baseline(Config):
    """One classifier of one kind of vectors.

    Attributes:
      vectors: "statistics" or "sequence" of MFCCs, or a run, whose hidden states of all layers are averaged over time.
      classifier: the classifier.
      accuracy: share of the test utterances classified correctly, over all folds.
      interval: 95 % interval: over the values of the column that is left out (bootstrap), or over utterances (Wilson).
      by_group: accuracy by value of the column that is left out.
    """

    vectors: str
    classifier: ClassifierName
    accuracy: float
    interval: tuple[float, float]
    by_group: dict[str, float] = pydantic.Field(default_factory=dict)


class BaselineReport(base.Report):
    """Classifiers of utterances for one label.

    Attributes:
      sets, target: the data, and the column that is predicted.
      folds: "train -> test", or "leave one <column> out".
      classes, utterances: number of classes, and of test utterances; each is tested once.
      majority: accuracy of the most frequent class in a fold's training part.
      baselines: the table's rows.
    """

    sets: tuple[str, ...] = ()
    target: str
    folds: str = ""
    classes: int
    utterances: int
    majority: float
    baselines: tuple[Baseline, ...]

    def tables(self) -> Iterator[Table]:
        """Yields a table with a row per kind of vectors and a column per classifier."""
        names = list(dict.fromkeys(each.classifier for each in self.baselines))
        title = f"{self.target}: {self.classes} classes, {self.utterances:,} utterances, {self.folds}"
        grouped = any(each.by_group for each in self.baselines)
        caption = f"most frequent class: {self.majority:.1%}; 95 % intervals over "
        caption += self.folds.split()[2] + "s" if grouped else "utterances"
        table = base.new_table("vectors", *names, left=1, title=title, caption=caption, caption_justify="left")
        cells = {(each.vectors, each.classifier): base.percent(each.accuracy, each.interval) for each in self.baselines}
        for vectors in dict.fromkeys(each.vectors for each in self.baselines):
            table.add_row(escape(vectors), *(cells.get((vectors, name), "") for name in names))
        yield table


def baseline(
    sets: base.Sets,
    target: str = "text",
    test_split: str = "test",
    leave_out: str | None = None,
    classifiers: tuple[ClassifierName, ...] = get_args(ClassifierName),
    vectors: tuple[VectorKind, ...] = get_args(VectorKind),
    runs: tuple[Path, ...] = (),
    data_dir: base.DataDir = Path("data"),
    out: Path = Path("baselines"),
    seed: int = 0,
    seconds_per_batch: base.BatchSeconds = 120.0,
) -> BaselineReport:
    """Trains and tests classifiers of MFCCs on prepared sets, beside pretrained encoders: one table.

    Settings are fixed, so that nothing is tuned on the test data. Writes report.json, and for each kind of MFCC vectors
    and classifier a folder VECTORS-CLASSIFIER that `jax-speechlm classify` takes, trained on all splits but the test
    split, or on everything with --leave-out.

    Args:
      target: column of the index to predict: text (digits, commands), speaker, language or another label.
      test_split: the classifiers are trained on "train" and tested on this split.
      leave_out: column, such as speaker, for cross-validation over all splits: each value is tested by a classifier
        trained on all others, and intervals are over its values.
      classifiers: svm, logistic regression, knn (3 neighbours), forest (300 trees) and tree.
      vectors: statistics (mean and deviation over time) and sequence (20 points in time) of MFCCs.
      runs: runs with a speech encoder, whose hidden states of all layers, averaged over time, are further vectors.
      out: folder of the report and the classifiers.
      seed: of the forest and the tree.
    """
    if not classifiers or not (vectors or runs):
        raise DataError("there is nothing to train: name --classifiers, and --vectors or --runs")
    folders = [data_dir / name.partition(":")[0] for name in sets]
    names = ["train", test_split]
    if leave_out is not None:
        names = [name for name in ("train", "dev", "test") if all(name in indexes.splits_of(path) for path in folders)]
    sources = _sources(vectors, runs)
    splits = {
        rate: [indexes.read_sets(data_dir, sets, name, rate) for name in names] for rate, _, _ in sources.values()
    }
    (first, *_) = splits.values()
    labels, groups = (_column(first, name) for name in (target, leave_out or target))
    if leave_out is None:
        folds = [(np.arange(len(first[0])), np.arange(len(first[0]), len(labels)))]
    else:
        folds = [(np.flatnonzero(groups != group), np.flatnonzero(groups == group)) for group in np.unique(groups)]
    check_folds(labels, folds, target)
    tested = np.concatenate([test for _, test in folds])
    rows, out = [], as_path(out)
    tasks = list(itertools.product(sources, classifiers))
    computed: dict[str, Vectors] = {}
    for name, classifier in track(tasks, "classifiers", console=Console(stderr=True), transient=True):
        if name not in computed:
            rate, frame_samples, compute = sources[name]
            computed = {name: _over_splits(compute, splits[rate], frame_samples, seconds_per_batch)}
        correct = fit(computed[name], labels, folds, classifier, seed)
        rows.append(_row(name, classifier, correct, groups[tested] if leave_out else None))
        if name in vectors:
            known = np.arange(len(labels)) if leave_out else folds[0][0]
            trained = make_classifier(classifier, seed).fit(computed[name][known], labels[known])
            save(out / f"{name}-{classifier}", trained, name, target, sets)
    report = BaselineReport(
        sets=sets,
        target=target,
        folds=f"train -> {test_split}" if leave_out is None else f"leave one {leave_out} out",
        classes=len(np.unique(labels)),
        utterances=len(tested),
        majority=majority_accuracy(labels, folds),
        baselines=tuple(rows),
    )
    return report.publish(out, f"classifiers in {out}")


def _sources(vectors: Sequence[VectorKind], runs: Sequence[Path]) -> dict[str, tuple]:
    """Returns for each kind of vectors its sample rate, frame hop, and `(batches, rows) -> vectors`."""
    sources: dict[str, tuple] = {
        kind: (SAMPLE_RATE, FRAME_SAMPLES, functools.partial(mfcc_vectors, kind)) for kind in vectors
    }
    for run in runs:
        encoder = SpeechEncoder.load(run)

        def pooled(batches: Iterable[Batch], num_rows: int, encoder: SpeechEncoder = encoder) -> Vectors:
            return encoder.pooled(batches, num_rows).reshape(num_rows, -1)

        sources[str(run)] = encoder.frontend.mel.sample_rate, encoder.frame_samples, pooled
    return sources


def mfcc_vectors(kind: VectorKind, batches: Iterable[Batch], num_rows: int) -> Vectors:
    rows = rows_by_id(jax.jit(functools.partial(utterance_vectors, kind=kind, sample_rate=SAMPLE_RATE)), batches)
    return np.stack([rows[row][0] for row in range(num_rows)])


def _over_splits(compute, splits: Sequence[indexes.Index], frame_samples: int, seconds_per_batch: float) -> Vectors:
    parts = [compute(speech_batches(split, frame_samples, seconds_per_batch), len(split)) for split in splits]
    return np.concatenate(parts)


def _column(splits: Sequence[indexes.Index], name: str) -> Shaped[np.ndarray, " rows"]:
    return np.array([value for split in splits for value in split.column(name).to_pylist()])


def fit(
    vectors: Vectors, labels: Shaped[np.ndarray, " rows"], folds: Sequence[Fold], classifier: ClassifierName, seed: int
) -> Bool[np.ndarray, " tested"]:
    """Trains a classifier per fold; returns whether the test rows, fold by fold, are classified correctly."""
    correct = []
    for train, test in folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # iterations that end early act as a slightly stronger penalty
            model = make_classifier(classifier, seed).fit(vectors[train], labels[train])
        correct.append(model.predict(vectors[test]) == labels[test])
    return np.concatenate(correct)


def _row(
    vectors: str, classifier: ClassifierName, correct: Bool[np.ndarray, " tested"], groups: np.ndarray | None
) -> Baseline:
    accuracy = float(correct.mean())
    if groups is None:
        interval = wilson_interval(accuracy, len(correct))
        return Baseline(vectors=vectors, classifier=classifier, accuracy=accuracy, interval=interval)
    names, group_of_row = np.unique(groups, return_inverse=True)
    right, count = resampling.by_unit([correct, correct | True], group_of_row)
    sums = resampling.resampled_sums((right, count), resampling.RESAMPLES, 0)  # of few groups too, such as speakers
    return Baseline(
        vectors=vectors,
        classifier=classifier,
        accuracy=accuracy,
        interval=resampling.interval(sums[0] / sums[1]),
        by_group={str(name): float(x) for name, x in zip(names, right / count, strict=True)},
    )
