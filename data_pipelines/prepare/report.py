"""Reports of the prepare job: kept and dropped items, and statistics of the kept ones."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.paths import AnyPath
from data_pipelines.prepare.convert import Converted
from data_pipelines.prepare.voice import SpeechRate
from data_pipelines.text.documents import Document
from data_pipelines.text.normalize import split_order, without_held_out, word_characters

# Upper edges of the duration histogram in seconds; the last bin is open.
HISTOGRAM_EDGES = (0.5, 1, 2, 4, 8, 16, 32, 64)
_LEAST_TRIMMED, _LEAST_GAIN = 0.01, 0.1  # seconds and dB that count as a change
_EXAMPLES = 5
_EXAMPLE_CHARACTERS = 300
_COUNTS = ("documents", "words", "bytes")


class _Report:
    """Base of the reports, which are dataclasses: `report.json` has the fields of the report."""

    splits: dict[str, dict]
    dropped: dict[str, dict]

    def save(self, path: Path) -> None:
        """Writes the report as JSON."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: AnyPath) -> Self:
        """Reads a report that `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def _print_dropped(self, console: Console, items: str) -> None:
        """Prints the dropped items by reason, and a warning if the set has no held-out split."""
        if self.dropped:
            rows = []
            for reason, row in self.dropped.items():
                example = row["detail"] or ", ".join(row["ids"])
                seconds = f"{row['seconds']:,.1f}" if row.get("seconds") else ""  # absent in older reports
                rows.append((reason, f"{row['count']:,}", seconds, escape(example[:_EXAMPLE_CHARACTERS])))
            headings = ("dropped", items, "seconds", "for example")
            if not any(row[2] for row in rows):  # of text, or not decoded
                headings, rows = (headings[:2] + headings[3:]), [row[:2] + row[3:] for row in rows]
            _print_table(console, headings, rows, numeric=(items, "seconds"))
        if missing := without_held_out(self.splits):
            console.print(f"[bold yellow]warning: {missing}", soft_wrap=True)


def _print_table(
    console: Console, headings: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[str]
) -> None:
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


@dataclasses.dataclass(frozen=True)
class PreparationReport(_Report):
    """The outcome of one preparation of speech.

    Attributes:
      splits: by name: clips, hours, words.
      dropped: by reason: count, first ids, whether the data is at fault, one full message, seconds if it was decoded.
      clips, hours, speakers: totals of kept items; unknown speakers are not counted.
      hours_by_speaker: the twenty with most speech.
      without_text: kept clips with an empty transcript, which are good for pretraining only.
      histogram: number of clips by upper edge in seconds.
      clipped: ids of kept clips with samples at full scale; `clipped_share` is of all samples.
      mostly_silence: ids of kept clips that are mostly silence; `silence_share` is of the total duration.
      voice: of a set for a voice, or of one loudness, what was changed: see `VoiceChanges.summary`.
      as_written: number of kept clips whose transcript has capitals or punctuation; 0 in reports of earlier versions.
    """

    name: str
    splits: dict[str, dict[str, float]]
    dropped: dict[str, dict]
    clips: int
    hours: float
    speakers: int
    hours_by_speaker: dict[str, float]
    without_text: int
    histogram: dict[str, int]
    clipped: list[str]
    clipped_share: float
    mostly_silence: list[str]
    silence_share: float
    voice: dict[str, Any] | None = None
    as_written: int = 0

    def print(self, console: Console | None = None) -> None:
        """Prints the report for a reader."""
        console = console or Console()
        console.rule(f"{self.name}: {self.clips:,} clips, {self.hours:.2f} h, {self.speakers:,} known speakers")
        rows = [
            (split, f"{row['clips']:,}", f"{60 * row['hours']:.1f}", f"{row['words']:,}")
            for split, row in self.splits.items()
        ]
        counts = ("clips", "minutes", "words")
        _print_table(console, ("split", *counts), rows, numeric=counts)
        self._print_dropped(console, "clips")
        most = max(self.histogram.values(), default=0)
        for edge, count in self.histogram.items():
            console.print(f"{edge:>8} s {count:>8,} {'█' * round(40 * count / max(most, 1))}", highlight=False)
        console.print(
            f"clipping: {len(self.clipped):,} clips, {100 * self.clipped_share:.3f} % of samples; "
            f"silence: {100 * self.silence_share:.1f} % of the time, {len(self.mostly_silence):,} clips mostly silent; "
            f"without text: {self.without_text:,}",
            highlight=False,
        )
        if self.voice:
            console.print("; ".join(self._changes()), highlight=False)
        elif self.as_written:
            console.print(
                f"{self.as_written:,} transcripts have capitals or punctuation and are kept so: a recognizer learns to "
                "write them; --normalise-text basic makes lower-case words of them",
                highlight=False,
                soft_wrap=True,
            )

    def _changes(self) -> Iterator[str]:
        """Yields what was changed or checked in the clips of a set for a voice, or of one loudness."""
        gain = self.voice["gain"]
        if trimmed := self.voice.get("trimmed"):
            yield f"silence trimmed: {trimmed['clips']:,} clips, {trimmed['seconds']:,.1f} s"
        yield (
            f"loudness: {gain['clips']:,} clips changed by {gain['lowest']:+.1f} to {gain['highest']:+.1f} dB, "
            f"{gain['limited']:,} of them remain quieter"
        )
        if rate := self.voice.get("letters_per_second"):
            speeds = (rate[name] for name in ("median", "slowest", "fastest"))
            yield "rate of speech: {:.1f} letters a second, {:.1f} to {:.1f} accepted".format(*speeds)
        elif trimmed:
            yield "rate of speech not checked: under 20 texts"


@dataclasses.dataclass(frozen=True)
class TextReport(_Report):
    """The outcome of one preparation of text.

    Attributes:
      splits, sources: by name: documents, words and bytes (UTF-8) kept; for sources also documents read.
      dropped: by reason: count, first ids, whether the data is at fault, one full message.
    """

    name: str
    splits: dict[str, dict[str, int]]
    sources: dict[str, dict[str, int]]
    dropped: dict[str, dict]

    def print(self, console: Console | None = None) -> None:
        """Prints the report for a reader."""
        console = console or Console()
        total = {name: sum(row[name] for row in self.splits.values()) for name in _COUNTS}
        console.rule(f"{self.name}: {total['documents']:,} documents, {total['bytes'] / 1e6:,.2f} MB of text")
        for heading, rows in (("split", self.splits), ("source", self.sources)):
            counts = _COUNTS if heading == "split" else ("read", *_COUNTS)
            cells = [
                (
                    escape(name),
                    *(f"{row[count]:,}" for count in counts),
                    f"{row['bytes'] / max(total['bytes'], 1):.1%}",
                )
                for name, row in rows.items()
            ]
            _print_table(console, (heading, *counts, "share"), cells, numeric=(*counts, "share"))
        self._print_dropped(console, "items")


class DroppedCounts:
    """Counts dropped items by reason."""

    def __init__(self):
        self._reasons: dict[str, dict] = {}

    def add(self, item: Dropped) -> None:
        """Counts an item; the ids of the first few of a reason are kept."""
        new = {"count": 0, "ids": [], "is_bad": item.is_bad, "detail": item.detail}
        row = self._reasons.setdefault(item.reason, new)
        row["count"] += 1
        if item.seconds:
            row["seconds"] = row.get("seconds", 0.0) + item.seconds
        if len(row["ids"]) < _EXAMPLES:
            row["ids"].append(item.id)

    def by_frequency(self) -> dict[str, dict]:
        """Returns the `dropped` of a report, the most frequent reason first."""
        return dict(sorted(self._reasons.items(), key=lambda entry: -entry[1]["count"]))


class VoiceChanges:
    """Sums what was changed in the clips of a set for a voice, or of one loudness."""

    def __init__(self):
        self._trimmed = {"clips": 0, "seconds": 0.0}
        self._gain = {"clips": 0, "seconds": 0.0, "lowest": 0.0, "highest": 0.0, "limited": 0}
        self.has_clips = self._trims = False

    def add(self, item: Converted) -> None:
        """Adds a kept clip."""
        if (change := item.change) is None:
            return
        self.has_clips = True
        self._trims |= change.trimmed is not None
        if change.trimmed is not None and change.trimmed >= _LEAST_TRIMMED:
            self._trimmed["clips"] += 1
            self._trimmed["seconds"] += change.trimmed
        if abs(change.gain) >= _LEAST_GAIN:
            self._gain["clips"] += 1
            self._gain["seconds"] += item.seconds
        self._gain["lowest"] = min(self._gain["lowest"], change.gain)
        self._gain["highest"] = max(self._gain["highest"], change.gain)
        self._gain["limited"] += change.is_limited

    def summary(self, rate: SpeechRate | None) -> dict[str, Any]:
        """Returns the `voice` of a report; of a set of one loudness, its `gain` alone.

        `trimmed` has clips and the seconds of silence removed; `gain` the clips and seconds made louder or quieter, the
        extremes in dB, and the clips that remain quieter; `letters_per_second` the rate of speech, None if unknown.
        """
        if not self._trims:
            return {"gain": self._gain}
        return {
            "trimmed": self._trimmed,
            "gain": self._gain,
            "letters_per_second": None if rate is None else rate._asdict(),
        }


def summarise(
    name: str, clips: Iterable[Converted], dropped: Iterable[Dropped], rate: SpeechRate | None = None
) -> PreparationReport:
    """Makes a report from kept clips, read once, and then from dropped ones.

    Args:
      rate: of speech, in a set for a voice.
    """
    splits: dict[str, dict[str, float]] = {}
    by_speaker: Counter[str] = Counter()
    labels = [f"<= {edge:g}" for edge in HISTOGRAM_EDGES] + [f"> {HISTOGRAM_EDGES[-1]:g}"]
    histogram = dict.fromkeys(labels, 0)
    clipped: list[str] = []
    mostly_silence: list[str] = []
    sums: Counter[str] = Counter()
    changes = VoiceChanges()
    for item in clips:
        changes.add(item)
        clip, levels, words = item.clip, item.levels, len(item.clip.text.split())
        row = splits.setdefault(clip.split, {"clips": 0, "hours": 0.0, "words": 0})
        row["clips"] += 1
        row["hours"] += item.seconds / 3600
        row["words"] += words
        if clip.speaker:
            by_speaker[clip.speaker] += item.seconds / 3600
        histogram[labels[sum(item.seconds > edge for edge in HISTOGRAM_EDGES)]] += 1
        if levels.is_clipped:
            clipped.append(clip.id)
        if levels.is_mostly_silence:
            mostly_silence.append(clip.id)
        sums["clips"] += 1
        sums["seconds"] += item.seconds
        sums["without_text"] += words == 0
        sums["as_written"] += word_characters(clip.text.lower()).split() != clip.text.split()
        sums["clipped"] += levels.clipped_share * item.seconds
        sums["silence"] += levels.silence_share * item.seconds
    counts = DroppedCounts()
    for item in dropped:
        counts.add(item)
    seconds = sums["seconds"] or 1.0
    return PreparationReport(
        name=name,
        splits={split: splits[split] for split in sorted(splits, key=split_order)},
        dropped=counts.by_frequency(),
        clips=sums["clips"],
        hours=sums["seconds"] / 3600,
        speakers=len(by_speaker),
        hours_by_speaker=dict(by_speaker.most_common(20)),
        without_text=sums["without_text"],
        histogram=histogram,
        clipped=clipped,
        clipped_share=sums["clipped"] / seconds,
        mostly_silence=mostly_silence,
        silence_share=sums["silence"] / seconds,
        voice=changes.summary(rate) if changes.has_clips else None,
        as_written=sums["as_written"],
    )


class DocumentCounts:
    """Counts documents, in total and by split and source, while they are processed."""

    def __init__(self):
        self.num_read = self.num_kept = self.num_bytes = 0
        self._splits: dict[str, dict[str, int]] = {}
        self._sources: dict[str, dict[str, int]] = {}
        self._dropped = DroppedCounts()

    def read(self, item: Document | Dropped) -> None:
        """Counts an item of the source, before cleaning."""
        self.num_read += 1
        if isinstance(item, Document):
            self._source(item)["read"] += 1

    def _source(self, document: Document) -> dict[str, int]:
        return self._sources.setdefault(document.source, dict.fromkeys(("read", *_COUNTS), 0))

    def keep(self, document: Document) -> None:
        """Counts a document that is stored."""
        words, size = len(document.text.split()), len(document.text.encode())
        self.num_kept += 1
        self.num_bytes += size
        for row in (self._splits.setdefault(document.split, dict.fromkeys(_COUNTS, 0)), self._source(document)):
            row["documents"] += 1
            row["words"] += words
            row["bytes"] += size

    def drop(self, item: Dropped) -> None:
        """Counts an item that cleaning or the source left out."""
        self._dropped.add(item)

    def report(self, name: str) -> TextReport:
        """Returns the report of a set called `name`."""
        return TextReport(name=name, splits=self._splits, sources=self._sources, dropped=self._dropped.by_frequency())
