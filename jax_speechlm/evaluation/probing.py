"""Linear probes: prediction of speaker, language, text or characters from single layers of a frozen encoder.

Class probes use the mean over an utterance's frames, computed for all layers in one pass; characters are predicted per
frame (`ctc_probe`). Baselines: the encoder before training, log-mel features, and the most frequent class.
"""

import functools
import html
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tyro.conf import Positional

from data_pipelines.batching import plan as plans
from data_pipelines.batching.speech import Batches, open_batches
from data_pipelines.core.errors import DataError
from data_pipelines.storage import index as indexes
from data_pipelines.tokenizers.base import train_tokenizer
from jax_speechlm.core.batch import Batch, frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import ctc_probe, wer
from jax_speechlm.evaluation.language import save_report
from jax_speechlm.evaluation.minimal_pairs import wilson_interval
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import log_mel
from jax_speechlm.inference.embed import SpeechEncoder
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
      interval: 95 % interval (Wilson 1927; for characters by bootstrap, None below `wer.MIN_UTTERANCES`). It treats
        utterances as independent, which is not quite true within a speaker.
    """

    source: str
    layer: int
    accuracy: float
    interval: tuple[float, float] | None


class ProbeReport(Config):
    """The linear probes of one encoder for one label.

    Attributes:
      checkpoint, sets, target: the encoder, the data and the label.
      folds: "train -> test", or "leave one <column> out".
      classes: number of classes or of characters.
      utterances: number of test utterances; each is tested once.
      majority: accuracy of the most frequent class in a fold's training part; for characters, of an empty transcript.
      unspellable: test utterances with fewer frames than characters, which CTC cannot emit at this frame rate.
      probes: all probes.
    """

    checkpoint: str
    sets: tuple[str, ...]
    target: str
    folds: str
    classes: int
    utterances: int
    majority: float
    unspellable: int = 0
    probes: tuple[Probe, ...]

    def table(self) -> Table:
        """Returns a table for the terminal with a row per layer and a column per source."""
        sources = list(dict.fromkeys(probe.source for probe in self.probes))
        what = f"{self.classes} of them" if self.target == CHARACTERS else f"{self.classes} classes"
        title = f"{self.target}: {what}, {self.utterances:,} utterances, {self.folds}"
        caption = f"most frequent class: {self.majority:.1%}"
        if self.target == CHARACTERS:
            caption = "100 % less the character error rate"
            if self.unspellable:
                caption += f"; {self.unspellable:,} utterances have fewer frames than characters"
        table = Table("layer", *sources, title=title, title_justify="left", caption=caption, caption_justify="left")
        by_place = {(probe.source, probe.layer): probe for probe in self.probes}
        for layer in range(max(probe.layer for probe in self.probes) + 1):
            cells = [by_place.get((source, layer)) for source in sources]
            table.add_row(str(layer), *("" if cell is None else _describe(cell) for cell in cells))
        return table

    def page(self) -> str:
        """Returns a self-contained HTML page with the plot."""
        depth = max(1, *(probe.layer for probe in self.probes))

        def x(layer):
            return 60 + 620 * layer / depth

        def y(share):
            return 330 - 300 * max(0.0, share)

        drawn = [
            f'<line x1="60" x2="680" y1="{y(tenth / 5)}" y2="{y(tenth / 5)}" stroke="#ddd"/>'
            f'<text x="50" y="{y(tenth / 5) + 5}" text-anchor="end">{20 * tenth} %</text>'
            for tenth in range(6)
        ]
        drawn += [f'<text x="{x(layer):.0f}" y="355" text-anchor="middle">{layer}</text>' for layer in range(depth + 1)]
        flat = '<line x1="60" x2="680" y1="{0:.1f}" y2="{0:.1f}" stroke="{1}" stroke-dasharray="5 4"/>'
        if self.target != CHARACTERS:
            drawn.append(flat.format(y(self.majority), "#222"))
        sources = list(dict.fromkeys(probe.source for probe in self.probes))
        for source, color in zip(sources, _COLORS, strict=False):
            probes = [probe for probe in self.probes if probe.source == source]
            if len(probes) == 1:
                drawn.append(flat.format(y(probes[0].accuracy), color))
            points = " ".join(f"{x(probe.layer):.1f},{y(probe.accuracy):.1f}" for probe in probes)
            drawn.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
            for probe in probes:
                if probe.interval is None:
                    continue
                low, high = (y(bound) for bound in probe.interval)
                place = f'x1="{x(probe.layer):.1f}" x2="{x(probe.layer):.1f}"'
                drawn.append(f'<line {place} y1="{low:.1f}" y2="{high:.1f}" stroke="{color}"/>')
        baseline = "100 % less the character error rate" if self.target == CHARACTERS else "most frequent class"
        names = zip([*sources, baseline], [*_COLORS[: len(sources)], "#222"], strict=True)
        legend = " ".join(f'<b style="color:{color}">{html.escape(name)}</b>' for name, color in names)
        title = html.escape(f"{self.target} from frozen layers: {self.checkpoint}")
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f"<style>body{{font:15px system-ui,sans-serif;max-width:48rem;margin:2rem auto}}</style><h1>{title}</h1>"
            f"<p>{html.escape(', '.join(self.sets))}; {html.escape(self.folds)}; 95 % intervals. {legend}</p>"
            f'<svg viewBox="0 0 720 380" role="img">{"".join(drawn)}'
            '<text x="370" y="376" text-anchor="middle">layer</text></svg></html>\n'
        )


def probe_run(
    checkpoint: Positional[Path],
    sets: tuple[str, ...],
    target: str = "speaker",
    test_split: str = "test",
    leave_out: str | None = None,
    random: bool = False,
    data_dir: Path = Path("data"),
    out: Path | None = None,
    seconds_per_batch: float = 120.0,
) -> ProbeReport:
    """Trains a linear classifier on each frozen layer of an encoder and tests it on other utterances.

    Features are standardised means over an utterance's frames; the classifier is scikit-learn's logistic regression
    with its default penalty (C = 1). Characters are predicted per frame with CTC, from standardised features; log-mel
    is then stacked to the encoder's frame rate.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders; any run with a speech encoder.
      sets: names of prepared data sets.
      target: column of the index to predict: speaker, language, or text (FSDD's digits); or "characters", which a
        linear map per layer predicts with CTC (some minutes on a CPU).
      test_split: the classifiers are trained on "train" and tested on this split.
      leave_out: column, such as speaker, for cross-validation over the train, dev and test splits together: each value
        is tested by a classifier trained on all others.
      random: also probe the same encoder with random parameters.
      data_dir: folder of the prepared data sets.
      out: folder of report.json and report.html; by default <checkpoint>/probe/<sets>-<target>.
      seconds_per_batch: padded audio per batch, in seconds; affects memory and speed only.
    """
    encoder = SpeechEncoder.load(checkpoint)
    out = out or checkpoint / "probe" / f"{'+'.join(sets)}-{target}"
    rate = encoder.frontend.mel.sample_rate
    sources = {"encoder": encoder} | ({"random encoder": encoder.random()} if random else {})
    if target == CHARACTERS:
        if leave_out is not None:
            raise DataError(
                f"--leave-out is for classes; {CHARACTERS} are learnt on train and measured on {test_split}"
            )
        parts = [_index(data_dir, sets, split, rate) for split in ("train", test_split)]
        report = _characters(sources, *parts, seconds_per_batch).replace(
            checkpoint=str(encoder.checkpoint), sets=sets, folds=f"train -> {test_split}"
        )
        return _published(report, out)
    splits = [_index(data_dir, sets, split, rate) for split in ("train", test_split)]
    if leave_out is not None:
        splits = [
            index for name in ("train", "dev", "test") if (index := _index(data_dir, sets, name, rate, needed=False))
        ]

    def column(name):
        return np.array([value for part in splits for value in part.column(name).to_pylist()])

    labels = column(target)
    if leave_out is None:
        first = len(splits[0])
        folds, described = [(np.arange(first), np.arange(first, len(labels)))], f"train -> {test_split}"
    else:
        groups = column(leave_out)
        folds = [(np.flatnonzero(groups != each), np.flatnonzero(groups == each)) for each in np.unique(groups)]
        described = f"leave one {leave_out} out"
    check_folds(labels, folds, target)

    def batches() -> Iterator[tuple[Batches, int]]:
        for part in splits:
            shape = {"seconds_per_batch": seconds_per_batch, "frame_samples": encoder.frame_samples}
            shape["sample_rate"] = rate
            plan = plans.make_eval_plan(part.num_samples, batch_multiple=1, **shape)
            yield open_batches(part, plan, num_steps=plan.steps_per_epoch), len(part)

    found = {name: np.concatenate([each.pooled(*part) for part in batches()]) for name, each in sources.items()}
    found["log-mel"] = np.concatenate([log_mel_statistics(*part, encoder.frontend) for part in batches()])
    probes = [
        Probe(source=name, layer=layer, accuracy=right.mean(), interval=wilson_interval(right.mean(), len(right)))
        for name, features in found.items()
        for layer, right in enumerate(fit_layers(features, labels, folds))
    ]
    report = ProbeReport(
        checkpoint=str(encoder.checkpoint),
        sets=sets,
        target=target,
        folds=described,
        classes=len(np.unique(labels)),
        utterances=sum(len(test) for _, test in folds),
        majority=float(np.concatenate([labels[test] == _most_frequent(labels[train]) for train, test in folds]).mean()),
        probes=tuple(probes),
    )
    return _published(report, out)


def _published(report: ProbeReport, out: Path) -> ProbeReport:
    save_report(report, out)
    (out / "report.html").write_text(report.page())
    console = Console(highlight=False)
    console.print(report.table())
    console.print(f"{report.checkpoint}; {out / 'report.json'}, report.html", soft_wrap=True)
    return report


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
    test_plan = plans.make_eval_plan(
        test.num_samples,
        seconds_per_batch=seconds_per_batch,
        batch_multiple=1,
        **shape,
    )
    frames = encoder.model.num_frames(encoder.frontend.mel.num_frames(test.num_samples))
    lengths = indexes.token_lengths(test, tokenizer)
    steps = max(1, min(_MOST_STEPS, _EPOCHS * plan.steps_per_epoch))
    given = {name: (each.all_layers, each.params) for name, each in sources.items()}
    given["log-mel"] = functools.partial(_features, encoder.frontend, encoder.model.subsampling), {}
    probes = []
    for name, layers in given.items():
        batches = open_batches(train, plan, tokenizer, num_steps=steps)
        batches = iter(track(batches, name, steps, console=Console(stderr=True), transient=True))
        probe = ctc_probe.fit(*layers, batches, steps, tokenizer.vocab_size)
        batches = open_batches(test, test_plan, num_steps=test_plan.steps_per_epoch)
        for layer, texts in enumerate(ctc_probe.texts(*layers, probe, batches, len(test), tokenizer)):
            counts = wer.count(wer.align([references[r] for r in spoken], [texts[r] for r in spoken], "character"))
            bounds = wer.bootstrap(counts)
            interval = bounds and (1 - bounds[1], 1 - bounds[0])
            probes.append(Probe(source=name, layer=layer, accuracy=1 - wer.rate(counts), interval=interval))
    return ProbeReport(
        checkpoint="",
        sets=(),
        target=CHARACTERS,
        folds="",
        classes=tokenizer.vocab_size - 1,
        utterances=len(spoken),
        majority=0.0,
        unspellable=int(np.count_nonzero(frames < lengths)),
        probes=tuple(probes),
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
        right = []
        for train, test in folds:
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MOST_ITERATIONS))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # stopping early acts as a slightly stronger penalty
                model.fit(features[train, layer], labels[train])
            right.append(model.predict(features[test, layer]) == labels[test])
        yield np.concatenate(right)


def log_mel_statistics(batches: Batches, num_rows: int, frontend: FrontEnd) -> Features:
    """Computes `statistics` of log-mel features without normalisation or stacking."""
    mel = frontend.mel.replace(normalize=False, stack=1)
    return statistics(batches, num_rows, lambda batch: log_mel(batch["audio"], batch["audio_length"], mel))


def statistics(
    batches: Batches,
    num_rows: int,
    features: Callable[[Batch], tuple[Float[Array, "batch time features"], Int[Array, " batch"]]],
) -> Features:
    """Computes statistics of features over the frames of each row.

    Returns:
      Mean and standard deviation [rows, 1, 2 * features], indexed by `example_id`.
    """

    @jax.jit
    def compute(batch: Batch) -> Float[Array, "batch dim"]:
        x_BxTxF, length_B = features(batch)
        inside, count = frame_mask(length_B, x_BxTxF.shape[1])[..., None], jnp.maximum(length_B, 1)[:, None]
        mean = jnp.where(inside, x_BxTxF, 0).sum(1) / count
        deviation = jnp.sqrt(jnp.square(jnp.where(inside, x_BxTxF - mean[:, None], 0)).sum(1) / count)
        return jnp.concatenate([mean, deviation], axis=-1)

    found = None
    for batch in batches:
        real, values = batch["example_id"] >= 0, np.asarray(compute(batch))
        if found is None:
            found = np.zeros((num_rows, 1, values.shape[1]), np.float32)
        found[batch["example_id"][real], 0] = values[real]
    return found


def _index(
    data_dir: Path, sets: tuple[str, ...], split: str, sample_rate: int, needed: bool = True
) -> indexes.Index | None:
    if needed or all(split in indexes.splits_of(data_dir / name.partition(":")[0]) for name in sets):
        return indexes.read_sets(data_dir, sets, split, sample_rate)
    return None


def _most_frequent(labels: np.ndarray) -> str:
    names, counts = np.unique(labels, return_counts=True)
    return names[counts.argmax()]


def _describe(probe: Probe) -> str:
    if probe.interval is None:
        return f"{100 * probe.accuracy:.1f} %"
    low, high = (100 * bound for bound in probe.interval)
    return f"{100 * probe.accuracy:.1f} % [{low:.1f}, {high:.1f}]"
