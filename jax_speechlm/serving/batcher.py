"""One thread that owns a model, and hears what many requests bring, as much at a time as fills a batch."""

import collections
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

from data_pipelines.audio import decode
from jax_speechlm.inference.segmentation import Samples, shape_of

_AT_ONCE = 4  # windows of one request that wait at a time, so that an hour of audio does not hold up a word

_LAST_SECONDS = 5.0  # that `close` waits for the batch that is heard


class GivenUpError(Exception):
    """Nobody waits for this any more, or the service is being stopped."""


class _Waiting(NamedTuple):
    samples: Samples
    found: Future


class Batcher:
    """Windows in order of arrival, heard together.

    Only the thread that it starts calls the model. What waits is bounded by its callers: each has no more than a few
    windows in here.
    """

    def __init__(self, encode: Callable[[list[Samples]], list[Any]], seconds_per_batch: float):
        """
        Args:
          encode: gives what the model makes of each window (`Transcriber.encode_audio`).
          seconds_per_batch: padded audio that is given to it at a time, if more than one window.
        """
        self._encode, self._limit = encode, seconds_per_batch * decode.SAMPLE_RATE
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self.batches = self.windows = 0  # that were heard
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, samples: Samples) -> Future:
        """What the model makes of a window, when its turn comes. Raises `GivenUpError` after `close`."""
        found: Future = Future()
        with self._changed:
            if self._closed:
                raise GivenUpError
            self._waiting.append(_Waiting(samples, found))
            self._changed.notify()
        return found

    def close(self) -> None:
        """Drops what waits, and ends the thread behind the batch that it is at, for which it waits a few seconds."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().found.cancel()
            self._changed.notify()
        self._thread.join(_LAST_SECONDS)

    def _work(self) -> None:
        while batch := self._next():
            try:
                heard = self._encode([each.samples for each in batch])
            except Exception as error:
                for each in batch:
                    each.found.set_exception(error)
                continue
            self.batches, self.windows = self.batches + 1, self.windows + len(batch)
            for each, found in zip(batch, heard, strict=True):
                each.found.set_result(found)

    def _next(self) -> list[_Waiting]:
        """What waits, up to the limit, once there is something; nothing when it is closed."""
        with self._changed:
            while True:
                batch, samples = [], 0
                while self._waiting:
                    samples += shape_of(len(self._waiting[0].samples))
                    if batch and samples > self._limit:
                        break
                    each = self._waiting.popleft()
                    if each.found.set_running_or_notify_cancel():
                        batch.append(each)
                if batch or self._closed:
                    return batch
                self._changed.wait()


class Caller:
    """One request's way to the batcher, which another thread may cut off.

    Attributes:
      cancelled: set once it was; what works for the request watches it.
    """

    def __init__(self, batcher: Batcher):
        self._batcher = batcher
        self._waiting: Sequence[Future] = ()
        self._lock = threading.Lock()
        self.cancelled = threading.Event()

    def encode(self, parts: list[Samples]) -> list[Any]:
        """What the model makes of each window. Raises `GivenUpError` once `cancel` was called."""
        found: list[Any] = []
        for first in range(0, len(parts), _AT_ONCE):
            with self._lock:
                self.check()
                self._waiting = [self._batcher.submit(part) for part in parts[first : first + _AT_ONCE]]
            try:
                found += [each.result() for each in self._waiting]
            except CancelledError:
                raise GivenUpError from None
        return found

    def check(self) -> None:
        """Raises `GivenUpError` once `cancel` was called."""
        if self.cancelled.is_set():
            raise GivenUpError

    def cancel(self) -> None:
        """Gives up: `encode` raises, and its windows that nobody has begun to hear are dropped."""
        with self._lock:
            self.cancelled.set()
            for each in self._waiting:
                each.cancel()
