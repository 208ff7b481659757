"""Files of arrays next to the index of a prepared split: `<split>.<kind>-<index>.npz`, written whole or not at all.

A name has the digest of its index, so that what was made for an index is never read with another.
"""

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from data_pipelines.core.errors import DataError, disk_full_as_data_error
from data_pipelines.core.files import replacing
from data_pipelines.storage.index import Part


def array_path(part: Part, kind: str) -> Path:
    """Returns the path of a part's file of one kind, such as "pitch"."""
    return part.index_path.with_name(f"{part.split}.{kind}-{part.sha256[:16]}.npz")


def read_arrays(path: Path, *names: str) -> list[np.ndarray] | None:
    """Reads arrays of a file by name; None if the file is absent or damaged, or lacks one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


@contextlib.contextmanager
def array_writer(path: Path, what: str, num_bytes: Callable[[], float]) -> Iterator[IO[bytes]]:
    """Yields a file for `numpy.savez`, which appears at `path` at the end of the block.

    Args:
      what: subject and verb of the error, such as "pitch is".
      num_bytes: estimates its size; called if the disk is full.

    Raises:
      DataError: the disk is full, or the folder of the index cannot be written.
    """
    try:
        with (
            disk_full_as_data_error(path.parent, num_bytes),
            replacing(path) as partial,
            partial.open("wb") as file,
        ):
            yield file
    except PermissionError as error:
        raise DataError(
            f"{path.parent} cannot be written, and {what} stored next to its index: change its permissions, or copy "
            "the prepared set and name the copy's folder with --data-dir"
        ) from error
