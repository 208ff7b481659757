"""Linear probes: prediction of speaker, language, text or characters from single layers of a frozen encoder.

Class probes use the mean over an utterance's frames, computed for all layers in one pass; characters are predicted per
frame (`ctc_probe`). Baselines: the encoder before training, log-mel features, and the most frequent class.
"""

import functools
import html
import itertools
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_pipelines.batching import plan as plans
from data_pipelines.batching.speech import open_batches
from data_pipelines.core.errors import DataError
from data_pipelines.storage import index as indexes
from data_pipelines.tokenizers.base import train_tokenizer
from jax_speechlm.core.batch import Batch, frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, ctc_probe, wer
from jax_speechlm.evaluation.batches import item_ids, speech_batches
from jax_speechlm.evaluation.resampling import wilson_interval
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.inference.embed import SpeechEncoder
from jax_speechlm.inference.predictor import rows_by_id
from jax_speechlm.nn.functional import Params

CHARACTERS = "characters"
_MOST_ITERATIONS = 1000
_MOST_STEPS, _EPOCHS = 1000, 30  # for CTC probes
_CTC_BATCHES = {"seconds_per_batch": 48, "num_buckets": 4, "batch_multiple": 1, "seed": 0}
_COLORS = ("#4269d0", "#9498a0", "#efb118")
Features = Float[np.ndarray, "rows layers dim"]
Fold = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]  # rows to train on, rows to test; sizes vary by fold


class Probe(Config):
    """The accuracy of one linear probe.

    Attributes:
      source: its features: "encoder", "random encoder" or "log-mel".
      layer: 0 is the encoder's input projection; log-mel has only layer 0.
      accuracy: share of the test utterances classified correctly, over all folds; for characters, 1 - CER.
      interval: 95 % interval (Wilson 1927; for characters by bootstrap, None below 30). It treats
        utterances as independent, which is not quite true within a speaker.
    """

    source: str
    layer: int
    accuracy: float
    interval: tuple[float, float] | None


class ProbeReport(base.Report):
    """The linear probes of one encoder for one label.

    Attributes:
      checkpoint, sets, target: the encoder, the data and the label.
      folds: "train -> test", or "leave one <column> out".
      classes: number of classes or of characters.
      utterances: number of test utterances; each is tested once.
      majority: accuracy of the most frequent class in a fold's training part; for characters, of an empty transcript.
      unspellable: test utterances with fewer frames than characters, which CTC cannot emit at this frame rate.
    """

    checkpoint: str = ""
    sets: tuple[str, ...] = ()
    target: str
    folds: str = ""
    classes: int
    utterances: int
    majority: float
    unspellable: int = 0
    probes: tuple[Probe, ...]
    items: tuple[base.Item, ...] = ()

    def measures(self) -> dict[str, base.Measure]:
        """Returns the accuracy of each probe, by utterance."""
        names = dict.fromkeys(name for item in self.items for name in item.sums)
        return {name: base.Measure.of_items(self.items, name) for name in names}

    @property
    def sources(self) -> list[str]:
        return list(dict.fromkeys(probe.source for probe in self.probes))

    def tables(self) -> Iterator[Table]:
        """Yields a table with a row per layer and a column per source."""
        if self.target == CHARACTERS:
            count, caption = f"{self.classes} of them", "100 % less the character error rate"
            if self.unspellable:
                caption += f"; {self.unspellable:,} utterances have fewer frames than characters"
        else:
            count, caption = f"{self.classes} classes", f"most frequent class: {self.majority:.1%}"
        title = f"{self.target}: {count}, {self.utterances:,} utterances, {self.folds}"
        columns = "layer", *self.sources
        table = base.new_table(*columns, left=len(columns), title=title, caption=caption, caption_justify="left")
        cells = {(probe.source, probe.layer): base.percent(probe.accuracy, probe.interval) for probe in self.probes}
        for layer in range(max(probe.layer for probe in self.probes) + 1):
            table.add_row(str(layer), *(cells.get((source, layer), "") for source in self.sources))
        yield table

    def texts(self) -> dict[str, str]:
        """Returns `report.html`: a self-contained page with the plot."""
        depth = max(1, *(probe.layer for probe in self.probes))

        def x(layer: int) -> float:
            return 60 + 620 * layer / depth

        def y(share: float) -> float:
            return 330 - 300 * max(0.0, share)

        def line(x1: float, x2: float, y1: float, y2: float, style: str) -> str:
            return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" {style}/>'

        plot = []
        for percent in range(0, 101, 20):
            height = y(percent / 100)
            plot.append(line(60.0, 680.0, height, height, 'stroke="#ddd"'))
            plot.append(f'<text x="50" y="{height + 5}" text-anchor="end">{percent} %</text>')
        plot += [f'<text x="{x(layer):.0f}" y="355" text-anchor="middle">{layer}</text>' for layer in range(depth + 1)]
        dashed = 'stroke="{}" stroke-dasharray="5 4"'
        if self.target != CHARACTERS:
            plot.append(line(60.0, 680.0, y(self.majority), y(self.majority), dashed.format("#222")))
        for source, color in zip(self.sources, _COLORS, strict=False):
            probes = [probe for probe in self.probes if probe.source == source]
            if len(probes) == 1:
                plot.append(line(60.0, 680.0, y(probes[0].accuracy), y(probes[0].accuracy), dashed.format(color)))
            points = " ".join(f"{x(probe.layer):.1f},{y(probe.accuracy):.1f}" for probe in probes)
            plot.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
            plot += [
                line(x(probe.layer), x(probe.layer), *map(y, probe.interval), f'stroke="{color}"')
                for probe in probes
                if probe.interval is not None
            ]
        baseline = "100 % less the character error rate" if self.target == CHARACTERS else "most frequent class"
        names = *zip(self.sources, _COLORS, strict=False), (baseline, "#222")
        legend = " ".join(f'<b style="color:{color}">{html.escape(name)}</b>' for name, color in names)
        title = html.escape(f"{self.target} from frozen layers: {self.checkpoint}")
        page = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f"<style>body{{font:15px system-ui,sans-serif;max-width:48rem;margin:2rem auto}}</style><h1>{title}</h1>"
            f"<p>{html.escape(', '.join(self.sets))}; {html.escape(self.folds)}; 95 % intervals. {legend}</p>"
            f'<svg viewBox="0 0 720 380" role="img">{"".join(plot)}'
            '<text x="370" y="376" text-anchor="middle">layer</text></svg></html>\n'
        )
        return {"report.html": page}


