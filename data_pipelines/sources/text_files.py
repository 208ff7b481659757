"""A user's own text: .txt, .jsonl and .parquet files, found by glob patterns, plain or compressed.

- `.txt`: a document is a line, a paragraph (ended by a blank line) or the file, as `unit` requests;
- `.jsonl`: an object per line with `text`, and optionally `id`, `language`, `source`, `label`, `target`,
  `split`;
- `.parquet`: the same names as columns, read some thousand rows at a time.

The names of the first two may also end in .gz, .bz2, .xz or .zst. The default id is the file and the number within it.
"""

import bz2
import codecs
import functools
import glob
import gzip
import hashlib
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import MAX_LINE, byte_blocks, byte_lines, check_storable, parse_json, storable, too_long
from data_pipelines.text.documents import Document, TextSource
from data_pipelines.text.normalize import usual_split

Unit = Literal["line", "paragraph", "file"]
ReadLines = Callable[[Path], Iterator[tuple[int, str | Dropped]]]

_OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda path: pa.CompressedInputStream(str(path), "zstd"),
}
_KINDS = (".txt", ".jsonl", ".parquet")
_OPTIONAL = ("id", "language", "source", "label", "target", "split")
_SPLIT_NAME = re.compile(r"\w+", re.ASCII)
_UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException)


def text_files(
    patterns: Sequence[str], name: str, *, unit: Unit, encoding: str, max_line: int = MAX_LINE
) -> TextSource:
    """Describes the files that match `patterns` as a set called `name`.

    Args:
      patterns: paths or glob patterns; `**` matches any number of folders.
      unit: the part of a .txt file that is a document.
      encoding: of .txt and .jsonl files, by its Python name.

    Returns:
      The set, whose documents are read when they are needed.

    Raises:
      DataError: a pattern matches nothing, a file is of an unknown type, or the encoding is unknown.
    """
    try:
        "\n".encode(encoding)
    except (LookupError, ValueError) as error:
        raise DataError(f"--encoding {encoding}: not an encoding of Python; try utf-8, latin-1 or cp1252.") from error
    paths: list[Path] = []
    for pattern in patterns:
        matches = sorted(filter(os.path.isfile, glob.glob(os.path.expanduser(pattern), recursive=True)))
        if not matches:
            raise DataError(
                f"--text {pattern}: no such file; give a path, or a pattern in quotes such as 'corpus/*.txt.gz'."
            )
        paths += map(Path, matches)
    paths = list(dict.fromkeys(paths))
    for path in paths:
        if _kind(path) not in _KINDS:
            raise DataError(
                f"{path}: not one of {', '.join(_KINDS)} (with or without {', '.join(_OPENERS)}); rename or convert it."
            )
    return TextSource(
        name=name,
        licence="of the user's own data",
        origin={str(path): _stamp(path) for path in paths},
        documents=lambda: _documents(paths, unit, functools.partial(_lines, encoding=encoding, max_line=max_line)),
    )


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in _OPENERS else path.suffix


def _stamp(path: Path) -> str:
    """Returns a string that changes when the file does; a digest of gigabytes would take longer than preparing them
    again.
    """
    stat = path.stat()
    return hashlib.sha1(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]


def _documents(paths: Sequence[Path], unit: Unit, read_lines: ReadLines) -> Iterator[Document | Dropped]:
    root = os.path.commonpath([path.absolute().parent for path in paths])
    given_ids: set[str] = set()
    for path in paths:
        name = os.path.relpath(path.absolute(), root)
        if path.stat().st_size == 0:
            yield Dropped(name, "empty file", True, f"{path}: empty file; fill or remove it")
            continue
        try:
            if _kind(path) == ".parquet":
                rows = _parquet(path)
            elif _kind(path) == ".jsonl":
                rows = _jsonl(path, read_lines)
            else:
                rows = _plain(path, unit, read_lines)
            for number, row in rows:
                yield _document(row, path, f"{name}:{number}", given_ids)
        except _UNREADABLE as error:
            detail = f"{path}: cannot be read ({error}); the file may be damaged or cut short: copy it again"
            yield Dropped(name, "unreadable file", True, detail)


