"""Loads the batches of a plan: tf.data reads, decodes and pads records in parallel and ahead of the step."""

import dataclasses
import logging
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from data_pipelines.audio.decode import decode_flac
from data_pipelines.audio.speed import change_speed
from data_pipelines.batching import fields
from data_pipelines.batching.fields import BatchSpec
from data_pipelines.batching.joins import Joins
from data_pipelines.batching.noise import NoiseReader
from data_pipelines.batching.plan import FILLER, SpeechPlan
from data_pipelines.batching.read_ahead import ReadAhead
from data_pipelines.batching.rows import RowPlan
from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.frame_labels import FrameLabels
from data_pipelines.storage.index import Index, IndexMismatchError
from data_pipelines.storage.pitch import FramePitch
from data_pipelines.storage.records import RecordReader
from data_pipelines.storage.units import UnitIdStore

Batch: TypeAlias = dict[str, np.ndarray]
"""One host's rows of a batch: the arrays of `BatchSpec.speech`, packed if the plan is, of the shape of its bucket."""


def open_batches(
    index: Index,
    plan: SpeechPlan,
    tokenizer: Tokenizer | None = None,
    *,
    host: int = 0,
    num_hosts: int = 1,
    start_step: int = 0,
    num_steps: int | None = None,
    speeds: Sequence[float] = (1.0,),
    joins: Joins | None = None,
    noise: NoiseReader | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
    domains: Sequence[int] | np.ndarray | None = None,
    column: str = "text",
    texts: Sequence[str] | None = None,
    frame_labels: UnitIdStore | FrameLabels | None = None,
    pitch: FramePitch | None = None,
    parallel: int | None = None,
    num_reads: int = 128,
    prefetch: int = 4,
    max_bad: int = 100,
) -> "Batches":
    """Opens the batches of a plan from any step on.

    Args:
      tokenizer: encodes the texts as `tokens`; None for audio alone.
      host, num_hosts: number of this host, and of all; it reads a contiguous share of every batch's rows.
      speeds: speed factors that the plan was made with (`speed.with_speeds`).
      joins: pairs of rows that the plan was made with, after the rows at their speeds; an item has the id of its first.
      labels, domains: class, or classes [rows, labels], and domain of each row of the index.
      column: text column of the index to encode.
      texts: of each row of the index, to encode instead of a column.
      frame_labels: speech units or classes per frame for the rows of the index; crops then start at frame boundaries.
      pitch: of the frames of the rows of the index; the same holds.
      parallel: batches assembled at a time, one per thread; by default the number of cores, at most 8.
      num_reads: records read at a time, for all batches together; at 50 ms a read, 128 make 2,500 records/s.
      max_bad: damaged records that are skipped before the run stops.

    Raises:
      IndexMismatchError: the records do not match the index.
      ValueError: the plan was made from other lengths, its batches do not divide among the hosts, or frame labels or
        pitch are combined with a change of speed, or have frames of which those of the packed rows are no multiple.
    """
    joins = joins or Joins(np.zeros(0, np.int64), np.zeros(0, np.int64))
    if plan.num_items != len(index) * len(speeds) + len(joins.first):
        pairs = f" and {len(joins.first)} pairs" if len(joins.first) else ""
        raise ValueError(
            f"the plan has {plan.num_items} items, but {len(index)} rows at {len(speeds)} speeds{pairs} make "
            f"{len(index) * len(speeds) + len(joins.first)}; make it from with_speeds(index.num_samples, ..., speeds)"
        )
    by_row = {"label" if np.ndim(labels) < 2 else "labels": labels, "domain": domains}
    by_row = {name: np.asarray(values) for name, values in by_row.items() if values is not None}
    if len(joins.first) and (by_row or frame_labels is not None or pitch is not None):
        raise ValueError("joined utterances have no class, domain, units or pitch of their own: set data.joined to 0")
    packed = isinstance(plan, RowPlan)
    by_frame = {"frame_labels": frame_labels, "pitch": pitch}
    by_frame = {name: values for name, values in by_frame.items() if values is not None}
    for name, values in by_frame.items():
        what = "pitch is" if name == "pitch" else "frame labels are"
        if tuple(speeds) != (1.0,):
            raise ValueError(f"{what} of audio at its own speed: set data.speeds to 1.0")
        if packed and plan.frame_samples % values.grid.frame_samples:
            raise ValueError(
                f"utterances start at multiples of {plan.frame_samples} samples in packed rows, and {what} every "
                f"{values.grid.frame_samples}: set data.packed to false"
            )
    if len({values.grid for values in by_frame.values()}) > 1:
        raise ValueError("frame labels and pitch are of different frames: make both for one front end")
    for bucket in plan.buckets:
        if bucket.batch_size % num_hosts:
            raise ValueError(
                f"batches of {bucket.batch_size} rows do not divide among {num_hosts} hosts; "
                "make the plan with batch_multiple a multiple of the number of hosts"
            )
    optional = {"noise": noise is not None, "domain": "domain" in by_row}
    optional |= {"row_label": "label" in by_row, "row_labels": "labels" in by_row} | dict.fromkeys(by_frame, True)
    optional["text"] = packed and plan.added_tokens is not None
    spec = BatchSpec.speech(packed=packed, **optional)
    if texts is None and tokenizer is not None and not index.is_in_records(column):
        texts = index.column(column)
    assembler = _Assembler(
        index, plan, spec, host, num_hosts, tuple(speeds), joins, tokenizer, texts, noise, by_row, by_frame, max_bad
    )
    return Batches(assembler, start_step, num_steps, parallel or min(os.cpu_count() or 1, 8), num_reads, prefetch)


