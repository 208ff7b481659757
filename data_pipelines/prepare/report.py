"""What a preparation kept and dropped, and how the kept clips look."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.paths import AnyPath
from data_pipelines.prepare.convert import Converted
from data_pipelines.text.normalize import split_order, without_held_out

# Upper edges of the duration histogram in seconds; the last bin is open.
HISTOGRAM_EDGES = (0.5, 1, 2, 4, 8, 16, 32, 64)
_EXAMPLES = 5


@dataclass(frozen=True)
class PreparationReport:
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
    def load(cls, path: AnyPath) -> "PreparationReport":
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
        if missing := without_held_out(self.splits):
            console.print(f"[bold yellow]warning: {missing}", soft_wrap=True)
        most = max(self.histogram.values(), default=0)
        for edge, count in self.histogram.items():
            console.print(f"{edge:>8} s {count:>8,} {'█' * round(40 * count / max(most, 1))}", highlight=False)
        console.print(
            f"clipping: {len(self.clipped):,} clips, {100 * self.clipped_share:.3f} % of samples; "
            f"silence: {100 * self.silence_share:.1f} % of the time, {len(self.mostly_silence):,} clips mostly silent; "
            f"without text: {self.without_text:,}",
            highlight=False,
        )


def summarise(name: str, clips: Iterable[Converted], dropped: Iterable[Dropped]) -> PreparationReport:
    """Gathers a report over kept clips, in one pass, and then over dropped ones."""
    splits: dict[str, dict[str, float]] = {}
    by_speaker: Counter[str] = Counter()
    labels = [f"<= {edge:g}" for edge in HISTOGRAM_EDGES] + [f"> {HISTOGRAM_EDGES[-1]:g}"]
    histogram = dict.fromkeys(labels, 0)
    clipped: list[str] = []
    mostly_silence: list[str] = []
    sums: Counter[str] = Counter()
    for item in clips:
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
        sums["clipped"] += levels.clipped_share * item.seconds
        sums["silence"] += levels.silence_share * item.seconds
    reasons: dict[str, dict] = {}
    for each in dropped:
        row = reasons.setdefault(each.reason, {"count": 0, "ids": [], "is_bad": each.is_bad, "detail": each.detail})
        row["count"] += 1
        if len(row["ids"]) < _EXAMPLES:
            row["ids"].append(each.id)
    seconds = sums["seconds"] or 1.0
    return PreparationReport(
        name=name,
        splits={split: splits[split] for split in sorted(splits, key=split_order)},
        dropped=dict(sorted(reasons.items(), key=lambda entry: -entry[1]["count"])),
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
    )