def _document(row: Any, path: Path, location: str, given_ids: set[str]) -> Document | Dropped:
    if isinstance(row, Dropped):
        return row
    try:
        if not isinstance(row, dict):
            raise ValueError('expected an object with a string "text"')
        if not isinstance(row.get("text"), str):
            others = ", ".join(f'"{key}"' for key in row if key != "text") or "nothing else"
            raise ValueError(f'expected a string "text", found {row.get("text")!r}; the row has {others}')
        if not row["text"].isascii():
            check_storable("text", row["text"].replace("\0", ""))  # cleaning removes control characters
        fields = {key: storable(key, row[key]) for key in _OPTIONAL if row.get(key) is not None}
        if "target" in fields:
            fields["target"] = fields["target"].replace("\0", "").strip()
        if "split" in fields and not _SPLIT_NAME.fullmatch(fields["split"]):
            raise ValueError(f'"split" must be letters, digits and underscores, found {fields["split"]!r}')
        fields |= {"split": usual_split(fields["split"])} if "split" in fields else {}
    except ValueError as error:
        return Dropped(location, "malformed row", True, f"{path}, {location}: {error}; correct or remove the row")
    if "id" in fields:
        if fields["id"] in given_ids:
            detail = (
                f"{path}, {location}: the id {fields['id']!r} occurs twice; the first is kept, give the second its own"
            )
            return Dropped(fields["id"], "duplicate id", True, detail)
        given_ids.add(fields["id"])
    return Document(**{"id": location, "source": path.name.partition(".")[0]} | fields, text=row["text"])


def _parquet(path: Path) -> Iterator[tuple[int, dict]]:
    with pq.ParquetFile(path) as file:
        columns = [name for name in ("text", *_OPTIONAL) if name in file.schema_arrow.names]
        if "text" not in columns:
            raise DataError(
                f"{path}: no column is called 'text', only {', '.join(file.schema_arrow.names)}; rename the one that "
                "holds the text"
            )
        number = 0
        for batch in file.iter_batches(4096, columns=columns):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                rows = [_parquet_row(batch, row, f"{path.name}:{number + row}") for row in range(len(batch))]
            for row in rows:
                yield number, row
                number += 1


def _parquet_row(batch: pa.RecordBatch, row: int, location: str) -> dict | Dropped:
    try:
        return batch.slice(row, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return Dropped(location, "wrong encoding", True, f"{location} is not UTF-8 ({error}); write the file again")


def _jsonl(path: Path, read_lines: ReadLines) -> Iterator[tuple[int, Any]]:
    for number, line in read_lines(path):
        if isinstance(line, Dropped):
            yield number, line
        elif line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                detail = f"{path}:{number}: not JSON ({error}); correct or remove the line"
                yield number, Dropped(f"{path.name}:{number}", "malformed line", True, detail)


def _plain(path: Path, unit: Unit, read_lines: ReadLines) -> Iterator[tuple[int, Any]]:
    """Yields the documents of a text file, each with the number of its first line."""
    pending: list[str] = []
    start = 1
    for number, line in read_lines(path):
        if isinstance(line, Dropped):
            yield number, line
        elif unit == "line":
            if line.strip():
                yield number, {"text": line}
        elif line.strip() or unit == "file":
            start = start if pending else number
            pending.append(line)
        elif pending:
            yield start, {"text": "".join(pending)}
            pending = []
    if pending:
        yield start, {"text": "".join(pending)}


def _lines(path: Path, encoding: str, max_line: int) -> Iterator[tuple[int, str | Dropped]]:
    """Yields lines with their numbers from 1; a line that is too long, or not in `encoding`, is a bad item."""
    with _OPENERS[path.suffix](path) if path.suffix in _OPENERS else path.open("rb") as file:
        blocks, is_text = byte_blocks(file), "\n".encode(encoding) != b"\n"
        if is_text:  # a line feed is not a single byte, as in UTF-16
            blocks = (text.encode() for text in codecs.iterdecode(blocks, encoding))
        try:
            for number, offset, line in byte_lines(blocks, max_line):
                if line is None:
                    detail = f"{path}, line {number}: {too_long(max_line)}"
                    yield number, Dropped(f"{path.name}:{number}", "line too long", True, detail)
                    continue
                try:
                    yield (
                        number,
                        line.decode("utf-8" if is_text else encoding).removeprefix("\ufeff" if number == 1 else ""),
                    )
                except UnicodeDecodeError as error:
                    location = f"byte {offset + error.start} (line {number})"
                    yield number, _wrong_encoding(path, number, location, encoding)
        except UnicodeDecodeError:
            yield 0, _wrong_encoding(path, 0, "the file", encoding)


def _wrong_encoding(path: Path, number: int, location: str, encoding: str) -> Dropped:
    detail = f"{path}: {location} is not {encoding}; name the encoding with --encoding, such as latin-1, or write the "
    return Dropped(f"{path.name}:{number}", "wrong encoding", True, detail + "file as UTF-8")
