"""One thread that owns the model and computes the windows of many requests in common batches."""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.inference.segmentation import Samples, shape_of
from jax_speechlm.serving.admission import GivenUpError, Work

_AT_ONCE = 4  # queued windows of one request, so that an hour of audio does not delay a short clip

_LAST_SECONDS = 5.0  # `close` waits so long for the batch in progress


Encode = Callable[[list[Samples]], list[Any]]
"""Returns a model's output for each window (`Transcriber.encode_audio`)."""


class _Waiting(NamedTuple):
    samples: Samples
    encode: Encode
    output: Future


class Batcher:
    """A first-in-first-out queue of audio windows, encoded in common batches of one model.

    Only its own thread calls the models. Callers bound the queue: each submits only a few windows at a time.

    Attributes:
      batches, windows: numbers encoded so far.
    """

    def __init__(self, seconds_per_batch: float):
        """Starts the thread; `seconds_per_batch` is the most padded audio of a batch, which has at least one window."""
        self._limit = seconds_per_batch * DEFAULT_SAMPLE_RATE
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self.batches = self.windows = 0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, samples: Samples, encode: Encode) -> Future:
        """Queues a window for a model; returns a future of its output. Raises `GivenUpError` if the batcher is closed.

        Windows with the same `encode` share batches.
        """
        output: Future = Future()
        with self._changed:
            if self._closed:
                raise GivenUpError
            self._waiting.append(_Waiting(samples, encode, output))
            self._changed.notify()
        return output

    def close(self) -> None:
        """Cancels queued windows and ends the thread; waits a few seconds for the batch in progress."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().output.cancel()
            self._changed.notify()
        self._thread.join(_LAST_SECONDS)

    def _work(self) -> None:
        while batch := self._next():
            try:
                outputs = batch[0].encode([window.samples for window in batch])
            except Exception as error:
                for window in batch:
                    window.output.set_exception(error)
                continue
            self.batches, self.windows = self.batches + 1, self.windows + len(batch)
            for window, output in zip(batch, outputs, strict=True):
                window.output.set_result(output)

    def _next(self) -> list[_Waiting]:
        """Waits for windows and returns a batch up to the limit, of the oldest's model; an empty one once closed."""
        with self._changed:
            while True:
                batch, others, samples = [], [], 0
                while self._waiting:
                    if batch and self._waiting[0].encode is not batch[0].encode:
                        others.append(self._waiting.popleft())
                        continue
                    samples += shape_of(len(self._waiting[0].samples))
                    if batch and samples > self._limit:
                        break
                    window = self._waiting.popleft()
                    if window.output.set_running_or_notify_cancel():
                        batch.append(window)
                self._waiting.extendleft(reversed(others))
                if batch or self._closed:
                    return batch
                self._changed.wait()


class Caller(Work):
    """One request's access to the batcher and to one of its models, which another thread may cancel."""

    def __init__(self, batcher: Batcher, encode: Encode):
        super().__init__()
        self._batcher, self._encode = batcher, encode

    def encode(self, parts: list[Samples]) -> list[Any]:
        """Returns the model's output for each window. Raises `GivenUpError` once `cancel` was called."""
        outputs: list[Any] = []
        for first in range(0, len(parts), _AT_ONCE):
            some = parts[first : first + _AT_ONCE]
            outputs += self.wait(lambda some=some: [self._batcher.submit(part, self._encode) for part in some])
        return outputs
