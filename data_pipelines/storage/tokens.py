"""The tokens of prepared text, each document's behind the last one's, made once for each index and tokenizer.

Beside `index/<split>.parquet` lie `<split>.<index>-<tokenizer>.ids`, the ids of all documents end to end as native
uint16 (uint32 for vocabularies over 65,536), and `....ends.npy`, int64 [rows], where each document ends.
"""

import contextlib
import dataclasses
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines.core.errors import disk_full, is_disk_full
from data_pipelines.storage.index import Index, Part
from data_pipelines.tokenizers.base import Tokenizer

UNIT_TOKEN = np.dtype([("id", np.uint32), ("frames", np.uint32)])
"""A token of a document that holds speech: its id, and the frames that a unit stands for (0 for every other token)."""

_CHUNK = 4 * 2**20  # characters encoded at a time


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """The tokens of all rows of an index; threads may share one.

    Attributes:
      lengths: int64 [rows], tokens of each document.
    """

    lengths: np.ndarray
    _first_row: np.ndarray
    _ids: tuple[np.ndarray, ...]
    _ends: tuple[np.ndarray, ...]

    def read(self, row: int, start: int, stop: int) -> np.ndarray:
        """The tokens from `start` up to `stop` of a row's document, as they are stored (uint16 or uint32)."""
        found = self._span(row, start, stop)
        return found if found.dtype.names is None else found["id"]

    def frames(self, row: int, start: int, stop: int) -> np.ndarray:
        """The frames of speech that each of these tokens stands for; 0 for text."""
        found = self._span(row, start, stop)
        return np.zeros(len(found), np.uint32) if found.dtype.names is None else found["frames"]

    def _span(self, row: int, start: int, stop: int) -> np.ndarray:
        part = int(np.searchsorted(self._first_row, row, side="right")) - 1
        end = int(self._ends[part][row - self._first_row[part]])
        first = end - int(self.lengths[row])
        return self._ids[part][first + start : min(first + stop, end)]

    @classmethod
    def join(cls, stores: Sequence["TokenStore"]) -> "TokenStore":
        """Several stores as one, the documents of each behind those of the one before."""
        ids, ends = (tuple(part for store in stores for part in getattr(store, name)) for name in ("_ids", "_ends"))
        first_row = np.cumsum([0, *map(len, ends)])
        return cls(np.concatenate([store.lengths for store in stores]), first_row, ids, ends)


def open_tokens(index: Index, tokenizer: Tokenizer, *, num_threads: int | None = None) -> TokenStore:
    """Opens the tokens of an index, encoding its texts where that was not done before.

    What is made is kept beside the index, or for this process alone where that folder cannot be written.

    Args:
      num_threads: that encode; default: one a core. Characters take one.

    Raises:
      DataError: the disk is full.
    """
    threads, dtype = (
        num_threads or os.cpu_count() or 1,
        np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32),
    )

    def encode(part: Part) -> Iterator[list[int]]:
        for texts in _chunks(part.texts()):
            yield from tokenizer.encode_batch(texts, threads)

    return open_documents(index, tokenizer.fingerprint, dtype, encode)


def open_documents(
    index: Index,
    name: str,
    dtype: np.dtype,
    make: Callable[[Part], Iterable[Sequence[int] | np.ndarray]],
    each: int = 1,
) -> TokenStore:
    """Opens the documents of an index that go by a name, making them where that was not done before.

    Args:
      name: of all that decides the documents besides the index.
      dtype: of a token: an unsigned integer, or `UNIT_TOKEN`.
      make: gives the documents of every row of a part, in order.
      each: documents of a row.

    Raises:
      DataError: the disk is full.
    """
    ids, ends = zip(*(_open_part(part, name, dtype, make, each) for part in index.parts), strict=True)
    lengths = np.concatenate([np.diff(part_ends, prepend=0) for part_ends in ends])
    return TokenStore(lengths, index.first_row * each, ids, ends)


def _open_part(
    part: Part, name: str, dtype: np.dtype, make: Callable[[Part], Iterable], each: int
) -> tuple[np.ndarray, np.ndarray]:
    name, folder, count = f"{part.split}.{part.sha256[:16]}-{name}", part.index_path.parent, part.num_rows * each
    if (found := find_ids(folder, name, dtype, count)) is not None:
        return found
    with contextlib.ExitStack() as stack:
        if not os.access(folder, os.W_OK):  # a mapped file outlives its name
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _write(folder, name, dtype, make(part), f"{part}: encode", count)
        return find_ids(folder, name, dtype, count)


def find_ids(folder: Path, name: str, dtype: np.dtype, num_rows: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(ids of all rows end to end, where each row ends), or None where they are absent or not whole."""
    try:
        ends = np.load(folder / f"{name}.ends.npy", allow_pickle=False)
        size = (folder / f"{name}.ids").stat().st_size
    except (OSError, ValueError, EOFError):
        return None  # absent or cut short: made anew
    if (
        ends.shape != (num_rows,)
        or ends.dtype != np.int64
        or size != (int(ends[-1]) if num_rows else 0) * dtype.itemsize
    ):
        return None
    return (np.memmap(folder / f"{name}.ids", dtype, "r") if size else np.zeros(0, dtype)), ends


def _write(folder: Path, name: str, dtype: np.dtype, documents: Iterable, title: str, count: int) -> None:
    """Writes both files whole, the ends last: they say that the ids are complete."""
    lengths: list[int] = []
    suffix = f"{socket.gethostname()}-{os.getpid()}.partial"
    ids_path, ends_path = (folder / f"{name}.{kind}.{suffix}" for kind in ("ids", "ends"))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress, ids_path.open("wb") as file:
            for ids in progress.track(documents, count, description=title):
                file.write(np.asarray(ids, dtype).tobytes())
                lengths.append(len(ids))
        with ends_path.open("wb") as file:
            np.save(file, np.cumsum(lengths, dtype=np.int64), allow_pickle=False)
        ids_path.replace(folder / f"{name}.ids")
        ends_path.replace(folder / f"{name}.ends.npy")
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full(folder, sum(lengths) * dtype.itemsize) from error
    finally:
        ids_path.unlink(missing_ok=True)
        ends_path.unlink(missing_ok=True)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
