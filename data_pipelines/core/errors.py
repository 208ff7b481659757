"""Errors that a user can act on."""

import errno
import os
from pathlib import Path


class UserError(Exception):
    """Base of the errors that a user can correct: the message names what is wrong and the remedy.

    The command line prints the message alone, without a traceback.
    """


class DataError(UserError):
    """A problem with the data or the machine; the message names the file and the remedy."""


def disk_full(folder: Path, missing: int) -> DataError:
    """The error for a disk that lacks about `missing` bytes; what is finished stays, for the next try."""
    return DataError(
        f"{folder}: the disk is full; about {missing / 1e6:,.1f} MB more are needed. Free some space, or name "
        "another place with --data-dir; finished clips are kept, and the same command goes on from there."
    )


def is_disk_full(error: Exception) -> bool:
    """Whether a write failed for want of space or quota. ArrayRecord and tensorstore tell it in words only."""
    kinds = errno.ENOSPC, errno.EDQUOT
    return getattr(error, "errno", None) in kinds or any(os.strerror(kind) in str(error) for kind in kinds)


def is_panic(error: BaseException) -> bool:
    """Whether Rust code gave up, which Python sees as an error that is no `Exception`."""
    return type(error).__name__ == "PanicException"
