"""Token ids of prepared text, concatenated; made once for each index and tokenizer.

Files next to `index/<split>.parquet`: `<split>.<index>-<tokenizer>.ids`, the ids of all documents end to end as native
uint16 (uint32 for vocabularies of 65,536 or more), and `....ends.npy`, int64 [rows], where each document ends.
"""

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines.core.errors import DataError, disk_full_as_data_error
from data_pipelines.core.files import replacing
from data_pipelines.core.grouping import group_by_size
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.index import Index, Part

UNIT_TOKEN = np.dtype([("id", np.uint32), ("frames", np.uint32)])
"""A token of a document with speech: its id, and the number of frames of a unit (0 for every other token)."""

_CHUNK_CHARACTERS = 4 * 2**20  # encoded at a time


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """Tokens of all rows of an index; threads may share one.

    Attributes:
      lengths: int64 [rows], tokens per document.
    """

    lengths: np.ndarray
    _first_row: np.ndarray
    _ids: tuple[np.ndarray, ...]
    _ends: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, first_row: np.ndarray, parts: Iterable[tuple[np.ndarray, np.ndarray]], *fields: Any) -> "TokenStore":
        """Makes a store from the ids and the ends of every part, and the further fields of a subclass."""
        ids, ends = zip(*parts, strict=True)
        return cls(np.concatenate([np.diff(part, prepend=0) for part in ends]), first_row, ids, ends, *fields)

    def read(self, row: int, start: int, stop: int) -> np.ndarray:
        """Returns the tokens from `start` up to `stop` of a row's document, in their stored type (uint16 or
        uint32).
        """
        tokens = self._span(row, start, stop)
        return tokens if tokens.dtype.names is None else tokens["id"]

    def frames(self, row: int, start: int, stop: int) -> np.ndarray:
        """Returns the number of speech frames per token of this range; 0 for text."""
        tokens = self._span(row, start, stop)
        return np.zeros(len(tokens), np.uint32) if tokens.dtype.names is None else tokens["frames"]

    def _span(self, row: int, start: int, stop: int) -> np.ndarray:
        part = int(np.searchsorted(self._first_row, row, side="right")) - 1
        end = int(self._ends[part][row - self._first_row[part]])
        first = end - int(self.lengths[row])
        return self._ids[part][first + start : min(first + stop, end)]

    @classmethod
    def join(cls, stores: Sequence["TokenStore"]) -> "TokenStore":
        """Concatenates the documents of several stores."""
        ids, ends = (tuple(part for store in stores for part in getattr(store, name)) for name in ("_ids", "_ends"))
        first_row = np.cumsum([0, *map(len, ends)])
        return cls(np.concatenate([store.lengths for store in stores]), first_row, ids, ends)


def open_tokens(
    index: Index, tokenizer: Tokenizer, *, targets: bool = False, num_threads: int | None = None
) -> TokenStore:
    """Opens the tokens of an index; encodes its texts unless they are encoded already.

    New files are kept next to the index, or in this process only if that folder cannot be written.

    Args:
      targets: whether a document with a target is its text, the id after the tokenizer's last (`Vocabulary.boundary`),
        and its target; otherwise it is its text.
      num_threads: for encoding; default: one per core. A character tokenizer uses one.

    Raises:
      DataError: the disk is full, or no document has a target.
    """
    if targets and not any(part.has_targets and any(part.texts("target")) for part in index.parts):
        raise DataError(
            f'{", ".join(map(str, index.parts))}: no document has a target; prepare JSON lines with "text" and "target"'
        )
    num_threads = num_threads or os.cpu_count() or 1
    boundary = tokenizer.vocab_size
    dtype = np.dtype(np.uint16 if boundary < 2**16 else np.uint32)

    def encode(part: Part) -> Iterator[list[int]]:
        answers_of = part.texts("target") if targets and part.has_targets else itertools.repeat("")
        for texts in group_by_size(part.texts(), len, _CHUNK_CHARACTERS):
            asked = list(itertools.islice(answers_of, len(texts)))
            both = tokenizer.encode_batch([*texts, *filter(None, asked)], num_threads)
            answers = iter(both[len(texts) :])
            for ids, target in zip(both, asked, strict=False):
                yield [*ids, boundary, *next(answers)] if target else ids

    name = tokenizer.fingerprint + "-targets" * targets
    return open_documents(index, name, dtype, encode)


def open_documents(
    index: Index,
    name: str,
    dtype: np.dtype,
    make: Callable[[Part], Iterable[Sequence[int] | np.ndarray]],
    each: int = 1,
) -> TokenStore:
    """Opens the tokenized documents of an index under a name; makes them unless they exist.

    Args:
      name: identifies all settings that decide the documents, apart from the index.
      dtype: of a token: an unsigned integer, or `UNIT_TOKEN`.
      make: returns the documents of all rows of a part, in order.
      each: documents per row.

    Raises:
      DataError: the disk is full.
    """
    parts = (_open_part(part, name, dtype, make, each) for part in index.parts)
    return TokenStore.of(index.first_row * each, parts)


def _open_part(
    part: Part, name: str, dtype: np.dtype, make: Callable[[Part], Iterable], each: int
) -> tuple[np.ndarray, np.ndarray]:
    name, folder, count = f"{part.split}.{part.sha256[:16]}-{name}", part.index_path.parent, part.num_rows * each
    if (existing := find_ids(folder, name, dtype, count)) is not None:
        return existing
    with contextlib.ExitStack() as stack:
        if not os.access(folder, os.W_OK):  # a mapped file remains readable after its removal
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _write(folder, name, dtype, make(part), f"{part}: encode", count)
        return find_ids(folder, name, dtype, count)


def find_ids(folder: Path, name: str, dtype: np.dtype, num_rows: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Opens a pair of `.ids` and `.ends.npy` files.

    Returns:
      The ids of all rows end to end and where each row ends, or None if the files are absent or incomplete.
    """
    try:
        ends = np.load(folder / f"{name}.ends.npy", allow_pickle=False)
        size = (folder / f"{name}.ids").stat().st_size
    except (OSError, ValueError, EOFError):
        return None  # absent or cut short: to be made again
    if (
        ends.shape != (num_rows,)
        or ends.dtype != np.int64
        or size != (int(ends[-1]) if num_rows else 0) * dtype.itemsize
    ):
        return None
    return (np.memmap(folder / f"{name}.ids", dtype, "r") if size else np.zeros(0, dtype)), ends


def _write(folder: Path, name: str, dtype: np.dtype, documents: Iterable, title: str, count: int) -> None:
    """Writes both files completely; the ends are renamed last and mark the ids as complete."""
    lengths: list[int] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        disk_full_as_data_error(folder, lambda: sum(lengths) * dtype.itemsize),
        replacing(folder / f"{name}.ends.npy") as ends_path,
        replacing(folder / f"{name}.ids") as ids_path,
    ):
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress, ids_path.open("wb") as file:
            for ids in progress.track(documents, count, description=title):
                file.write(np.asarray(ids, dtype).tobytes())
                lengths.append(len(ids))
        with ends_path.open("wb") as file:
            np.save(file, np.cumsum(lengths, dtype=np.int64), allow_pickle=False)
