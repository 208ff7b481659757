"""Lines and JSON objects of users' files: read in linear time, bounded in length, with strings that can be stored."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, TypeVar

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import AnyPath

T = TypeVar("T")

MAX_LINE = 2**24  # bytes; the longest book of Project Gutenberg has some ten million
_BLOCK_BYTES = 2**20


class Line(NamedTuple):
    """One line of a file.

    Attributes:
      number: counted from 1.
      offset: position of its first byte in the file.
      content: bytes including the line feed; None where the line is longer than the limit.
    """

    number: int
    offset: int
    content: bytes | None


def byte_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yields the blocks of a binary file: not every compressed file can be read by lines."""
    return iter(lambda: file.read(_BLOCK_BYTES), b"")


def byte_lines(blocks: Iterable[bytes], max_line: int = MAX_LINE) -> Iterator[Line]:
    """Yields the lines, ended by line feeds, of a file's blocks.

    Args:
      max_line: bytes; the content of a longer line is None, and is not held in memory.
    """
    number, offset, length = 1, 0, 0
    pending: list[bytes] = []
    for block in blocks:
        *ends, rest = block.split(b"\n")
        for piece in ends:
            pending.append(piece)
            length += len(piece) + 1
            yield Line(number, offset, b"".join(pending) + b"\n" if length <= max_line else None)
            number, offset, length = number + 1, offset + length, 0
            pending.clear()
        length += len(rest)
        pending.append(rest)
        if length > max_line:
            pending.clear()
    if length:
        yield Line(number, offset, b"".join(pending) if length <= max_line else None)


def text_lines(path: AnyPath, max_line: int = MAX_LINE) -> Iterator[tuple[int, str]]:
    """Reads the lines of a UTF-8 file, without line ends and byte order mark.

    Only line feeds end lines: JSON may contain the other line separators of Unicode.

    Args:
      max_line: longest line that is accepted, in bytes.

    Returns:
      Pairs of a line's number, from 1, and its text.

    Raises:
      FileNotFoundError: the file does not exist.
      DataError: it cannot be read, is not UTF-8, or a line is too long or contains a NUL.
    """
    location = str(path)
    try:
        with path.open("rb") as file:
            for number, _, content in byte_lines(byte_blocks(file), max_line):
                location = f"{path}, line {number}"
                if content is None:
                    raise DataError(f"{location}: {too_long(max_line)}")
                text = content.decode().removeprefix("\ufeff" if number == 1 else "").removesuffix("\n")
                if "\0" in text:
                    raise DataError(f"{location}: holds a NUL character: write the file as UTF-8 text")
                yield number, text.removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{location} is not UTF-8 (byte {error.start}): convert the file, for example with iconv"
        ) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a file of lines") from error


def csv_rows(path: AnyPath) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads the rows of a CSV file as dictionaries keyed by the names in its first line.

    Returns:
      Pairs of the number of a row's last line and the row.

    Raises:
      FileNotFoundError: the file does not exist.
      DataError: as `text_lines`, or the file is not CSV.
    """
    reader = csv.DictReader(line + "\n" for _, line in text_lines(path))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1}: not CSV ({error}): write the file again") from error


def parsed_objects(path: AnyPath, parse: Callable[[dict[str, Any]], T], remedy: str) -> Iterator[T]:
    """Parses the JSON objects of a file, one a line; empty lines are skipped.

    Args:
      parse: makes a record of an object; its ValueError, TypeError or KeyError says what is wrong.
      remedy: what the file should be, for errors.

    Raises:
      DataError: as `text_lines`, the file does not exist, or a line is no object or not parsed.
    """
    try:
        for number, line in text_lines(path):
            if line.strip():
                try:
                    yield parse(parse_object(line))
                except KeyError as error:
                    raise DataError(f"{path}, line {number}: lacks {error}: {remedy}") from error
                except (ValueError, TypeError) as error:
                    raise DataError(f"{path}, line {number}: {error}") from error
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: {remedy}") from None


def too_long(max_line: int = MAX_LINE) -> str:
    """Returns the message for a line that is longer than `max_line` bytes."""
    return f"longer than {max_line:,} bytes: break it into lines"


def parse_object(line: bytes | str) -> dict[str, Any]:
    """Parses the JSON object of a line.

    Raises:
      ValueError: as `parse_json`, or the value is not an object.
    """
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def parse_json(line: bytes | str) -> Any:
    """Parses the JSON value of a line.

    Raises:
      ValueError: the line is not JSON, is nested too deeply, or an object has a key twice.
    """
    try:
        if isinstance(line, bytes):
            line = line.decode(json.detect_encoding(line), "surrogatepass")
        return _DECODER.decode(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'"{next(key for key in keys if keys.count(key) > 1)}" occurs twice in one object')
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct)


def storable(key: str, value: Any) -> str:
    """Returns a string or an integer of a user's row as a string.

    Raises:
      ValueError: it is of another type, or cannot be stored (`check_storable`).
    """
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f'"{key}" must be a string, found {value!r}')
    check_storable(key, str(value))
    return str(value)


def check_storable(key: str, value: str) -> None:
    """Checks that a string can be stored and used as a path.

    Raises:
      ValueError: it contains a NUL or half a surrogate pair.
    """
    if "\0" in value:
        raise ValueError(f'"{key}" holds a NUL character')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise ValueError(f'"{key}" holds half a surrogate pair, {half}, which is no character') from error
