"""When each word of prepared utterances is said, kept beside their index by `jax-speechlm align --format index`.

Beside `index/<split>.parquet` lies `<split>.words-<index>.npz`: where each row's words end among all words, first and
last sample of every word at 16 kHz, and the fingerprint of the recogniser that found them. A row's words are those of
its transcript, parted by white space; a row that could not be aligned has none.
"""

import dataclasses
import functools
import hashlib
import os
import socket
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.core.errors import DataError, disk_full, is_disk_full
from data_pipelines.storage.index import Part


@dataclasses.dataclass(frozen=True, eq=False)
class WordTimes:
    """The times of the words of all rows of a part.

    Attributes:
      ends: int64 [rows], where each row's words end among all words.
      spans: int32 [words, 2], first sample of each word and the one behind its last.
      aligner: fingerprint of the recogniser that found them.
    """

    ends: np.ndarray
    spans: np.ndarray
    aligner: str

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """int64 [rows], words with times; 0 where an alignment failed."""
        return np.diff(self.ends, prepend=0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the times, whatever found them."""
        return hashlib.sha256(self.ends.tobytes() + self.spans.tobytes()).hexdigest()[:16]

    def of(self, row: int) -> np.ndarray:
        """int32 [words, 2] of a row."""
        return self.spans[self.ends[row] - self.counts[row] : self.ends[row]]


def find_word_times(part: Part) -> WordTimes | None:
    """The times beside a part's index, or None where they are absent or not whole."""
    try:
        with np.load(_path(part), allow_pickle=False) as file:
            times = WordTimes(file["ends"], file["spans"], str(file["aligner"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return times if times.ends.shape == (part.num_rows,) else None


def read_word_times(part: Part, instead: str = "") -> WordTimes:
    """The times beside a part's index.

    Args:
      instead: what else could be done about there being none, for the message.

    Raises:
      DataError: there are none; the message names the command that makes them.
    """
    if (found := find_word_times(part)) is None:
        raise DataError(
            f"{part}: when its words are said is not known. Run: jax-speechlm align RUN --sets {part.set_dir.name} "
            f"--split {part.split} --format index --data-dir {part.set_dir.parent}, where RUN was trained by "
            f"ctc{instead}"
        )
    return found


def write_word_times(part: Part, spans: Sequence[np.ndarray | None], aligner: str) -> Path:
    """Writes the times of every row of a part, whole or not at all.

    Args:
      spans: of each row integers [words, 2], or None where there is no alignment.
      aligner: fingerprint of the recogniser that found them.

    Raises:
      DataError: the disk is full, or the folder of the index cannot be written.
    """
    path = _path(part)
    empty = np.zeros((0, 2), np.int32)
    rows = [empty if each is None else np.asarray(each, np.int32).reshape(-1, 2) for each in spans]
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
            np.savez(file, ends=ends, spans=np.concatenate([empty, *rows]), aligner=np.array(aligner))
        partial.replace(path)
    except PermissionError as error:
        raise DataError(f"{path.parent} cannot be written, and word times are kept beside their index") from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full(path.parent, sum(row.nbytes for row in rows)) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _path(part: Part) -> Path:
    return part.index_path.with_name(f"{part.split}.words-{part.sha256[:16]}.npz")
