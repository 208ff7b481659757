"""Loads the batches of a text plan, ahead of the step.

A batch takes some hundred copies from memory-mapped arrays, about a millisecond, so one NumPy thread is enough.
tf.data, which speech needs for parallel decoding, would add ten seconds of start-up.
"""

import collections
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from data_pipelines.batching.fields import BatchSpec
from data_pipelines.batching.packing import BOUNDARIES, TextPlan
from data_pipelines.storage.tokens import TokenStore

Read = Callable[[int, int, int], np.ndarray]
TextBatch: TypeAlias = dict[str, np.ndarray]
"""One host's rows of a batch: the arrays of `BatchSpec.text`."""


def open_text_batches(
    tokens: TokenStore,
    plan: TextPlan,
    *,
    boundary: int,
    begin: int | None = None,
    host: int = 0,
    num_hosts: int = 1,
    start_step: int = 0,
    num_steps: int | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
    frame_samples: int | None = None,
    prefetch: int = 4,
) -> "TextBatches":
    """Opens the batches of a plan from any step on.

    Args:
      tokens: tokens of the documents that the plan was made from.
      boundary: id before and after each document.
      begin: id before each document, if it differs from the boundary.
      host, num_hosts: number of this host, and of all; it reads a contiguous share of every batch's rows.
      labels: class of each document, for a plan without packing.
      frame_samples: samples per frame of speech, for documents with speech units.

    Raises:
      ValueError: the plan was made from other documents, its batches do not divide among the hosts, or labels are given
        for a packed plan.
    """
    if not np.array_equal(plan.lengths, tokens.lengths):
        raise ValueError(
            f"the plan is not of these {len(tokens.lengths):,} documents and tokenizer; make it from tokens.lengths"
        )
    if labels is not None and (plan.is_packed or len(labels) != len(tokens.lengths)):
        raise ValueError(f"{len(labels)} labels need a plan of {len(labels)} documents made with is_packed=False")
    if plan.sequences_per_batch % num_hosts:
        raise ValueError(
            f"batches of {plan.sequences_per_batch} rows do not divide among {num_hosts} hosts; "
            "make the plan with sequences_per_batch a multiple of the number of hosts"
        )
    spec = BatchSpec.text(row_label=labels is not None, duration=frame_samples is not None)
    ends = boundary if begin is None else begin, boundary

    def make(step: int) -> TextBatch:
        planned = plan.batch(step, host, num_hosts)
        rows = len(planned.example_id)
        batch = spec.empty({"rows": rows, "context": plan.context})
        num_segments, filled = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        for place, row, start, length in zip(planned.place, planned.row, planned.start, planned.length, strict=True):
            span = slice(filled[place], filled[place] + length)
            num_segments[place] += 1
            filled[place] += length
            piece = int(tokens.lengths[row]), int(row), int(start), int(length)
            batch["tokens"][place, span] = _piece(tokens.read, ends, *piece)
            if frame_samples is not None:
                batch["samples"][place, span] = _piece(tokens.frames, (0, 0), *piece) * frame_samples
            batch["segment"][place, span] = num_segments[place]
            batch["position"][place, span] = np.arange(length)
        is_real = planned.example_id >= 0
        batch |= {"example_id": planned.example_id, "weight": is_real.astype(np.float32)}
        if labels is not None:
            batch["label"] = np.where(is_real, np.asarray(labels)[planned.example_id], 0).astype(np.int32)
        return batch

    return TextBatches(make, start_step, num_steps, prefetch)


class TextBatches:
    """Iterator of `TextBatch`; made by `open_text_batches`."""

    def __init__(self, make: Callable[[int], TextBatch], start_step: int, num_steps: int | None, prefetch: int):
        self._make = make
        self._next = start_step
        self._end = None if num_steps is None else start_step + num_steps
        self._pool = ThreadPoolExecutor(1, "text-batches")
        self._pending: collections.deque[Future[TextBatch]] = collections.deque()
        for _ in range(prefetch):
            self._submit()

    def _submit(self) -> None:
        if self._end is None or self._next < self._end:
            self._pending.append(self._pool.submit(self._make, self._next))
            self._next += 1

    def __iter__(self) -> "TextBatches":
        return self

    def __next__(self) -> TextBatch:
        if not self._pending:
            self.close()
            raise StopIteration
        batch = self._pending.popleft().result()
        self._submit()
        return batch

    def close(self) -> None:
        """Ends the iteration; discards pending batches."""
        self._end = self._next
        self._pending.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _piece(
    read: Callable[[int, int, int], np.ndarray],
    ends: tuple[int, int],
    num_tokens: int,
    row: int,
    start: int,
    length: int,
) -> np.ndarray:
    """Returns positions `start` to `start + length` of a document with its two ends; `read` reads its inside."""
    last = num_tokens + BOUNDARIES - 1
    piece = np.full(length, ends[1], np.int32)
    piece[: max(0, 1 - start)] = ends[0]
    first, stop = max(start, 1), min(start + length, last)
    piece[first - start : stop - start] = read(row, first - 1, stop - 1)
    return piece
