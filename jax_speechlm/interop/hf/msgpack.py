"""Reader of the `flax_model.msgpack` files that transformers' Flax classes wrote: arrays by name, as views of the file.

A file is one map of maps with names as keys, and arrays at its leaves. An array is MessagePack's extension of type 1
that holds a list of shape, name of the dtype, and bytes in C order; arrays of a gigabyte or more are cut into chunks
(`flax.serialization`, which writes them). Nothing else is read: no other type, no list, no number. Every length is
checked against the file before it is used, nothing is allocated for it, and no byte of an array is read before it is
used. Format: https://github.com/msgpack/msgpack/blob/master/spec.md

The library `msgpack` is not used: it copies every array, and a few bytes that announce long lists make it allocate
them.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jax_speechlm.interop.folders import ExportError

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The types that parameters are read from; all become float32 without loss."""

_ARRAY = 1  # type of the extension
_MOST_NAMES, _LONGEST_NAME, _DEEPEST, _MOST_AXES = 1 << 16, 512, 32, 8
_CHUNKED = "__msgpack_chunked_array__"
_MOST_CHUNKS = 1 << 12


class _Wrong(ValueError):
    """The file is not what such a file may be."""


class _Extension(NamedTuple):
    """The content of an array's extension."""

    content: memoryview


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Opens the arrays of a file: read-only views of it by their names, joined by dots.

    Raises:
      ExportError: the file is cut short, contradicts itself, or holds anything but named arrays of `DTYPES`.
    """
    try:
        if not file.stat().st_size:
            raise _Wrong("it is empty")
        content = memoryview(np.memmap(file, np.uint8, mode="r"))
        reader = _Reader(content)
        tree = reader.value(0)
        if reader.at != len(content):
            raise _Wrong(f"it goes on behind its {reader.at:,} bytes")
        if not isinstance(tree, dict):
            raise _Wrong("it is no map of names to arrays")
        return _flat(tree)
    except (_Wrong, OSError, ValueError) as error:
        raise ExportError(
            f"{file} cannot be read as Flax parameters ({error}): it is damaged, or half copied"
        ) from error


class _Reader:
    """Reads values from left to right."""

    def __init__(self, content: memoryview):
        self._content, self.at, self._names = content, 0, 0

    def value(self, depth: int) -> dict[str, Any] | _Extension | bool | int | str:
        """Reads a map, or the content of an array, or a number or text, which only stand in maps of chunks."""
        if depth > _DEEPEST:
            raise _Wrong(f"maps are nested more than {_DEEPEST} deep")
        first = self._byte()
        if first >> 4 == 0x8 or first in (0xDE, 0xDF):
            return self._map(first & 0xF if first >> 4 == 0x8 else self._number(2 << (first - 0xDE)), depth)
        if 0xC7 <= first <= 0xC9 or 0xD4 <= first <= 0xD8:
            size = self._number(1 << (first - 0xC7)) if first <= 0xC9 else 1 << (first - 0xD4)
            kind = self._byte()
            if kind != _ARRAY:
                raise _Wrong(f"it holds an extension of type {kind}, which is no array")
            return _Extension(self._bytes(size))
        if first in (0xC2, 0xC3):
            return first == 0xC3
        if (number := self._integer(first)) is not None:
            return number
        raise _Wrong(f"it holds a value of type {first:#04x} at byte {self.at - 1:,}, where names and arrays stand")

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        self._names += count
        if self._names > _MOST_NAMES:
            raise _Wrong(f"it has more than {_MOST_NAMES:,} names")
        entries: dict[str, Any] = {}
        for _ in range(count):
            name = self.text()
            if name in entries:
                raise _Wrong(f"{name!r} stands in it twice")
            entries[name] = self.value(depth + 1)
        return entries

    def text(self) -> str:
        """Reads a name."""
        first = self._byte()
        if first >> 5 == 0b101:
            size = first & 0x1F
        elif 0xD9 <= first <= 0xDB:
            size = self._number(1 << (first - 0xD9))
        else:
            raise _Wrong(f"it has a name that is no text, at byte {self.at - 1:,}")
        if size > _LONGEST_NAME:
            raise _Wrong(f"it has a name of {size:,} bytes")
        return bytes(self._bytes(size)).decode()

    def array(self) -> np.ndarray:
        """Reads the content of an array: shape, dtype and bytes."""
        if self._byte() != 0x93:
            raise _Wrong("an array is no list of shape, dtype and bytes")
        first = self._byte()
        if first >> 4 != 0x9 or (first & 0xF) > _MOST_AXES:
            raise _Wrong("an array has no possible shape")
        shape = [self._integer(self._byte()) for _ in range(first & 0xF)]
        name = self.text()
        if None in shape:
            raise _Wrong("an array has no possible shape")
        if (dtype := DTYPES.get(name)) is None:
            raise _Wrong(f"an array is of type {name[:40]!r}; parameters are read from {', '.join(DTYPES)}")
        first = self._byte()
        if not 0xC4 <= first <= 0xC6:
            raise _Wrong("an array has no bytes")
        content = self._bytes(self._number(1 << (first - 0xC4)))
        if self.at != len(self._content) or math.prod(shape) * dtype.itemsize != len(content):
            raise _Wrong(f"an array of shape {shape} and type {name} cannot have {len(content):,} bytes")
        if math.prod(max(size, 1) for size in shape) >= 1 << 46:
            raise _Wrong(f"an array of shape {shape} is larger than any")
        return np.frombuffer(content, dtype).reshape(shape)

    def _integer(self, first: int) -> int | None:
        """Reads a number that is not negative; None for anything else."""
        if first < 0x80:
            return first
        return self._number(1 << (first - 0xCC)) if 0xCC <= first <= 0xCF else None

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._bytes(size), "big")

    def _bytes(self, size: int) -> memoryview:
        begin, self.at = self.at, self.at + size
        if self.at > len(self._content):
            raise _Wrong(f"it ends at byte {len(self._content):,}, within a value of {size:,} bytes")
        return self._content[begin : self.at]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, _Extension):
            found = {name: _Reader(value.content).array()}
        elif isinstance(value, dict):
            found = {name: _joined(value)} if _CHUNKED in value else _flat(value, f"{name}.")
        else:
            raise _Wrong(f"{name!r} is a number, and no array")
        if twice := found.keys() & arrays.keys():
            raise _Wrong(f"{min(twice)!r} stands in it twice")
        arrays |= found
    return arrays


def _joined(chunks: dict[str, Any]) -> np.ndarray:
    """Joins the chunks of a long array, which lie in the file one after another; the only arrays that are copied."""
    shape, parts = (_listed(chunks.get(name)) for name in ("shape", "chunks"))
    if not all(type(size) is int for size in shape) or not all(isinstance(part, _Extension) for part in parts):
        raise _Wrong("an array in chunks has no possible shape and chunks")
    arrays = [_Reader(part.content).array() for part in parts]
    if len(shape) > _MOST_AXES or not arrays or any(array.ndim != 1 for array in arrays):
        raise _Wrong("an array in chunks has no possible shape and chunks")
    if math.prod(shape) != sum(map(len, arrays)) or len({array.dtype for array in arrays}) > 1:
        raise _Wrong(f"an array of shape {shape} cannot have {sum(map(len, arrays)):,} values")
    return np.concatenate(arrays).reshape(shape)


def _listed(value: Any) -> list[Any]:
    """Returns a list, which flax writes as a map from "0", "1", ..."""
    if not isinstance(value, dict) or list(value) != [str(index) for index in range(len(value))]:
        raise _Wrong("an array in chunks has no list of them")
    if len(value) > _MOST_CHUNKS:
        raise _Wrong(f"an array has {len(value):,} chunks")
    return list(value.values())
