"""What a preparation kept and dropped, and how the kept clips look."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_pipelines.clips import Dropped

# Upper edges of the duration histogram in seconds; the last bin is open.
HISTOGRAM_EDGES = (0.5, 1, 2, 4, 8, 16, 32, 64)
_EXAMPLES = 5


@dataclass(frozen=True)
class ClipSummary:
    """What the report needs to know of a kept clip."""

    id: str
    split: str
    speaker: str
    seconds: float
    words: int
    is_clipped: bool
    is_mostly_silence: bool
    clipped_share: float
    silence_share: float


@dataclass(frozen=True)
class Report:
    """The outcome of one preparation; `report.json` holds the same.

    Attributes:
      name: of the prepared set.
      splits: by name: clips, hours, words.
      dropped: by reason: count, first ids, whether the data is at fault, one whole message.
      clips, hours, speakers: totals of what was kept; an unknown speaker is not counted.
      hours_by_speaker: the twenty with most speech.
      without_text: kept clips with an empty transcript; good for pretraining only.
      histogram: by upper edge in seconds: clips.
      clipped: ids of kept clips with samples at the rails; `clipped_share` is of all samples.
      mostly_silence: ids of kept clips that are mostly silence; `silence_share` is of the total duration.
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

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Report":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def print(self, console: Console | None = None) -> None:
        """Prints the report for a reader."""
        console = console or Console()
        console.rule(f"{self.name}: {self.clips:,} clips, {self.hours:.2f} h, {self.speakers:,} known speakers")
        table = Table()
        for heading in ("split", "clips", "minutes", "words"):
            table.add_column(heading, justify="left" if heading == "split" else "right")
        for split, row in self.splits.items():
            table.add_row(split, f"{row['clips']:,}", f"{60 * row['hours']:.1f}", f"{row['words']:,}")
        console.print(table)
        if self.dropped:
            table = Table()
            for heading in ("dropped", "clips", "for example"):
                table.add_column(heading, justify="right" if heading == "clips" else "left", overflow="fold")
            for reason, row in self.dropped.items():
                table.add_row(reason, f"{row['count']:,}", escape(row["detail"] or ", ".join(row["ids"])))
            console.print(table)
        most = max(self.histogram.values(), default=0)
        for edge, count in self.histogram.items():
            console.print(f"{edge:>8} s {count:>8,} {'█' * round(40 * count / max(most, 1))}", highlight=False)
        console.print(
            f"clipping: {len(self.clipped):,} clips, {100 * self.clipped_share:.3f} % of samples; "
            f"silence: {100 * self.silence_share:.1f} % of the time, {len(self.mostly_silence):,} clips mostly silent; "
            f"without text: {self.without_text:,}",
            highlight=False,
        )


def summarise(name: str, clips: Sequence[ClipSummary], dropped: Iterable[Dropped]) -> Report:
    """Gathers a report over kept and dropped clips."""
    splits: dict[str, dict[str, float]] = {}
    by_speaker: Counter[str] = Counter()
    labels = [f"<= {edge:g}" for edge in HISTOGRAM_EDGES] + [f"> {HISTOGRAM_EDGES[-1]:g}"]
    histogram = dict.fromkeys(labels, 0)
    for clip in clips:
        row = splits.setdefault(clip.split, {"clips": 0, "hours": 0.0, "words": 0})
        row["clips"] += 1
        row["hours"] += clip.seconds / 3600
        row["words"] += clip.words
        if clip.speaker:
            by_speaker[clip.speaker] += clip.seconds / 3600
        histogram[labels[sum(clip.seconds > edge for edge in HISTOGRAM_EDGES)]] += 1
    reasons: dict[str, dict] = {}
    for item in dropped:
        row = reasons.setdefault(item.reason, {"count": 0, "ids": [], "is_bad": item.is_bad, "detail": item.detail})
        row["count"] += 1
        if len(row["ids"]) < _EXAMPLES:
            row["ids"].append(item.id)
    seconds = sum(clip.seconds for clip in clips) or 1.0
    return Report(
        name=name,
        splits=splits,
        dropped=dict(sorted(reasons.items(), key=lambda entry: -entry[1]["count"])),
        clips=len(clips),
        hours=sum(clip.seconds for clip in clips) / 3600,
        speakers=len(by_speaker),
        hours_by_speaker=dict(by_speaker.most_common(20)),
        without_text=sum(clip.words == 0 for clip in clips),
        histogram=histogram,
        clipped=[clip.id for clip in clips if clip.is_clipped],
        clipped_share=sum(clip.clipped_share * clip.seconds for clip in clips) / seconds,
        mostly_silence=[clip.id for clip in clips if clip.is_mostly_silence],
        silence_share=sum(clip.silence_share * clip.seconds for clip in clips) / seconds,
    )
