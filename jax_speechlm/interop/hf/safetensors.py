"""Reader of safetensors files: each array is a read-only view of its file, and no byte is read before it is used.

A file holds eight bytes with the length of the header, a JSON header of that length, and the arrays' bytes. Every value
of a header is checked against the file before any of it is used: no array reaches outside the file, none overlaps
another, and nothing is allocated for it. The header is decoded one array at a time, because JSON decoded as a whole can
take thirty times its length in memory. Format: https://github.com/huggingface/safetensors, "Format".

The library `safetensors` (0.8) writes the files but does not read them here. `safe_open` holds the checks of offsets
and gaps, but it accepts a name twice, shapes such as [0, 2**59, 2**59], any number of axes, and headers of up to
100 MB (a malformed one of 6 MiB took 250 MB of memory before it was refused), and its `get_tensor` copies.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jax_speechlm.interop.folders import ExportError

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
"""The types that parameters are read from; all become float32 without loss."""

_INTEGERS = {"I64": np.dtype(np.int64), "I32": np.dtype(np.int32)}
_BUFFERS = "num_batches_tracked", "position_ids", "token_type_ids"
"""Last parts of names of arrays of integers that a model may save: counts and ranges, which are no parameters."""

_MASKS = {"BOOL": np.dtype(np.bool_), "U8": np.dtype(np.uint8)}
_MASK = ".attn.bias"  # end of the name of GPT-2's causal mask, which earlier versions saved

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32}
_BITS |= {"I64": 64, "U64": 64, "F64": 64} | {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 8 << 20  # some 60,000 arrays
_LONGEST_ENTRY, _LONGEST_NAME = 1024, 512  # of one array in the header
_MOST_AXES = 8
_MOST_BYTES = 1 << 48  # of an array, were each empty axis of length 1: numpy bounds these products too
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Entry(NamedTuple):
    """The header's entry of one array: name of its type, its shape, and the range of its bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def open_arrays(file: Path) -> dict[str, np.ndarray]:
    """Opens the arrays of a file: read-only views of it, mapped into memory page by page as they are used.

    Raises:
      ExportError: the file is not safetensors, is cut short, contradicts itself, or holds other types than `DTYPES`.
    """
    entries, start = read_header(file)
    dtypes = {name: _dtype(name, entry) for name, entry in entries.items()}
    for name, entry in entries.items():
        if dtypes[name] is None:
            raise ExportError(
                f"{file}: {name!r} is of type {entry.dtype}; parameters are read from {', '.join(DTYPES)}. If it is "
                "quantised, save the model it was made from"
            )
    if not any(entry.end > entry.begin for entry in entries.values()):
        return {name: np.empty(entry.shape, dtypes[name]) for name, entry in entries.items()}
    content = np.asarray(np.memmap(file, np.uint8, mode="r"))[start:]
    return {
        name: content[entry.begin : entry.end].view(dtypes[name]).reshape(entry.shape)
        for name, entry in entries.items()
    }


def _dtype(name: str, entry: Entry) -> np.dtype | None:
    """Returns an array's type; None if neither parameters nor buffers of that name have it."""
    is_buffer, is_mask = name.rpartition(".")[2] in _BUFFERS, name.endswith(_MASK)
    return (DTYPES | (_INTEGERS if is_buffer else _MASKS if is_mask else {})).get(entry.dtype)