def probe_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    target: str = "speaker",
    test_split: str = "test",
    leave_out: str | None = None,
    random: bool = False,
    data_dir: base.DataDir = Path("data"),
    out: Path | None = None,
    seconds_per_batch: base.BatchSeconds = 120.0,
) -> ProbeReport:
    """Trains a linear classifier on each frozen layer of an encoder and tests it on other utterances.

    Features are standardised means over an utterance's frames; the classifier is scikit-learn's logistic regression
    with its default penalty (C = 1). Characters are predicted per frame with CTC, from standardised features; log-mel
    is then stacked to the encoder's frame rate. Any run with a speech encoder can be probed.

    Args:
      sets: names of prepared data sets.
      target: column of the index to predict: speaker, language, or text (FSDD's digits); or "characters", which a
        linear map per layer predicts with CTC (some minutes on a CPU).
      test_split: the classifiers are trained on "train" and tested on this split.
      leave_out: column, such as speaker, for cross-validation over the train, dev and test splits together: each value
        is tested by a classifier trained on all others.
      random: also probe the same encoder with random parameters.
      out: folder of report.json and report.html; by default <checkpoint>/probe/<sets>-<target>.
    """
    encoder = SpeechEncoder.load(checkpoint)
    sources = {"encoder": encoder} | ({"random encoder": encoder.random()} if random else {})
    if target == CHARACTERS and leave_out is not None:
        raise DataError(f"--leave-out is for classes; {CHARACTERS} are learnt on train and measured on {test_split}")
    if leave_out is None:
        names = ["train", test_split]
    else:
        folders = [data_dir / name.partition(":")[0] for name in sets]
        names = [name for name in ("train", "dev", "test") if all(name in indexes.splits_of(path) for path in folders)]
    rate = encoder.frontend.mel.sample_rate
    splits = [indexes.read_sets(data_dir, sets, name, rate) for name in names]
    if target == CHARACTERS:
        report = _characters(sources, *splits, seconds_per_batch)
    else:
        report = _classes(sources, splits, target, leave_out, seconds_per_batch)
    folds = f"train -> {test_split}" if leave_out is None else f"leave one {leave_out} out"
    report = report.replace(checkpoint=str(encoder.checkpoint), sets=sets, folds=folds)
    return report.publish(out or checkpoint / "probe" / f"{'+'.join(sets)}-{target}", report.checkpoint)


