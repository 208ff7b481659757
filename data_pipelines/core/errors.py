"""Errors that a user can act on."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path


class UserError(Exception):
    """Base of the errors that a user can correct: the message names what is wrong and the remedy.

    The command line prints the message alone, without a traceback.
    """


class DataError(UserError):
    """A problem with the data or the machine; the message names the file and the remedy."""


def disk_full(folder: Path, missing: int) -> DataError:
    """Returns the error for a disk that lacks about `missing` bytes.

    Finished files stay, so the same command continues once there is space.
    """
    return DataError(
        f"{folder}: the disk is full; about {missing / 1e6:,.1f} MB more are needed. Free some space, or name "
        "another folder with --data-dir; finished clips are kept, and the same command continues from there."
    )


@contextlib.contextmanager
def disk_full_as_data_error(folder: Path, missing: Callable[[], float]) -> Iterator[None]:
    """Raises `disk_full` in place of an error that a full disk caused within the block.

    Args:
      missing: estimates the bytes that are still to be written; called when the disk is full.

    Raises:
      DataError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter from ArrayRecord
        if not is_disk_full(error):
            raise
        raise disk_full(folder, int(missing())) from error


def is_disk_full(error: Exception) -> bool:
    """Returns whether a write failed for lack of space or quota.

    ArrayRecord and tensorstore name the cause in their message only.
    """
    kinds = errno.ENOSPC, errno.EDQUOT
    return getattr(error, "errno", None) in kinds or any(os.strerror(kind) in str(error) for kind in kinds)


def is_panic(error: BaseException) -> bool:
    """Returns whether Rust code panicked, which Python sees as an error that is not an `Exception`."""
    return type(error).__name__ == "PanicException"
