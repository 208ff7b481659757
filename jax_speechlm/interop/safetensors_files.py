"""Files of safetensors, opened without reading them: each array is a view of its file.

A file is eight bytes that give a length, a JSON header of that length, and the arrays' bytes one after the other. A
header comes from whoever made the file, so everything that it says is checked against the file before any of it is
used: then no array reaches outside the file, none overlaps another, and nothing was allocated.
Format: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jax_speechlm.interop.folders import ExportError

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
"""The types that parameters are read from; all become float32 without loss."""

_COUNT = np.dtype(np.int64)
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32}
_BITS |= {"I64": 64, "U64": 64, "F64": 64} | {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 32 << 20  # some 200,000 arrays
_MOST_AXES = 8


class Entry(NamedTuple):
    """What a header says of one array: its type's name, its shape, and where its bytes are, behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def open_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by name: read-only views of it, mapped into memory page by page as they are used.

    Raises:
      ExportError: the file is not safetensors, is cut short, contradicts itself, or holds other types than `DTYPES`.
    """
    entries, start = read_header(file)
    dtypes = {name: _COUNT if _is_count(name, entry) else DTYPES.get(entry.dtype) for name, entry in entries.items()}
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


def _is_count(name: str, entry: Entry) -> bool:
    """Whether an array is the number of batches that a batch norm has seen, which is no parameter."""
    return entry.dtype == "I64" and entry.shape == () and name.endswith(".num_batches_tracked")


def read_header(file: Path) -> tuple[dict[str, Entry], int]:
    """A file's header, every word of it checked, and the offset of the arrays' bytes.

    Raises:
      ExportError: what it says cannot be true of the file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise _Wrong(f"its header would have {length:,} bytes and the file has {size:,}")
            if length > _LONGEST_HEADER:
                raise _Wrong(f"its header has {length:,} bytes, more than the {_LONGEST_HEADER:,} of any real model")
            header = json.loads(stream.read(length).decode(), object_pairs_hook=_distinct)
        return _checked(header, size - 8 - length), 8 + length
    except (_Wrong, OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{file} cannot be read as safetensors ({error}): it is damaged, or half copied") from error


class _Wrong(ValueError):
    """What a header says is not true."""


def _checked(header: Any, num_bytes: int) -> dict[str, Entry]:
    if not isinstance(header, dict):
        raise _Wrong("its header is no JSON object")
    header.pop("__metadata__", None)  # free text of whoever wrote it
    entries = {name: _entry(name, value) for name, value in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != end:
            raise _Wrong(f"{name!r} begins at byte {entry.begin:,} where {end:,} is next: arrays overlap or leave gaps")
        end = entry.end
    if end != num_bytes:
        raise _Wrong(f"its arrays have {end:,} bytes and the file has {num_bytes:,} behind the header")
    return entries


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Wrong(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _Wrong(f"{name!r} is of an unknown type, {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > _MOST_AXES or not _are_counts(offsets) or len(offsets) != 2:
        raise _Wrong(f"{name!r} has no possible shape and offsets")
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