def _classes(
    sources: Mapping[str, SpeechEncoder],
    splits: Sequence[indexes.Index],
    target: str,
    leave_out: str | None,
    seconds_per_batch: float,
) -> ProbeReport:
    """Trains and tests classifiers of utterances on all layers of the encoders, and on the features."""

    def column(name: str) -> np.ndarray:
        return np.array([value for split in splits for value in split.column(name).to_pylist()])

    labels = column(target)
    if leave_out is None:
        folds = [(np.arange(len(splits[0])), np.arange(len(splits[0]), len(labels)))]
    else:
        groups = column(leave_out)
        folds = [(np.flatnonzero(groups != group), np.flatnonzero(groups == group)) for group in np.unique(groups)]
    check_folds(labels, folds, target)
    (encoder, *_) = sources.values()

    def over_splits(compute: Callable[[Iterable[Batch], int], Features]) -> Features:
        rows = [(speech_batches(split, encoder.frame_samples, seconds_per_batch), len(split)) for split in splits]
        return np.concatenate(list(itertools.starmap(compute, rows)))

    features_of = {name: over_splits(source.pooled) for name, source in sources.items()}
    features_of["log-mel"] = over_splits(functools.partial(log_mel_statistics, frontend=encoder.frontend))
    probes, terms = [], {}
    for name, layers in features_of.items():
        for layer, correct in enumerate(fit_layers(layers, labels, folds)):
            accuracy = correct.mean()
            interval = wilson_interval(accuracy, len(correct))
            probes.append(Probe(source=name, layer=layer, accuracy=accuracy, interval=interval))
            terms[f"{name}, layer {layer}"] = np.stack([correct, np.ones(len(correct))], axis=1)
    tested = np.concatenate([test for _, test in folds])
    ids = [f"{split.parts[0].split} {name}" for split in splits for name in item_ids(split)]
    return ProbeReport(
        target=target,
        classes=len(np.unique(labels)),
        utterances=sum(len(test) for _, test in folds),
        majority=majority_accuracy(labels, folds),
        probes=tuple(probes),
        items=_items([ids[row] for row in tested], labels[tested].tolist(), column("speaker")[tested].tolist(), terms),
    )


def _items(
    ids: Sequence[str], references: Sequence[str], speakers: Sequence[str], terms: Mapping[str, np.ndarray]
) -> tuple[base.Item, ...]:
    """Returns what a report keeps of its utterances, from the terms [utterances, 2] of each probe's accuracy."""
    rows = {name: values.tolist() for name, values in terms.items()}
    return tuple(
        base.Item(id=name, reference=reference, speaker=speaker, sums={probe: rows[probe][row] for probe in rows})
        for row, (name, reference, speaker) in enumerate(zip(ids, references, speakers, strict=True))
    )


def _characters(
    sources: Mapping[str, SpeechEncoder], train: indexes.Index, test: indexes.Index, seconds_per_batch: float
) -> ProbeReport:
    """Trains and tests CTC probes of all layers of the encoders, and of the features."""
    if not all(any(text.strip() for part in index.parts for text in part.texts()) for index in (train, test)):
        raise DataError("characters need transcripts to learn from and to be measured on: name sets that have both")
    tokenizer = train_tokenizer((text for part in train.parts for text in part.texts()), "char")
    # In NFKC, as the tokenizer encodes them.
    references = [unicodedata.normalize("NFKC", text).strip() for text in test.column("text").to_pylist()]
    spoken = [row for row, text in enumerate(references) if text]
    (encoder, *_) = sources.values()
    tokens = indexes.token_lengths(train, tokenizer)
    shape = {"frame_samples": encoder.frame_samples, "sample_rate": encoder.frontend.mel.sample_rate}
    plan = plans.make_plan(train.num_samples, tokens, **_CTC_BATCHES, **shape)
    if plan.dropped_share:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in plan.dropped.items() if count)
        warning = f"warning: training leaves out {plan.dropped_share:.1%} of its audio ({counts})"
        Console(stderr=True, soft_wrap=True).print(warning, style="yellow", markup=False)
    frames = encoder.model.num_frames(encoder.frontend.mel.num_frames(test.num_samples))
    lengths = indexes.token_lengths(test, tokenizer)
    steps = max(1, min(_MOST_STEPS, _EPOCHS * plan.steps_per_epoch))
    layers_of = {name: (source.all_layers, source.params) for name, source in sources.items()}
    stacked = encoder.frontend, encoder.model.subsampling
    if isinstance(encoder.frontend.mel, Waveform):  # frames every 20 ms, about as far apart as of published encoders
        stacked = FrontEnd(mel=LogMel()), 1
    layers_of["log-mel"] = functools.partial(_features, *stacked), {}
    probes, terms = [], {}
    for name, layers in layers_of.items():
        batches = open_batches(train, plan, tokenizer, num_steps=steps)
        batches = iter(track(batches, name, steps, console=Console(stderr=True), transient=True))
        probe = ctc_probe.fit(*layers, batches, steps, tokenizer.vocab_size)
        batches = speech_batches(test, encoder.frame_samples, seconds_per_batch)
        for layer, texts in enumerate(ctc_probe.texts(*layers, probe, batches, len(test), tokenizer)):
            counts = wer.count(wer.align([references[r] for r in spoken], [texts[r] for r in spoken], "character"))
            bounds = wer.bootstrap(counts)
            interval = bounds and (1 - bounds[1], 1 - bounds[0])
            probes.append(Probe(source=name, layer=layer, accuracy=1 - wer.rate(counts), interval=interval))
            right = counts[:, 3] - counts[:, :3].sum(1)
            terms[f"{name}, layer {layer}"] = np.stack([right, counts[:, 3]], axis=1)
    ids, speakers = item_ids(test), test.column("speaker").to_pylist()
    columns = ([values[row] for row in spoken] for values in (ids, references, speakers))
    return ProbeReport(
        target=CHARACTERS,
        classes=tokenizer.vocab_size - 1,
        utterances=len(spoken),
        majority=0.0,
        unspellable=int(np.count_nonzero(frames < lengths)),
        probes=tuple(probes),
        items=_items(*columns, terms),
    )


