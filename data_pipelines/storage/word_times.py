"""Times of the words of prepared utterances, stored next to their index by `jax-speechlm align --format index`.

The file `<split>.words-<index>.npz` next to `index/<split>.parquet` contains the end of each row's words among all
words, the first and last sample of every word, and the fingerprint of the aligning recogniser. The words of a
row are its transcript, split at white space; a row whose alignment failed has no words.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import short_digest
from data_pipelines.storage.beside_index import array_path, array_writer, read_arrays
from data_pipelines.storage.index import Part


@dataclasses.dataclass(frozen=True, eq=False)
class WordTimes:
    """Times of the words of all rows of a part.

    Attributes:
      ends: int64 [rows], end of each row's words among all words.
      spans: int32 [words, 2], first sample of a word and the sample after its last.
      aligner: fingerprint of the recogniser that aligned them.
    """

    ends: np.ndarray
    spans: np.ndarray
    aligner: str

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """int64 [rows], words with times; 0 if the alignment failed."""
        return np.diff(self.ends, prepend=0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the times, independent of the aligner."""
        return short_digest(self.ends.tobytes() + self.spans.tobytes())

    def of(self, row: int) -> np.ndarray:
        """Returns the spans of a row, int32 [words, 2]."""
        return self.spans[self.ends[row] - self.counts[row] : self.ends[row]]


def find_word_times(part: Part) -> WordTimes | None:
    """Reads the times next to a part's index. Returns None if they are absent or incomplete."""
    if (arrays := read_arrays(array_path(part, "words"), "ends", "spans", "aligner")) is None:
        return None
    ends, spans, aligner = arrays
    times = WordTimes(ends, spans, str(aligner))
    return times if times.ends.shape == (part.num_rows,) else None


def read_word_times(part: Part, instead: str = "") -> WordTimes:
    """Reads the times next to a part's index.

    Raises:
      DataError: the times are absent; the message has the command that makes them.
    """
    if (times := find_word_times(part)) is None:
        raise DataError(
            f"{part}: its words have no times. Run: jax-speechlm align RUN --sets {part.set_dir.name} "
            f"--split {part.split} --format index --data-dir {part.set_dir.parent}, where RUN was trained with "
            f"ctc{instead}"
        )
    return times


def write_word_times(part: Part, spans: Sequence[np.ndarray | None], aligner: str) -> Path:
    """Writes the times of every row of a part, completely or not at all.

    Args:
      spans: for every row integers [words, 2], or None if its alignment failed.
      aligner: fingerprint of the recogniser that aligned them.

    Raises:
      DataError: the disk is full, or the folder of the index cannot be written.
    """
    path = array_path(part, "words")
    empty = np.zeros((0, 2), np.int32)
    rows = [empty if words is None else np.asarray(words, np.int32).reshape(-1, 2) for words in spans]
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    with array_writer(path, "word times are", lambda: sum(row.nbytes for row in rows)) as file:
        np.savez(file, ends=ends, spans=np.concatenate([empty, *rows]), aligner=np.array(aligner))
    return path
