"""Refuses a run that cannot fit before its first step, instead of failing at its longest batch."""

import jax

from jax_speechlm.parallel.chips import GIB
from jax_speechlm.planning.ahead_of_time import Compiler, PlanningError
from jax_speechlm.planning.workload import workload
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training.source import with_labels


def check_fits(experiment: Experiment, *, limit: int | None = None, vocab_size: int = 0) -> None:
    """Compiles the longest batch shape for this machine's devices and compares its memory with theirs.

    The program stays in the compilation cache, so that the run does not compile it again. Devices that report no memory
    limit, such as CPUs, are not checked.

    Args:
      limit: bytes of memory of a device; by default its own.
      vocab_size: as in `workload`; the data are prepared where a run starts.

    Raises:
      PlanningError: the batch does not fit; the message has the difference and settings to change.
    """
    limit = memory_limit() if limit is None else limit
    if limit is None:
        return
    experiment = with_labels(experiment)
    load = workload(experiment, vocab_size)
    shape = load.shapes[-1]
    needed = Compiler(experiment, load, jax.devices()).memory_needed(shape)
    if needed > limit:
        raise PlanningError(
            f"a batch of {shape.rows} rows of {shape.length} {shape.unit} needs {needed / GIB:.1f} GiB on each device, "
            f"which has {limit / GIB:.1f}. `jax-speechlm plan --fit` searches for a fit; --force starts anyway"
        )


def memory_limit() -> int | None:
    """Returns the bytes that a program may use on the first device, or None if it reports no limit."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
