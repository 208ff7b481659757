"""Fair timing of several programs on the same few cores."""

import os
import statistics
import time
from collections.abc import Callable


def pin(threads: int) -> None:
    """Keeps this process on its first `threads` cores. Call it before JAX starts: XLA makes a thread for each."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise SystemExit(f"--threads {threads}, but this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[:threads])


def medians(programs: dict[str, Callable[[], object]], rounds: int, cpu_time: bool = False) -> dict[str, float]:
    """Measures the median wall seconds of programs, run alternately, so that other load affects all alike.

    Two uncounted runs come first, to compile and to settle.

    Args:
      rounds: counted runs of a program.
      cpu_time: measure CPU seconds of this process instead: with one thread, the wall seconds of an idle machine.

    Returns:
      Seconds by program.
    """
    for run in programs.values():
        run(), run()
    clock = time.process_time if cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def load() -> str:
    """Returns the load average of the machine, for the foot of a table."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
