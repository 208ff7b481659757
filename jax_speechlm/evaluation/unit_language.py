"""Evaluates language models of speech units and text: bits per second of speech, bits per byte of text."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from rich.table import Table

from data_pipelines.storage import index as indexes
from data_pipelines.storage.units import open_unit_ids
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.batches import item_ids
from jax_speechlm.evaluation.language import LogLikelihood, Prediction, Rate, Stride, predict
from jax_speechlm.evaluation.resampling import Interval
from jax_speechlm.inference.lm.units import UnitModel

_NO_NAME = "(no name)"  # of a speaker


class SpokenPrediction(LogLikelihood):
    """The log-likelihood of the units of some utterances, runs merged, without the ends of utterances.

    Attributes:
      seconds: duration of the speech.
      without_units: utterances left out because they have no units.
      bits_per_second_interval: as `perplexity_interval`.
    """

    RATES: ClassVar[dict[str, Rate]] = LogLikelihood.RATES | {"bits_per_second": Rate("seconds")}

    seconds: float
    utterances: int
    without_units: int = 0
    bits_per_second_interval: Interval | None = None

    @property
    def bits_per_second(self) -> float:
        """Comparable between models with different units, unlike perplexity (arXiv 2601.06329)."""
        return self.nats / math.log(2) / max(1e-9, self.seconds)

    def item(self, name: str, speaker: str) -> base.Item:
        """Returns an utterance as what a report keeps of it."""
        sums = {"bits/second": (self.nats / math.log(2), self.seconds)}
        return base.Item(id=name, speaker=speaker, reference=f"{self.seconds:.3f} s", sums=sums)

    @property
    def units_per_second(self) -> float:
        return self.units / max(1e-9, self.seconds)


class UnitReport(base.Report):
    """The evaluation of one unit language model.

    Attributes:
      units: fingerprint of the k-means.
      context, stride: documents longer than `context` tokens are scored in windows that start `stride` tokens apart.
      speakers: per speaker, if there are several.
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
    spoken_items: tuple[base.Item, ...] = ()
    text_items: tuple[base.Item, ...] = ()

    def measures(self) -> dict[str, base.Measure]:
        """Returns bits per second of speech, by utterance, and bits per byte of text, by document."""
        named = {"bits/second": self.spoken_items, "bits/byte": self.text_items}
        return {name: base.Measure.of_items(items, name, as_percent=False) for name, items in named.items() if items}

    def tables(self) -> Iterator[Table]:
        """Yields the figures of speech, in all and by speaker, and of text."""
        if self.speech:
            columns = "", "bits/second [95 %]", "perplexity [95 %]", "units", "units/second", "minutes", "utterances"
            table = base.new_table(*columns, title=f"{', '.join(self.sets)} {self.split}: speech")
            for name, each in ({"all": self.speech} | self.speakers).items():
                bits = base.number(each.bits_per_second, each.bits_per_second_interval, ".2f")
                figures = bits, base.number(each.perplexity, each.perplexity_interval, ".2f"), f"{each.units:,}"
                extent = f"{each.units_per_second:.1f}", f"{each.seconds / 60:.1f}", f"{each.utterances:,}"
                table.add_row(name, *figures, *extent)
            yield table
        if self.text:
            columns = "bits/byte [95 %]", "perplexity [95 %]", "per word [95 %]", "tokens", "MB", "texts", "unknown"
            table = base.new_table(*columns, left=0, title=f"{', '.join(self.text_sets)} {self.split}: text")
            table.add_row(*self.text.cells())
            yield table


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: tuple[str, ...] = (),
    text_sets: tuple[str, ...] = (),
    split: base.Split = "test",
    units: Path | None = None,
    stride: Stride = None,
    data_dir: base.DataDir = Path("data"),
    out: base.Out = None,
) -> UnitReport:
    """Measures a unit language model on prepared speech, in bits per second, and on text, in bits per byte.

    Writes `report.json`.

    Args:
      sets: names of sets of speech labelled by `units label`; "name:split" selects another split than --split.
      text_sets: names of sets of text, or of speech, whose transcripts are then the texts.
      units: folder of the k-means the model was trained on; by default as in the run.
    """
    if not sets and not text_sets:
        raise ValueError("there is nothing to measure: name sets of speech with --sets, of text with --text-sets")
    model = UnitModel.load(checkpoint)
    folder = model.check(units) if sets else None
    spoken, spoken_items, predictions, text_items = [], (), [], ()
    if sets:
        index = indexes.read_sets(data_dir, sets, split)
        spoken, speakers = predict_speech(model, index, folder, stride), index.column("speaker").to_pylist()
        rows = zip(item_ids(index), speakers, spoken, strict=True)
        spoken_items = tuple(each.item(name, speaker or "") for name, speaker, each in rows if each.units)
    if text_sets:
        index = indexes.read_sets(data_dir, text_sets, split)
        predictions = predict(model.lm, index.column("text").to_pylist(), stride)
        text_items = tuple(each.item(name) for each, name in zip(predictions, item_ids(index), strict=True))
    report = UnitReport(
        checkpoint=str(model.lm.checkpoint),
        sets=sets,
        text_sets=text_sets,
        split=split,
        units=model.fingerprint,
        context=model.lm.context,
        stride=stride or max(1, model.lm.context // 2),
        speech=SpokenPrediction.total(spoken, speakers) if sets else None,
        speakers=_by_speaker(spoken, speakers) if sets else {},
        text=Prediction.total(predictions) if text_sets else None,
        spoken_items=spoken_items,
        text_items=text_items,
    )
    without = report.speech.without_units if report.speech else 0
    warning = f"{without} utterances have no units and are left out" if without else ""
    folder = base.report_folder(checkpoint, tuple(dict.fromkeys(sets + text_sets)), split)
    return report.publish(out or folder, report.checkpoint, warning=warning)


def predict_speech(
    model: UnitModel, index: indexes.Index, units: Path, stride: int | None = None
) -> list[SpokenPrediction]:
    """Scores the utterances of an index."""
    unit_ids = open_unit_ids(index, units)
    kmeans, rows = unit_ids.units, np.flatnonzero(unit_ids.lengths).tolist()
    sequences = [kmeans.sequence(unit_ids.read(row, 0, int(unit_ids.lengths[row])))[0] for row in rows]
    nats_of = dict(zip(rows, model.unit_nats(sequences, stride=stride), strict=True))
    predictions = []
    for row, length in enumerate(unit_ids.lengths.tolist()):
        nats = nats_of.get(row, np.zeros(0))
        prediction = SpokenPrediction(
            nats=float(nats.sum(dtype=np.float64)),
            units=len(nats),
            seconds=length * kmeans.frame_samples / kmeans.sample_rate,
            utterances=int(length > 0),
            without_units=int(length == 0),
        )
        predictions.append(prediction)
    return predictions


def _by_speaker(predictions: Sequence[SpokenPrediction], speakers: Sequence[str | None]) -> dict[str, SpokenPrediction]:
    """Adds up the figures per speaker; none if there is one."""
    of_speakers: dict[str, list[SpokenPrediction]] = defaultdict(list)
    for speaker, prediction in zip(speakers, predictions, strict=True):
        of_speakers[speaker or _NO_NAME].append(prediction)
    totals = {speaker: SpokenPrediction.total(parts) for speaker, parts in sorted(of_speakers.items())}
    return totals if len(totals) > 1 else {}
