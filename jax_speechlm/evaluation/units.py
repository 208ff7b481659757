"""Reports on the units of labelled sets: usage, purity and speaker leakage."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int
from rich.table import Table

from data_pipelines.storage import index as indexes
from data_pipelines.storage.units import open_unit_ids
from jax_speechlm.decoding.ctc.alignment import force_align
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.evaluation.recognition import EvaluationSpeech
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.units.measures import Agreement, Leakage, Usage, agreement, speaker_leakage, usage

MOST_CLASSES = 200
"""A column of the index with more distinct values is left out: it names utterances, not classes."""


class UnitsReport(base.Report):
    """The units of some labelled sets.

    Attributes:
      units, fingerprint, num_units: the k-means.
      labels: agreement with the utterances' labels, by column of the index: speaker, language, text.
      characters: agreement with the characters of the frames, as aligned by a recognizer.
      unaligned: utterances that could not be aligned.
      speakers: accuracy of identifying the speaker from an utterance's units; None with too few utterances. Its
        interval is Wilson's (1927), of 95 %. What describes the units themselves, such as purity, has none.
    """

    units: str
    fingerprint: str
    num_units: int
    sets: tuple[str, ...]
    split: str
    usage: Usage
    labels: dict[str, Agreement]
    characters: Agreement | None = None
    unaligned: int = 0
    speakers: Leakage | None = None
    speakers_interval: resampling.Interval | None = None

    def tables(self) -> Iterator[Table]:
        """Yields the report as tables for the terminal."""
        title = f"{self.num_units} units of {self.units} on {', '.join(self.sets)} {self.split}"
        table = base.new_table("usage", "", title=title)
        for name, value in (
            ("frames", f"{self.usage.frames:,}"),
            ("units used", f"{self.usage.used:.1%}"),
            ("entropy, nats", f"{self.usage.entropy:.3f}"),
            ("perplexity", f"{self.usage.perplexity:.1f}"),
            ("frames a second", f"{self.usage.frames_per_second:.1f}"),
            ("units a second, deduplicated", f"{self.usage.units_per_second:.1f}"),
            ("frames of a run", f"{self.usage.run_frames:.2f}"),
        ):
            table.add_row(name, value)
        if self.speakers:
            accuracy = base.percent(self.speakers.accuracy, self.speakers_interval)
            identified = f"{accuracy} of {self.speakers.utterances:,} utterances"
            table.add_row(f"speaker identified, of {self.speakers.speakers}", identified)
            table.add_row("  the commonest speaker", f"{self.speakers.majority:.1%}")
        yield table
        columns = "label", "classes", "frames", "label purity", "one unit", "unit purity", "MI, nats", "PNMI"
        table = base.new_table(*columns)
        for name, each in (self.labels | ({"character": self.characters} if self.characters else {})).items():
            shares = (f"{share:.1%}" for share in (each.label_purity, each.majority, each.unit_purity))
            information = f"{each.information:.3f}", f"{each.pnmi:.3f}"
            table.add_row(name, str(each.classes), f"{each.frames:,}", *shares, *information)
        if self.unaligned:
            table.caption = f"{self.unaligned} utterances could not be aligned"
        if table.row_count:
            yield table


def measure(
    units: Path, sets: tuple[str, ...], split: str, data_dir: Path, ctc: Path | None, seconds_per_batch: float
) -> UnitsReport:
    """Computes the report on labelled sets.

    Args:
      ctc: run of a CTC recognizer that aligns characters; None leaves them out.

    Raises:
      DataError: a set is not labelled with these units.
      CheckpointError: `ctc` is not a CTC recognizer.
    """
    index = indexes.read_sets(data_dir, sets, split)
    store = open_unit_ids(index, units)
    unit_ids = [store.read(row, 0, int(length)).astype(np.int64) for row, length in enumerate(store.lengths)]
    num_units, labelled = store.units.num_units, np.flatnonzero(store.lengths)
    if not len(labelled):
        raise ValueError(f"{', '.join(sets)} {split}: no utterance has any units")
    histograms = np.stack([np.bincount(unit_ids[row], minlength=num_units) for row in labelled])
    labels, leakage = {}, None
    for column in ("speaker", "language", "text"):
        names, classes = np.unique(np.array(index.column(column).to_pylist(), str), return_inverse=True)
        if 2 <= len(names) <= MOST_CLASSES:
            counts = np.zeros((len(names), num_units), np.int64)
            np.add.at(counts, classes[labelled], histograms)
            labels[column] = agreement(counts.T)
            leakage = speaker_leakage(histograms, classes[labelled]) if column == "speaker" else leakage
    characters, unaligned = None, 0
    if ctc is not None:
        recognizer = Recognizer.load(ctc)
        speech = EvaluationSpeech(recognizer, sets, split, data_dir, seconds_per_batch)
        counts, unaligned = _characters(recognizer, speech, unit_ids, num_units, store.units.frame_samples)
        characters = agreement(counts) if counts.any() else None
    return UnitsReport(
        units=str(units),
        fingerprint=store.units.fingerprint,
        num_units=num_units,
        sets=sets,
        split=split,
        usage=usage(
            [unit_ids[row] for row in labelled], num_units, store.units.frame_samples / store.units.sample_rate
        ),
        labels=labels,
        characters=characters,
        unaligned=unaligned,
        speakers=leakage,
        speakers_interval=leakage and resampling.wilson_interval(leakage.accuracy, leakage.utterances),
    )


def _characters(
    recognizer: Recognizer,
    speech: EvaluationSpeech,
    unit_ids: list[Int[np.ndarray, "..."]],
    num_units: int,
    frame_samples: int,
) -> tuple[Int[np.ndarray, "units tokens"], int]:
    """Counts co-occurrences of units and characters by forced alignment.

    A unit's frame belongs to the token whose span contains its centre. Frames between spans (blanks) are not counted.

    Returns:
      Frames per unit and token, and the number of utterances that could not be aligned.
    """
    ratio = recognizer.experiment.frame_samples / frame_samples
    tokens = [recognizer.tokenizer.encode(text) for text in speech.index.column("text").to_pylist()]
    counts, unaligned = np.zeros((num_units, recognizer.tokenizer.vocab_size), np.int64), 0
    for batch in speech.batches():
        posteriors = recognizer.posteriors(iter((batch,)))
        alignments = force_align(list(posteriors.values()), [tokens[row] for row in posteriors])
        for row, spans in zip(posteriors, alignments, strict=True):
            unaligned += not spans
            for span in spans or ():
                first, end = (int(np.ceil(edge * ratio - 0.5)) for edge in (span.start, span.end))
                np.add.at(counts[:, span.token], unit_ids[row][first:end], 1)
    return counts, unaligned
