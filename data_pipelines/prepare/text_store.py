"""Storing of documents as a prepared set of text. The documents are in the index itself:

<set>/index/<split>.parquet  id, text, language, source, label, target, num_bytes (UTF-8)
<set>/meta.json              description of the set; it exists once the set is complete
<set>/report.json            counts of kept and dropped documents
"""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.errors import disk_full_as_data_error
from data_pipelines.prepare.convert import check_bad, nothing_left
from data_pipelines.prepare.prepared_set import IndexWriters, write_meta
from data_pipelines.prepare.report import DocumentCounts, TextReport
from data_pipelines.storage.index import META
from data_pipelines.text.cleaning import Cleaning, clean
from data_pipelines.text.documents import Document, TextSource
from data_pipelines.text.normalize import split_key, split_order, text_split_of

_STRINGS = ("id", "text", "language", "source", "label", "target")
_SCHEMA = pa.schema([(name, pa.large_string()) for name in _STRINGS] + [("num_bytes", pa.int64())])
_ROW_GROUP = 8 * 2**20 + 1  # characters
_MIN_READ = 1000  # the share of bad items is judged as if this number had been read: one bad first line stops nothing


def prepare_text(
    source: TextSource,
    folder: Path,
    request: dict[str, Any],
    cleaning: Cleaning,
    sentences: Iterable[str],
    *,
    max_bad: float,
    num_workers: int = 1,
) -> TextReport:
    """Cleans the documents of `source` and stores them in `folder`.

    A document keeps the split of its source. Otherwise the digest of its words before cleaning decides, independently
    of the cleaning steps: a tenth is test, 2 % dev. The parts into which a step divides a document stay in its split.

    Args:
      request: the arguments that decide the content of the set, so that the same call later finds it.
      sentences: the texts of the sets in `cleaning.held_out`.
      max_bad: share of items that may be bad before the run stops.

    Returns:
      Counts of kept and dropped documents.

    Raises:
      DataError: too many bad items, a full disk, or no document is left.
    """
    partial = folder / "index.partial"
    (folder / META).unlink(missing_ok=True)
    console = Console(stderr=True)
    counts = DocumentCounts()
    with disk_full_as_data_error(folder, lambda: counts.num_bytes):
        with IndexWriters(partial, _SCHEMA, row_group=_ROW_GROUP, compression="zstd") as writers:
            items = clean(_read(source, counts), cleaning, list(sentences), num_workers=num_workers)
            for item in _watched(items, source.name, counts, max_bad, console):
                row = (*(getattr(item, name) for name in _STRINGS), len(item.text.encode()))
                writers.write(item.split, row, len(item.text))
        report = counts.report(source.name)
        if not report.splits:
            report.print(console)
            raise nothing_left(source.name, f"{counts.num_read:,} documents")
        report.save(folder / "report.json")
        shutil.rmtree(folder / "index", ignore_errors=True)
        os.replace(partial, folder / "index")
        splits = [
            (split, {"num_documents": row["documents"], "num_bytes": row["bytes"]})
            for split, row in sorted(report.splits.items(), key=lambda entry: split_order(entry[0]))
        ]
        description = {"name": source.name, "kind": "text", "licence": source.licence, "source": source.origin}
        write_meta(folder, description, splits, request)
    return report


def _read(source: TextSource, counts: DocumentCounts) -> Iterator[Document | Dropped]:
    """Counts the documents of a source and assigns each to a split."""
    for item in source.documents():
        counts.read(item)
        if isinstance(item, Document) and not item.split:
            item = dataclasses.replace(item, split=text_split_of(split_key(item.text)))
        yield item


def _watched(
    items: Iterable[Document | Dropped], name: str, counts: DocumentCounts, max_bad: float, console: Console
) -> Iterator[Document]:
    """Yields the kept documents; counts all items, shows the progress, and stops at too many bad items."""
    bad: list[Dropped] = []

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{name}: clean text", total=None)
        for number, item in enumerate(items):
            if isinstance(item, Document):
                counts.keep(item)
                yield item
            else:
                counts.drop(item)
                if item.is_bad:
                    bad.append(item)
                    check_bad(bad, int(max_bad * max(counts.num_read, _MIN_READ)))
            if number % 500 == 0:
                kept = f"{counts.num_kept:,} documents kept, {counts.num_bytes / 1e6:,.1f} MB"
                progress.update(task, description=f"{name}: {kept}")
    check_bad(bad, int(max_bad * counts.num_read))
