"""Reads the items of batches in parallel and ahead of their assembly.

Records of a network file system or a bucket take tens of milliseconds each, most of it waiting, so many reads are in
flight at a time: more than the rows of the batches under assembly, and more than there are cores.
"""

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Value = TypeVar("Value")


class ReadAhead(Generic[Item, Value]):
    """Reads the items of the batch of any step, and of the next steps, on a pool of threads. Thread-safe."""

    def __init__(
        self,
        pool: Executor,
        read: Callable[[Item], Value],
        items: Callable[[int], Sequence[Item | None]],
        *,
        start_step: int,
        stop_step: int | None,
        ahead: int,
    ):
        """
        Args:
          pool: runs the reads; several readers may share one. Its owner shuts it down.
          read: reads one item.
          items: returns the items of a step's batch; None where there is nothing to read.
          start_step, stop_step: the first step, and the step after the last one; None for no end.
          ahead: items requested at least, beyond the steps that were taken; the whole next step if it has more.
        """
        self._pool, self._read, self._items, self._ahead = pool, read, items, ahead
        self._next, self._stop = start_step, math.inf if stop_step is None else stop_step
        self._requested: dict[int, list[Future[Value] | None]] = {}
        self._num_requested = 0
        self._lock = threading.Lock()

    def take(self, step: int) -> list[Future[Value] | None]:
        """Returns the reads of a step's items, in their order, and requests those of the next steps.

        A step can be taken once. The error of a read is raised by its `result()`.
        """
        with self._lock:
            while self._next <= step:
                self._request_next()
            reads = self._requested.pop(step)
            self._num_requested -= _count(reads)
            while self._next < self._stop and self._num_requested < self._ahead:
                self._request_next()
            return reads

    def _request_next(self) -> None:
        items = self._items(self._next)
        reads = [None if item is None else self._pool.submit(self._read, item) for item in items]
        self._requested[self._next] = reads
        self._num_requested += _count(reads)
        self._next += 1


def _count(reads: Sequence[Future | None]) -> int:
    """Returns the number of items; a step without any counts too, as the number of such steps has no bound."""
    return max(sum(read is not None for read in reads), 1)
