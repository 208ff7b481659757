"""Exit statuses of `jax-speechlm` and the errors they represent. Launchers restart a job depending on them.

`launch/slurm.sbatch` and `launch/local.py` run without this package and contain the same numbers.
"""

import errno

from data_pipelines.core.errors import UserError

FAILED = 1
"""An error of the program or the machine, possibly transient: launchers restart the same command."""
WRONG_COMMAND_LINE = 2
"""An option or a value of the command line is wrong (the status of tyro)."""
DOES_NOT_FIT = 3
"""`plan` found that a run does not fit its accelerators."""
USER_ERROR = 64
"""A name, a file or a setting is wrong; the message explains the correction."""
STOPPED = 75
"""A run was stopped before its end, where a launcher would take 0 as completed (`JAX_SPEECHLM_STOPPED_STATUS`)."""

FINAL = (WRONG_COMMAND_LINE, DOES_NOT_FIT, USER_ERROR)
"""The same command would fail in the same way; launchers do not restart it."""

SUMMARY = """exit status:
  0   done
  1   an error of the program or of the machine; the same command may succeed, and continues training
  2   a wrong command line
  3   a plan that does not fit
  64  an error that the user can correct: a name, a file or a setting; the message says which
Launchers start a job again after a failure, but not after 2, 3 or 64."""

_MACHINE = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ENOMEM, errno.ENETUNREACH, errno.EHOSTUNREACH}


_FILES = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError)

USER_ERRORS: tuple[type[Exception], ...] = (UserError, ValueError, *_FILES)
"""Errors whose message suffices for the user; all others indicate a bug and keep their traceback."""


def status_of(error: BaseException) -> int:
    """Returns the exit status of an error.

    A user error caused by the machine (full disk, lost connection) counts as a failure of the machine.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if not isinstance(error, USER_ERRORS):
        return FAILED
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError | TimeoutError) or getattr(cause, "errno", None) in _MACHINE:
            return FAILED
        cause = cause.__cause__
    return USER_ERROR