def read_header(file: Path) -> tuple[dict[str, Entry], int]:
    """Reads a file's header and checks every value in it against the file.

    Returns:
      The entries by name, and the offset of the arrays' bytes.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise _Wrong(f"its header would have {length:,} bytes and the file has {size:,}")
            if length > _LONGEST_HEADER:
                raise _Wrong(f"its header has {length:,} bytes, more than the {_LONGEST_HEADER:,} of any real model")
            entries = _Header(stream.read(length).decode()).entries()
        _require_whole(entries, size - 8 - length)
        return entries, 8 + length
    except (_Wrong, OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{file} cannot be read as safetensors ({error}): it is damaged, or half copied") from error


class _Wrong(ValueError):
    """The header is not true of the file."""


class _Header:
    """The text of a header, decoded from left to right."""

    def __init__(self, text: str):
        self._text, self._at = text, 0

    def entries(self) -> dict[str, Entry]:
        """Returns the entries of all arrays, by name."""
        entries: dict[str, Entry] = {}
        seen: set[str] = set()
        for name in self._names():
            if name in seen:
                raise _Wrong(f"{name!r} stands in its header twice")
            if len(name) > _LONGEST_NAME:
                raise _Wrong(f"the name of an array, {name[:80]!r}..., has {len(name):,} characters")
            seen.add(name)
            if name == "__metadata__":  # free text of whoever wrote it
                for _ in self._names():
                    self._string()
            else:
                entries[name] = _entry(name, self._value(name))
        if self._text[self._at :].strip(" \t\n\r"):
            raise _Wrong("its header goes on behind the last array")
        return entries

    def _names(self) -> Iterator[str]:
        """Yields the names of an object's members; the caller decodes each value before it takes the next name."""
        if not self._has("{"):
            raise _Wrong("its header is no JSON object of arrays' descriptions")
        is_done = self._has("}")
        while not is_done:
            name = self._string()
            self._require(":")
            yield name
            is_done = self._has("}")
            if not is_done:
                self._require(",")

    def _string(self) -> str:
        self._skip_space()
        if not self._text.startswith('"', self._at):
            raise _Wrong(f"its header has no string at character {self._at:,}")
        text, self._at = _DECODER.raw_decode(self._text, self._at)
        return text

    def _value(self, name: str) -> Any:
        """Decodes the description of an array, which contains no other object."""
        self._skip_space()
        begin, end = self._at, self._text.find("}", self._at, self._at + _LONGEST_ENTRY) + 1
        if not end or not self._text.startswith("{", begin):
            raise _Wrong(f"{name!r} is not described by dtype, shape and data_offsets")
        self._at = end
        return json.loads(self._text[begin:end], object_pairs_hook=_distinct)

    def _has(self, sign: str) -> bool:
        """Returns whether the next character is `sign`, and skips it if so."""
        self._skip_space()
        is_next = self._text.startswith(sign, self._at)
        self._at += is_next
        return is_next

    def _require(self, sign: str) -> None:
        if not self._has(sign):
            raise _Wrong(f"its header has no {sign!r} at character {self._at:,}")

    def _skip_space(self) -> None:
        self._at = _SPACE.match(self._text, self._at).end()


def _require_whole(entries: dict[str, Entry], num_bytes: int) -> None:
    """Raises `_Wrong` unless the arrays fill all bytes after the header, without gaps."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != end:
            raise _Wrong(f"{name!r} begins at byte {entry.begin:,} where {end:,} is next: arrays overlap or leave gaps")
        end = entry.end
    if end != num_bytes:
        raise _Wrong(f"its arrays have {end:,} bytes and the file has {num_bytes:,} behind the header")


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Wrong(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _Wrong(f"{name!r} is of an unknown type, {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > _MOST_AXES or not _are_counts(offsets) or len(offsets) != 2:
        raise _Wrong(f"{name!r} has no possible shape and offsets")
    if math.prod(max(size, 1) for size in shape) * bits // 8 > _MOST_BYTES:
        raise _Wrong(f"{name!r} of shape {shape} is larger than any array")
    begin, end = offsets
    if end - begin != math.prod(shape) * bits // 8:
        raise _Wrong(f"{name!r} of type {dtype} and shape {shape} cannot have {end - begin:,} bytes")
    return Entry(dtype, tuple(shape), begin, end)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**60 for value in values)


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _Wrong(f"{twice!r} stands in its header twice")
    return names
