"""What a preparation of text kept and dropped."""

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.paths import AnyPath
from data_pipelines.text.documents import Document
from data_pipelines.text.normalize import without_held_out

_EXAMPLES = 5
_COUNTS = ("documents", "words", "bytes")


@dataclasses.dataclass(frozen=True)
class TextReport:
    """The outcome of one preparation of text; `report.json` holds the same.

    Attributes:
      name: of the prepared set.
      splits, sources: by name: documents, words and bytes (UTF-8) kept; of sources also the documents read.
      dropped: by reason: count, first ids, whether the data is at fault, one whole message.
    """

    name: str
    splits: dict[str, dict[str, int]]
    sources: dict[str, dict[str, int]]
    dropped: dict[str, dict]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: AnyPath) -> "TextReport":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def print(self, console: Console | None = None) -> None:
        """Prints the report for a reader."""
        console = console or Console()
        total = {name: sum(row[name] for row in self.splits.values()) for name in _COUNTS}
        console.rule(f"{self.name}: {total['documents']:,} documents, {total['bytes'] / 1e6:,.2f} MB of text")
        for heading, rows in (("split", self.splits), ("source", self.sources)):
            columns = (heading, *(("read",) if heading == "source" else ()), *_COUNTS, "share")
            table = Table()
            for column in columns:
                table.add_column(column, justify="left" if column == heading else "right")
            for name, row in rows.items():
                counts = [f"{row[column]:,}" for column in columns[1:-1]]
                table.add_row(escape(name), *counts, f"{row['bytes'] / max(total['bytes'], 1):.1%}")
            console.print(table)
        if missing := without_held_out(self.splits):
            console.print(f"[bold yellow]warning: {missing}", soft_wrap=True)
        if self.dropped:
            table = Table()
            for heading in ("dropped", "items", "for example"):
                table.add_column(heading, justify="right" if heading == "items" else "left", overflow="fold")
            for reason, row in self.dropped.items():
                example = row["detail"] or ", ".join(row["ids"])
                table.add_row(reason, f"{row['count']:,}", escape(example[:300]))
            console.print(table)


class Tally:
    """Counts while documents pass by."""

    def __init__(self):
        self.num_read = self.num_kept = self.num_bytes = 0
        self._splits: dict[str, dict[str, int]] = {}
        self._sources: dict[str, dict[str, int]] = {}
        self._dropped: dict[str, dict] = {}

    def read(self, item: Document | Dropped) -> None:
        self.num_read += 1
        if isinstance(item, Document):
            self._source(item)["read"] += 1

    def _source(self, document: Document) -> dict[str, int]:
        return self._sources.setdefault(document.source, dict.fromkeys(("read", *_COUNTS), 0))

    def keep(self, document: Document) -> None:
        words, size = len(document.text.split()), len(document.text.encode())
        self.num_kept += 1
        self.num_bytes += size
        for row in (self._splits.setdefault(document.split, dict.fromkeys(_COUNTS, 0)), self._source(document)):
            row["documents"] += 1
            row["words"] += words
            row["bytes"] += size

    def drop(self, item: Dropped) -> None:
        new = {"count": 0, "ids": [], "is_bad": item.is_bad, "detail": item.detail}
        row = self._dropped.setdefault(item.reason, new)
        row["count"] += 1
        if len(row["ids"]) < _EXAMPLES:
            row["ids"].append(item.id)

    def report(self, name: str) -> TextReport:
        return TextReport(
            name=name,
            splits=self._splits,
            sources=self._sources,
            dropped=dict(sorted(self._dropped.items(), key=lambda entry: -entry[1]["count"])),
        )
