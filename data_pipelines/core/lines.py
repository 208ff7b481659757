"""Lines and JSON objects of users' files: read in linear time, bounded in length, strings that can be stored."""

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import AnyPath

MAX_LINE = 2**24  # bytes; the longest book of Project Gutenberg has some ten million
_BLOCK = 2**20  # bytes


class Line(NamedTuple):
    """One line of a file.

    Attributes:
      number: from 1.
      offset: of its first byte.
      content: with its line feed; None where it is longer than `MAX_LINE`.
    """

    number: int
    offset: int
    content: bytes | None


def byte_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of a binary file; not all compressed files can be read by lines."""
    return iter(lambda: file.read(_BLOCK), b"")


def byte_lines(blocks: Iterable[bytes]) -> Iterator[Line]:
    """Lines, ended by line feeds, of a file's blocks; a line that is too long is not held in memory."""
    number, offset, length = 1, 0, 0
    pending: list[bytes] = []
    for block in blocks:
        *ends, rest = block.split(b"\n")
        for piece in ends:
            pending.append(piece)
            length += len(piece) + 1
            yield Line(number, offset, b"".join(pending) + b"\n" if length <= MAX_LINE else None)
            number, offset, length = number + 1, offset + length, 0
            pending.clear()
        length += len(rest)
        pending.append(rest)
        if length > MAX_LINE:
            pending.clear()
    if length:
        yield Line(number, offset, b"".join(pending) if length <= MAX_LINE else None)


def text_lines(path: AnyPath) -> Iterator[tuple[int, str]]:
    """Numbers, from 1, and text of the lines of a UTF-8 file, without line ends and byte order mark.

    Only line feeds end lines: JSON may hold the line separators that Unicode knows besides.

    Raises:
      FileNotFoundError: there is no such file.
      DataError: it cannot be read, is not UTF-8, or a line is too long or holds a NUL.
    """
    place = str(path)
    try:
        with path.open("rb") as file:
            for number, _, content in byte_lines(byte_blocks(file)):
                place = f"{path}, line {number}"
                if content is None:
                    raise DataError(f"{place}: {too_long()}")
                text = content.decode().removeprefix("\ufeff" if number == 1 else "").removesuffix("\n")
                if "\0" in text:
                    raise DataError(f"{place}: holds a NUL character: write the file as UTF-8 text")
                yield number, text.removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place} is not UTF-8 (byte {error.start}): convert the file, for example with iconv"
        ) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a file of lines") from error


def csv_rows(path: AnyPath) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file by the names in its first line, with the numbers of their last lines.

    Raises: as `text_lines`, and DataError where it is no CSV.
    """
    reader = csv.DictReader(line + "\n" for _, line in text_lines(path))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1}: no CSV ({error}): write the file again") from error


def too_long() -> str:
    """What to say of a line that is longer than `MAX_LINE`."""
    return f"longer than {MAX_LINE:,} bytes: break it into lines"


def parse_object(line: bytes | str) -> dict[str, Any]:
    """The JSON object of a line; ValueError where it is no JSON or no object."""
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def parse_json(line: bytes | str) -> Any:
    """The JSON value of a line; ValueError where it is no JSON, nested too deeply, or has a key twice."""
    try:
        return json.loads(line, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'"{next(key for key in keys if keys.count(key) > 1)}" stands twice in one object')
    return row


def check_storable(key: str, value: str) -> None:
    """Raises ValueError for strings that are no paths and cannot be stored: with NUL, or half a surrogate pair."""
    if "\0" in value:
        raise ValueError(f'"{key}" holds a NUL character')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise ValueError(f'"{key}" holds half a surrogate pair, {half}, which is no character') from error
