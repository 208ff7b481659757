"""Documents to a prepared set of text: they lie in the index itself.

<set>/index/<split>.parquet  id, text, language, source, label, num_bytes (UTF-8)
<set>/meta.json              what the set is; its presence says that the set is whole
<set>/report.json            what was kept and dropped
"""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.errors import DataError, disk_full, is_disk_full
from data_pipelines.prepare.convert import too_many_bad
from data_pipelines.prepare.speech_store import META, file_sha256, write_json
from data_pipelines.prepare.text_report import Tally, TextReport
from data_pipelines.text.cleaning import Cleaning, clean
from data_pipelines.text.documents import Document, TextSource
from data_pipelines.text.normalize import NORMALISER_VERSION, split_key, split_order, text_split_of

_STRINGS = ("id", "text", "language", "source", "label")
_SCHEMA = pa.schema([(name, pa.large_string()) for name in _STRINGS] + [("num_bytes", pa.int64())])
_ROW_GROUP = 8 * 2**20  # characters
_FEW = 1000  # the share of bad items is judged from so many on, so that a first bad line stops nothing


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

    A document's split is its source's, or falls by the digest of its words before cleaning: a tenth is test, 2 % dev,
    whatever the steps, and what a step cuts out of a document stays in its split.

    Args:
      request: the arguments that shaped the set, so that the same call later finds it done.
      sentences: the texts of the sets that `cleaning.held_out` names.
      max_bad: share of items that may be bad before the run stops.
      num_workers: processes that clean.

    Raises:
      DataError: too many bad items, a full disk, nothing kept.
    """
    partial = folder / "index.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (folder / META).unlink(missing_ok=True)
    console = Console(stderr=True)
    tally = Tally()
    try:
        with _Writers(partial) as writers:
            items = clean(_read(source, tally), cleaning, list(sentences), num_workers=num_workers)
            for item in _watched(items, source.name, tally, max_bad, console):
                writers.write(item)
        report = tally.report(source.name)
        if not report.splits:
            report.print(console)
            raise DataError(
                f"{source.name}: nothing is left of {tally.num_read:,} documents; the table above says why."
            )
        report.save(folder / "report.json")
        shutil.rmtree(folder / "index", ignore_errors=True)
        os.replace(partial, folder / "index")
        splits = {
            split: {
                "num_documents": report.splits[split]["documents"],
                "num_bytes": report.splits[split]["bytes"],
                "index": f"index/{split}.parquet",
                "index_sha256": file_sha256(folder / "index" / f"{split}.parquet"),
            }
            for split in sorted(report.splits, key=split_order)
        }
        meta = {"name": source.name, "kind": "text", "licence": source.licence, "source": source.origin}
        write_json(folder / META, meta | {"splits": splits, "normaliser": NORMALISER_VERSION, "request": request})
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full(folder, tally.num_bytes) from error
    return report


def _read(source: TextSource, tally: Tally) -> Iterator[Document | Dropped]:
    """The documents of a source, counted, each with its split."""
    for item in source.documents():
        tally.read(item)
        if isinstance(item, Document) and not item.split:
            item = dataclasses.replace(item, split=text_split_of(split_key(item.text)))
        yield item


def _watched(
    items: Iterable[Document | Dropped], name: str, tally: Tally, max_bad: float, console: Console
) -> Iterator[Document]:
    """The documents that are kept, while all is counted, progress shown and bad items are few enough."""
    bad: list[Dropped] = []

    def check(num_read: int) -> None:
        if len(bad) > max_bad * num_read:
            raise too_many_bad(bad, int(max_bad * num_read))

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{name}: clean text", total=None)
        for number, item in enumerate(items):
            if isinstance(item, Document):
                tally.keep(item)
                yield item
            else:
                tally.drop(item)
                if item.is_bad:
                    bad.append(item)
                    check(max(tally.num_read, _FEW))
            if number % 500 == 0:
                kept = f"{tally.num_kept:,} documents kept, {tally.num_bytes / 1e6:,.1f} MB"
                progress.update(task, description=f"{name}: {kept}")
    check(tally.num_read)


class _Writers:
    """One index file a split, written a row group at a time."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, pq.ParquetWriter] = {}
        self._rows: dict[str, list[Document]] = {}
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> "_Writers":
        return self

    def write(self, document: Document) -> None:
        self._rows.setdefault(document.split, []).append(document)
        self._sizes[document.split] = self._sizes.get(document.split, 0) + len(document.text)
        if self._sizes[document.split] > _ROW_GROUP:
            self._flush(document.split)

    def _flush(self, split: str) -> None:
        if split not in self._files:
            self._files[split] = pq.ParquetWriter(self._folder / f"{split}.parquet", _SCHEMA, compression="zstd")
        rows = self._rows.pop(split, [])
        columns: dict[str, list] = {name: [getattr(row, name) for row in rows] for name in _STRINGS}
        columns["num_bytes"] = [len(row.text.encode()) for row in rows]
        self._files[split].write_table(pa.table(columns, schema=_SCHEMA))
        self._sizes[split] = 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for split in list(self._rows):
                self._flush(split)
        for file in self._files.values():
            file.close()
