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


def medians(programs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Measures the median wall seconds of programs, run alternately, so that other load affects all alike.

    Two uncounted runs come first, to compile and to settle.

    Args:
      rounds: counted runs of a program.

    Returns:
      Seconds by program.
    """
    for run in programs.values():
        run(), run()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def load() -> str:
    """Returns the load average of the machine, for the foot of a table."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
