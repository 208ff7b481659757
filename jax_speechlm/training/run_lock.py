"""Locks a run's folder: a second process would mix its checkpoints and metrics with the first's."""

import contextlib
import errno
import fcntl
from collections.abc import Iterator

from data_pipelines.core.paths import AnyPath, is_url
from jax_speechlm.core.errors import CheckpointError

_NAME = ".training"


@contextlib.contextmanager
def held(run_dir: AnyPath) -> Iterator[None]:
    """Locks a run's folder until the block or the process ends; a folder in a bucket is not locked.

    A POSIX lock (fcntl) is not inherited by children, which would keep that of a killed process; the package filelock
    takes a flock, which is inherited.

    Raises:
      CheckpointError: another process has the lock.
    """
    if is_url(run_dir):
        yield
        return
    with (run_dir / _NAME).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise CheckpointError(
                    f"{run_dir}: another process trains here: wait for it, stop it, or name another --run-dir"
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):  # no locks on this disk
                raise
        yield
