"""Exit statuses of `jax-speechlm`, and which error has which. Launchers decide by them what to start again.

`launch/slurm.sbatch` and `launch/local.py`, which run without this package, hold the same numbers.
"""

import errno

from data_pipelines.core.errors import UserError

FAILED = 1
"""An error of the program or of the machine, which may not come back: launchers start the same command again."""
WRONG_COMMAND_LINE = 2
"""An option or a value of the command line is wrong (argparse's and tyro's status)."""
DOES_NOT_FIT = 3
"""`plan` found that a run does not fit its accelerators."""
USER_ERROR = 64
"""A name, a file or a setting is wrong, and the message says what to change."""
STOPPED = 75
"""A run was told to stop before its end, where a launcher would take 0 for done (`JAX_SPEECHLM_STOPPED_STATUS`)."""

FINAL = (WRONG_COMMAND_LINE, DOES_NOT_FIT, USER_ERROR)
"""The same command would end in the same way: no launcher starts it again."""

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
"""Errors whose message tells a user what to do; any other is a fault of the program and keeps its traceback."""


def status_of(error: BaseException) -> int:
    """Returns the status with which an error ends the program.

    A user error that was caused by the machine (a full disk, a lost connection) counts as the machine's.
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