def _features(
    frontend: FrontEnd, stacked: int, params: Params, batch: Batch
) -> tuple[Float[Array, "layers batch time dim"], Int[Array, " batch"]]:
    """Returns the encoder's input as its only layer: features stacked to the encoder's frame rate."""
    del params
    x_BxTxF, length_B = features(batch, frontend, None)
    x_BxTxF = jnp.pad(x_BxTxF, ((0, 0), (0, -x_BxTxF.shape[1] % stacked), (0, 0)))
    return x_BxTxF.reshape(1, len(x_BxTxF), -1, stacked * x_BxTxF.shape[2]), length_B // stacked


def check_folds(labels: np.ndarray, folds: Sequence[Fold], target: str) -> None:
    """Raises `DataError` if a fold has fewer than two classes to train on, or nothing to test."""
    for train, test in folds:
        if len(np.unique(labels[train])) < 2 or not len(test):
            raise DataError(
                f"a probe for {target} has {len(np.unique(labels[train]))} classes to learn from and {len(test)} "
                "utterances to test: it needs two and one. Name sets with more, or another --target or --leave-out"
            )


def fit_layers(features: Features, labels: np.ndarray, folds: Sequence[Fold]) -> Iterator[np.ndarray]:
    """Trains a classifier per layer; yields for each whether the test utterances, fold by fold, are correct."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for layer in range(features.shape[1]):
        correct = []
        for train, test in folds:
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MOST_ITERATIONS))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # stopping early acts as a slightly stronger penalty
                model.fit(features[train, layer], labels[train])
            correct.append(model.predict(features[test, layer]) == labels[test])
        yield np.concatenate(correct)


def log_mel_statistics(batches: Iterable[Batch], num_rows: int, frontend: FrontEnd) -> Features:
    """Computes `statistics` of log-mel features without normalisation or stacking, or of other features as they are.

    Of samples they are of the default log-mel features.
    """
    if isinstance(frontend.mel, Waveform):
        frontend = FrontEnd(mel=LogMel())
    if isinstance(frontend.mel, LogMel):
        frontend = FrontEnd(mel=frontend.mel.replace(normalize=False, stack=1))
    return statistics(batches, num_rows, lambda batch: features(batch, frontend, None))


def statistics(
    batches: Iterable[Batch],
    num_rows: int,
    features: Callable[[Batch], tuple[Float[Array, "batch time features"], Int[Array, " batch"]]],
) -> Features:
    """Computes statistics of features over the frames of each row.

    Returns:
      Mean and standard deviation [rows, 1, 2 * features], indexed by `example_id`.
    """

    @jax.jit
    def compute(batch: Batch) -> tuple[Float[Array, "batch dim"]]:
        x_BxTxF, length_B = features(batch)
        inside, count = frame_mask(length_B, x_BxTxF.shape[1])[..., None], jnp.maximum(length_B, 1)[:, None]
        mean = jnp.where(inside, x_BxTxF, 0).sum(1) / count
        deviation = jnp.sqrt(jnp.square(jnp.where(inside, x_BxTxF - mean[:, None], 0)).sum(1) / count)
        return (jnp.concatenate([mean, deviation], axis=-1),)

    rows = rows_by_id(compute, batches)
    of_rows = np.zeros((num_rows, 1, len(next(iter(rows.values()))[0])), np.float32)
    for row, (values,) in rows.items():
        of_rows[row, 0] = values
    return of_rows


def majority_accuracy(labels: np.ndarray, folds: Sequence[Fold]) -> float:
    """Returns the accuracy of the most frequent class of each fold's training part, over all test utterances."""
    correct = []
    for train, test in folds:
        names, counts = np.unique(labels[train], return_counts=True)
        correct.append(labels[test] == names[counts.argmax()])
    return float(np.concatenate(correct).mean())