class Batches:
    """Iterator of `Batch`; made by `open_batches`, ended early by `close()` or the end of the program."""

    def __init__(
        self,
        assembler: "_Assembler",
        start_step: int,
        num_steps: int | None,
        parallel: int,
        num_reads: int,
        prefetch: int,
    ):
        import tensorflow as tf  # slow import, needed only to read batches

        tf.config.set_visible_devices([], "GPU")  # the accelerators belong to JAX
        stop_step = None if num_steps is None else start_step + num_steps
        steps = tf.data.Dataset.range(start_step, tf.int64.max if stop_step is None else stop_step)
        readers = ThreadPoolExecutor(num_reads, "read-records")
        assembler.read_ahead(readers, start_step=start_step, stop_step=stop_step, ahead=num_reads)
        dtypes = [tf.as_dtype(dtype) for dtype in assembler.spec.dtypes]
        dataset = steps.map(
            lambda step: tf.numpy_function(assembler.arrays, [step], dtypes),
            num_parallel_calls=parallel,
            deterministic=True,
        ).prefetch(prefetch)
        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = parallel + 1
        self._assembler = assembler
        self._iterator = [dataset.with_options(options).as_numpy_iterator()]
        # Taking a finished batch from tf.data waits for its threads, milliseconds if all cores are busy with a step, so
        # the next batch is taken while the step runs.
        self._taker = ThreadPoolExecutor(1, "next-batch")
        self._taken = self._taker.submit(next, self._iterator[0], None)
        # tf.data's threads run Python: they must end before the interpreter does, or the process aborts at exit
        self.close = weakref.finalize(self, _close, self._taker, self._iterator, readers)

    @property
    def bad(self) -> int:
        """Number of unreadable records skipped so far, including batches read ahead."""
        return len(self._assembler.bad)

    @property
    def bad_records(self) -> list[str]:
        """Names of the skipped records, with reasons."""
        return list(self._assembler.bad.values())

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        arrays = self._taken.result() if self._iterator else None
        if arrays is None:
            self.close()
            raise StopIteration
        self._taken = self._taker.submit(next, self._iterator[0], None)
        batch = dict(zip(self._assembler.spec.names, arrays, strict=True))
        if not len(batch["weight"]):
            raise self._assembler.error
        return batch


def _close(taker: ThreadPoolExecutor, iterator: list, readers: ThreadPoolExecutor) -> None:
    taker.shutdown(cancel_futures=True)
    iterator.clear()  # waits for the batches under assembly, which wait for their records
    readers.shutdown(cancel_futures=True)


