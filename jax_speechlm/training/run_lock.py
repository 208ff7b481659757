"""One process writes a run's folder at a time: a second one would mix its checkpoints and metrics with the first's."""

import contextlib
import errno
import fcntl
from collections.abc import Iterator

from data_pipelines.core.paths import AnyPath, is_url
from jax_speechlm.training.checkpoints import CheckpointError

_NAME = ".training"


@contextlib.contextmanager
def held(run_dir: AnyPath) -> Iterator[None]:
    """Holds a run's folder until the block, or the process, ends, however that does; a folder in a bucket is not held.

    The lock is POSIX's (fcntl), which a child does not inherit: what a killed process leaves running holds nothing.

    Raises:
      CheckpointError: another process has it.
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
            if error.errno not in (
                errno.ENOLCK,
                errno.ENOTSUP,
                errno.ENOSYS,
                errno.EINVAL,
            ):  # a file system without locks
                raise
        yield
