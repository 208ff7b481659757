"""Evaluates language models of speech units and text: bits per second of speech, bits per byte of text."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from data_pipelines.batching.unit_documents import deduplicate
from data_pipelines.storage import index as indexes
from data_pipelines.storage.units import open_unit_ids, read_units
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation.language import Prediction, predict, save_report, total
from jax_speechlm.inference.lm.units import UnitModel

_NO_NAME = "(no name)"  # of a speaker


class SpokenPrediction(Config):
    """The log-likelihood of the units of some utterances under one model.

    Attributes:
      nats: negative log-probability of all units given their predecessors, without the ends of utterances.
      units: number of units, after merging runs.
      seconds: duration of the speech.
      utterances: number of utterances.
      without_units: utterances left out because they have no units.
    """

    nats: float
    units: int
    seconds: float
    utterances: int
    without_units: int = 0

    @property
    def perplexity(self) -> float:
        """Perplexity per unit; comparable only between models with the same units."""
        return math.exp(self.nats / max(1, self.units))

    @property
    def bits_per_second(self) -> float:
        """Comparable between models with different units, unlike perplexity (arXiv 2601.06329)."""
        return self.nats / math.log(2) / max(1e-9, self.seconds)

    @property
    def units_per_second(self) -> float:
        return self.units / max(1e-9, self.seconds)


class UnitReport(Config):
    """The evaluation of one unit language model.

    Attributes:
      checkpoint: the model.
      sets, text_sets, split: the test data.
      units: fingerprint of the k-means.
      context, stride: documents longer than `context` tokens are scored in windows that start `stride` tokens apart.
      speech: over all utterances; None without sets of speech.
      speakers: per speaker, if there are several.
      text: over all texts; None without sets of text.
    """

    checkpoint: str
    sets: tuple[str, ...]
    text_sets: tuple[str, ...]
    split: str
    units: str
    context: int
    stride: int
    speech: SpokenPrediction | None
    speakers: dict[str, SpokenPrediction]
    text: Prediction | None

    def tables(self) -> list[Table]:
        """Returns the report as tables for the terminal."""
        tables = []
        if self.speech:
            table = Table(title=f"{', '.join(self.sets)} {self.split}: speech", title_justify="left")
            for column in ("", "bits/second", "perplexity", "units", "units/second", "minutes", "utterances"):
                table.add_column(column, justify="right" if column else "left")
            for name, each in ({"all": self.speech} | self.speakers).items():
                figures = f"{each.bits_per_second:.2f}", f"{each.perplexity:.2f}", f"{each.units:,}"
                extent = f"{each.units_per_second:.1f}", f"{each.seconds / 60:.1f}", f"{each.utterances:,}"
                table.add_row(name, *figures, *extent)
            tables.append(table)
        if self.text:
            table = Table(title=f"{', '.join(self.text_sets)} {self.split}: text", title_justify="left")
            for column in ("bits/byte", "perplexity", "per word", "tokens", "MB", "texts", "unknown"):
                table.add_column(column, justify="right")
            each = self.text
            figures = f"{each.bits_per_byte:.4f}", f"{each.perplexity:.2f}", f"{each.word_perplexity:.4g}"
            table.add_row(
                *figures, f"{each.units:,}", f"{each.bytes / 1e6:.3f}", f"{each.documents:,}", f"{each.unknown:,}"
            )
            tables.append(table)
        return tables


def evaluate_run(
    checkpoint: Positional[Path],
    sets: tuple[str, ...] = (),
    text_sets: tuple[str, ...] = (),
    split: str = "test",
    units: Path | None = None,
    stride: int | None = None,
    data_dir: Path = Path("data"),
    out: Path | None = None,
) -> UnitReport:
    """Measures a unit language model on prepared speech, in bits per second, and on text, in bits per byte.

    Writes `report.json`.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      sets: names of sets of speech labelled by `units label`; "name:split" selects another split than --split.
      text_sets: names of sets of text, or of speech, whose transcripts are then the texts.
      split: "test", "dev" or "train".
      units: folder of the k-means the model was trained on; by default as in the run.
      stride: tokens between the starts of the windows in which documents longer than the context are scored; by default
        half of the context.
      data_dir: folder of the prepared data sets.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>.
    """
    if not sets and not text_sets:
        raise ValueError("there is nothing to measure: name sets of speech with --sets, of text with --text-sets")
    model = UnitModel.load(checkpoint)
    folder = model.check(units) if sets else None
    speakers = predict_speech(model, indexes.read_sets(data_dir, sets, split), folder, stride) if sets else {}
    text = None
    if text_sets:
        text = total(
            predict(model.lm, indexes.read_sets(data_dir, text_sets, split).column("text").to_pylist(), stride)
        )
    report = UnitReport(
        checkpoint=str(model.lm.checkpoint),
        sets=sets,
        text_sets=text_sets,
        split=split,
        units=model.fingerprint,
        context=model.lm.context,
        stride=stride or max(1, model.lm.context // 2),
        speech=add_up(speakers.values()) if sets else None,
        speakers=speakers if len(speakers) > 1 else {},
        text=text,
    )
    out = out or checkpoint / "eval" / f"{'+'.join(dict.fromkeys(sets + text_sets))}-{split}"
    save_report(report, out)
    console = Console(highlight=False)
    for table in report.tables():
        console.print(table)
    if report.speech and report.speech.without_units:
        console.print(f"[yellow]{report.speech.without_units} utterances have no units and are left out")
    console.print(f"{report.checkpoint}; {out / 'report.json'}", soft_wrap=True)
    return report


def predict_speech(
    model: UnitModel, index: indexes.Index, units: Path, stride: int | None = None
) -> dict[str, SpokenPrediction]:
    """Scores the utterances of an index and adds up the figures per speaker."""
    codes, units = open_unit_ids(index, units), read_units(units)
    speakers = index.column("speaker").to_pylist()
    rows = np.flatnonzero(codes.lengths)
    said = [deduplicate(codes.read(row, 0, int(codes.lengths[row])))[0] for row in rows.tolist()]
    nats = dict(zip(rows.tolist(), model.unit_nats(said, stride=stride), strict=True))
    found: dict[str, list[SpokenPrediction]] = {}
    for row, (speaker, length) in enumerate(zip(speakers, codes.lengths.tolist(), strict=True)):
        each = nats.get(row, np.zeros(0))
        prediction = SpokenPrediction(
            nats=float(each.sum(dtype=np.float64)),
            units=len(each),
            seconds=length * units.frame_samples / units.sample_rate,
            utterances=int(length > 0),
            without_units=int(length == 0),
        )
        found.setdefault(speaker or _NO_NAME, []).append(prediction)
    return {speaker: add_up(each) for speaker, each in sorted(found.items())}


def add_up(predictions: Iterable[SpokenPrediction]) -> SpokenPrediction:
    """Returns the sum of predictions."""
    rows = [each.model_dump() for each in predictions]
    return SpokenPrediction(**{name: sum(row[name] for row in rows) for name in SpokenPrediction.model_fields})