@dataclasses.dataclass
class _Assembler:
    """Assembles one host's share of the batch of any step. Thread-safe."""

    index: Index
    plan: SpeechPlan
    spec: BatchSpec
    host: int
    num_hosts: int
    speeds: tuple[float, ...]
    joins: Joins
    tokenizer: Tokenizer | None
    texts: Sequence[str] | pa.ChunkedArray | None  # None for those in the records
    noise: NoiseReader | None
    by_row: dict[str, np.ndarray]  # values of rows of the index, by field
    by_frame: dict[str, UnitIdStore | FrameLabels | FramePitch]  # values of frames, by field; all of one grid
    max_bad: int
    bad: dict[int, str] = dataclasses.field(default_factory=dict)
    """By row, so that a record counts once over all epochs."""
    error: Exception | None = None

    def __post_init__(self):
        self._reader, self._lock = RecordReader(self.index), threading.Lock()

    def read_ahead(self, pool: ThreadPoolExecutor, **steps: int | None) -> None:
        """Starts to read on a pool of threads; to be called before `arrays`.

        Args:
          **steps: which steps to read and how far ahead, as for `ReadAhead`.
        """
        self._record_reads = ReadAhead(pool, self._reader.read, self._rows, **steps)
        if len(self.joins.first):
            self._second_reads = ReadAhead(pool, self._reader.read, self._second_rows, **steps)
        if self.noise is not None:
            self._noise_reads = ReadAhead(pool, self._read_noise, self._noise_rows, **steps)

    def _items(self, step: int) -> np.ndarray:
        planned = self.plan.batch(step)
        return planned.rows[planned.host_slice(self.host, self.num_hosts)].ravel()

    def _rows(self, step: int) -> list[int | None]:
        items = self._items(step)
        rows = self._first_rows(items).tolist()
        return [None if item == FILLER else row for item, row in zip(items.tolist(), rows, strict=True)]

    def _first_rows(self, items: np.ndarray) -> np.ndarray:
        """Returns the rows of items; of pairs their first."""
        pair = items - len(self.index) * len(self.speeds)
        rows = items % len(self.index)
        return np.where(pair < 0, rows, self.joins.first[np.maximum(pair, 0)]) if len(self.joins.first) else rows

    def _second_rows(self, step: int) -> list[int | None]:
        pairs = self._items(step) - len(self.index) * len(self.speeds)
        return [int(self.joins.second[pair]) if pair >= 0 else None for pair in pairs.tolist()]

    def _noise_rows(self, step: int) -> list[tuple[int, int, int]]:
        planned = self.plan.batch(step)
        mine = planned.host_slice(self.host, self.num_hosts)
        num_samples = self.plan.buckets[planned.bucket].num_samples
        return [(step, place, num_samples) for place in range(mine.start, mine.stop)]  # of the global batch

    def _read_noise(self, row: tuple[int, int, int]) -> np.ndarray:
        return self.noise.stretch(*row)

    def arrays(self, step: np.int64) -> list[np.ndarray]:
        """Returns the batch's arrays in the order of the fields; after an exception empty arrays, with `error` set.

        tf.data would wrap an exception in a graph error that hides its message.
        """
        try:
            batch = self._batch(int(step))
            return [batch[name] for name in self.spec.names]
        except Exception as error:
            self.error = self.error or error
            return [np.zeros(0, dtype) for dtype in self.spec.dtypes]

    def _batch(self, step: int) -> Batch:
        planned = self.plan.batch(step)
        bucket = self.plan.buckets[planned.bucket]
        mine = planned.host_slice(self.host, self.num_hosts)
        items, crop_at, start = planned.rows[mine], planned.crop_at[mine], planned.start[mine]
        sizes = {"rows": len(items), "samples": bucket.num_samples, "tokens": bucket.num_tokens}
        sizes |= {"utterances": bucket.num_utterances, "text": bucket.num_text}
        if "labels" in self.by_row:
            sizes["labels"] = self.by_row["labels"].shape[-1]
        for values in self.by_frame.values():
            sizes["frames"] = values.grid.num_frames(bucket.num_samples)
        batch = self.spec.empty(sizes)
        batch["example_id"][:] = np.where(items == FILLER, -1, self._first_rows(items))
        if fields.START in self.spec:
            batch["audio_start"][:] = start
        reads = self._record_reads.take(step)
        seconds = self._second_reads.take(step) if len(self.joins.first) else [None] * len(reads)
        for place, read, second in zip(np.ndindex(items.shape), reads, seconds, strict=True):
            if read is not None:
                self._fill(batch, place, int(items[place]), crop_at[place], int(start[place]), (read, second))
        if fields.TEXT_SEGMENT in self.spec:
            lengths = batch["weight"], batch["token_length"]
            batch["text_segment"] = fields.text_segment(*lengths, self.plan.added_tokens, bucket.num_text)
        if self.noise is not None:
            batch["noise"] = np.stack([read.result() for read in self._noise_reads.take(step)])
        for name, values in self.by_row.items():
            is_filler = (items == FILLER).reshape(*items.shape, *(1,) * (values.ndim - 1))
            batch[name] = np.where(is_filler, 0, values[batch["example_id"]]).astype(np.int32)
        return batch

    def _fill(
        self,
        batch: Batch,
        place: tuple[int, ...],
        item: int,
        crop_at: float,
        at: int,
        records: tuple[Future[tuple[bytes, str]], Future[tuple[bytes, str]] | None],
    ) -> None:
        """Stores an item at (row,), or (row, utterance) of a packed row; its first sample is sample `at` of the row.

        Args:
          records: of the item; of a pair both.
        """
        row = int(self._first_rows(np.array([item]))[0])
        first = self._decoded(row, records[0])
        if first is None:
            return
        samples, text = first
        if records[1] is None:
            samples = change_speed(samples, self.speeds[item // len(self.index)])
        else:
            second_row = int(self.joins.second[item - len(self.index) * len(self.speeds)])
            if (second := self._decoded(second_row, records[1])) is None:
                return
            samples = np.concatenate([samples, np.zeros(self.joins.pause, np.int16), second[0]])
        length = min(len(samples), batch["audio"].shape[1] - at)
        start = int(crop_at * (len(samples) - length + 1))
        for name, values in self.by_frame.items():
            grid = values.grid
            first_frame = start // grid.frame_samples
            start = first_frame * grid.frame_samples
            of_frames = values.read(row, first_frame, first_frame + grid.num_frames(length))
            frame_at = at // grid.frame_samples
            batch[name][place[0], frame_at : frame_at + len(of_frames)] = of_frames
        batch["audio"][place[0], at : at + length] = samples[start : start + length]
        batch["audio_length"][place] = length
        batch["weight"][place] = 1
        if self.tokenizer is not None:
            tokens = self._tokens(row, text)
            if records[1] is not None:
                tokens = [*tokens, *self.joins.gap, *self._tokens(second_row, second[1])]
            if len(tokens) > batch["tokens"].shape[-1]:
                part, number = self.index.locate(row)
                raise IndexMismatchError(
                    f"record {number} of {part} has {len(tokens)} tokens, more than the {batch['tokens'].shape[-1]} of "
                    "its bucket; make the plan from token_lengths(index, tokenizer) with this tokenizer"
                )
            batch["tokens"][place][: len(tokens)] = tokens
            batch["token_length"][place] = len(tokens)

    def _tokens(self, row: int, text: str) -> Sequence[int]:
        return self.tokenizer.encode(text if self.texts is None else str(self.texts[row]))

    def _decoded(self, row: int, record: Future[tuple[bytes, str]]) -> tuple[np.ndarray, str] | None:
        """Returns samples and text of a record; None of one that cannot be read, which is skipped."""
        try:
            flac, text = record.result()
            samples = decode_flac(flac)
        except Exception as error:  # checksum and decoder errors: skip the record
            self._skip(row, error)
            return None
        if len(samples) != self.index.num_samples[row]:
            part, number = self.index.locate(row)
            raise IndexMismatchError(
                f"record {number} of {part} has {len(samples)} samples, but {part.index_path} says "
                f"{self.index.num_samples[row]}: the index does not match its records; {part.remedy}"
            )
        return samples, text

    def _skip(self, row: int, error: Exception) -> None:
        part, number = self.index.locate(row)
        reason = getattr(error, "error_string", error)  # libsndfile's message without a buffer address
        with self._lock:
            if row not in self.bad:
                self.bad[row] = f"record {number} of {part} in {part.records_dir}: {reason}"
                logging.getLogger(__name__).warning("skipped %s", self.bad[row])
            if len(self.bad) > self.max_bad:
                raise DataError(
                    f"{len(self.bad)} records could not be read, more than max_bad={self.max_bad} allows; "
                    f"the first: {next(iter(self.bad.values()))}; {part.remedy}"
                )
