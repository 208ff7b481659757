"""Plans speech batches of one utterance a row: every batch of a run is a pure function of (seed, step).

Evaluation and inference use these plans, and training if rows are not packed (`rows`). The index contains durations,
so a whole epoch is planned before the first record is read:

1. items outside the limits are dropped and counted;
2. lengths are rounded up to whole frames and dynamic programming picks the bucket edges that minimise the frames an
   epoch computes, filler rows of last batches included;
3. a bucket's batches all have one static shape, `batch_size x num_samples`, of about `seconds_per_batch` of audio;
4. a permutation keyed by (seed, epoch) shuffles inside each bucket, another the order of the epoch's batches.

Both permutations are evaluated per index (`shuffle.permute`), so that a resume at any step costs O(1), threads and
hosts share no state, and the data state of a checkpoint is the seed and the step.
"""

import abc
import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.shuffle import derive_key, permute, uniform

FILLER = -1  # value in `PlannedBatch.rows` for filler rows of a bucket's last batch

_MAX_EDGES = 2048  # candidate edges of the dynamic programme, whose cost is quadratic in them
_ROWS, _ORDER, _CROP = 0, 1, 2  # streams of randomness


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One static batch shape and its items.

    Attributes:
      num_samples: padded length of the audio, in samples.
      num_tokens: padded length of an item's tokens; 0 in a plan without tokens.
      batch_size: rows of a global batch.
      num_rows: rows per epoch in this bucket, one for each item unless they are packed.
      num_utterances: most items of a packed row; 0 if a row is one item.
      num_text: most tokens of a packed row of text, those included that each item has besides its own; 0 if they are
        not bounded.
    """

    num_samples: int
    num_tokens: int
    batch_size: int
    num_rows: int
    num_utterances: int = dataclasses.field(default=0, repr=False)  # no part of the fingerprint of `BatchPlan`
    num_text: int = dataclasses.field(default=0, repr=False)

    @property
    def num_batches(self) -> int:
        """Batches per epoch; the last may have filler rows."""
        return -(-self.num_rows // self.batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedBatch:
    """The items of one global batch.

    Attributes:
      rows: int32 [batch_size], or [batch_size, utterances] if rows are packed: items, or FILLER.
      crop_at: float64, of the shape of `rows`, in [0, 1): share of the surplus that an item longer than the bucket
        loses at its start; the rest is cropped at its end.
      start: int32, of the shape of `rows`: first sample of each item within its row; 0 of fillers.
    """

    bucket: int
    rows: np.ndarray
    crop_at: np.ndarray
    start: np.ndarray

    def host_slice(self, host: int, num_hosts: int) -> slice:
        """Returns the contiguous range of rows that a host reads."""
        size, rest = divmod(len(self.rows), num_hosts)
        if rest or not 0 <= host < num_hosts:
            raise ValueError(
                f"host {host} of {num_hosts} cannot take an equal share of {len(self.rows)} rows; "
                "make the plan with batch_multiple a multiple of the number of hosts"
            )
        return slice(host * size, (host + 1) * size)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SpeechPlan(abc.ABC):
    """Base of plans of speech batches.

    Attributes:
      buckets: static shapes by ascending length.
      items: int32 [kept], items by ascending length.
      seed: seed of the shuffle; None keeps the order of length in every epoch.
      shortest_first_epochs: number of first epochs with batches in the order of length instead of shuffled.
      dropped: number of items left out, by reason.
      dropped_seconds: their audio in seconds, by reason.
      dropped_share: their share of all audio.
      padding_share: share of an epoch's padded samples without audio, including filler rows.
      sample_rate: of the audio, in Hz.
    """

    buckets: tuple[Bucket, ...]
    items: np.ndarray
    seed: int | None
    shortest_first_epochs: int
    dropped: Mapping[str, int]
    dropped_seconds: Mapping[str, float]
    dropped_share: float
    padding_share: float
    sample_rate: int

    @property
    def num_items(self) -> int:
        """Items that the plan was made from, including dropped ones."""
        return len(self.items) + sum(self.dropped.values())

    @property
    def batch_sizes(self) -> set[int]:
        """Rows of its global batches."""
        return {bucket.batch_size for bucket in self.buckets}

    @property
    @abc.abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps of one pass over all items."""

    @property
    @abc.abstractmethod
    def step_shares(self) -> tuple[float, ...]:
        """Share of each bucket in the steps."""

    @abc.abstractmethod
    def batch(self, step: int) -> PlannedBatch:
        """Plans the global batch of a step, counted from 0 over all epochs."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the plan; equal only for plans with the same batch at every step."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Formats buckets, padding and dropped items as a table."""

    def describe_dropped(self) -> str:
        """Formats the dropped items."""
        text = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count) or "none"
        if self.dropped_share:
            text += f" ({hours(sum(self.dropped_seconds.values()))}, {self.dropped_share:.1%} of the audio)"
        return text


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BatchPlan(SpeechPlan):
    """A bucketed epoch and its shuffle; made by `make_plan` or `make_eval_plan`.

    The items of each bucket are one contiguous range of `items`.

    Attributes:
      cropped_share: share of the kept items' audio that is cropped per epoch; 0 without `max_crop`.
    """

    cropped_share: float

    @functools.cached_property
    def _first_row(self) -> np.ndarray:
        return np.cumsum([0] + [bucket.num_rows for bucket in self.buckets])

    @functools.cached_property
    def _first_batch(self) -> np.ndarray:
        return np.cumsum([0] + [bucket.num_batches for bucket in self.buckets])

    @property
    def steps_per_epoch(self) -> int:
        return int(self._first_batch[-1])

    @property
    def step_shares(self) -> tuple[float, ...]:
        return tuple(bucket.num_batches / self.steps_per_epoch for bucket in self.buckets)

    def batch(self, step: int) -> PlannedBatch:
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        epoch, number = divmod(step, self.steps_per_epoch)
        if self.seed is not None and epoch >= self.shortest_first_epochs:
            key = derive_key(self.seed, epoch, _ORDER)
            number = int(permute(np.array([number]), self.steps_per_epoch, key)[0])
        index = int(np.searchsorted(self._first_batch, number, side="right")) - 1
        bucket = self.buckets[index]
        start = (number - int(self._first_batch[index])) * bucket.batch_size
        places = np.arange(start, min(start + bucket.batch_size, bucket.num_rows))
        if self.seed is not None:
            places = permute(places, bucket.num_rows, derive_key(self.seed, epoch, _ROWS, index))
        rows = np.full(bucket.batch_size, FILLER, np.int32)
        rows[: len(places)] = self.items[self._first_row[index] + places]
        crop_at = np.zeros(len(rows))
        if self.seed is not None:
            crop_at = uniform(rows.astype(np.int64) + 1, derive_key(self.seed, epoch, _CROP))
        return PlannedBatch(index, rows, crop_at, np.zeros_like(rows))

    @functools.cached_property
    def fingerprint(self) -> str:
        text = repr((self.buckets, self.seed, self.shortest_first_epochs))
        digest = hashlib.sha256(text.encode())
        digest.update(np.ascontiguousarray(self.items))
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        lines = [f"{'seconds':>8} {'tokens':>7} {'batch':>6} {'items':>9} {'batches':>8}"]
        for bucket in self.buckets:
            lines.append(
                f"{bucket.num_samples / self.sample_rate:8.2f} {bucket.num_tokens:7d} {bucket.batch_size:6d} "
                f"{bucket.num_rows:9d} {bucket.num_batches:8d}"
            )
        lines.append(
            f"{self.steps_per_epoch} steps an epoch, padding {self.padding_share:.1%}, "
            f"cropped {self.cropped_share:.1%}, dropped: {self.describe_dropped()}\n"
            "a line for each shape: length of a row, most tokens of it, rows of a batch; items and batches of an epoch"
        )
        return "\n".join(lines)


def hours(seconds: float) -> str:
    """Formats a duration in hours: "3.60 h", "0.025 h"."""
    return f"{seconds / 3600:,.2f} h" if seconds >= 3600 else f"{seconds / 3600:.2g} h"


def check_lengths(num_samples: np.ndarray, token_lengths: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the lengths of a plan's items as arrays; raises `ValueError` for other shapes than [items]."""
    num_samples = np.asarray(num_samples)
    if num_samples.ndim != 1 or len(num_samples) >= 2**31:
        raise ValueError(f"num_samples must be one row of fewer than 2^31 lengths, got shape {num_samples.shape}")
    if token_lengths is None:
        return num_samples, None
    token_lengths = np.asarray(token_lengths)
    if token_lengths.shape != num_samples.shape:
        raise ValueError(f"{token_lengths.shape} token lengths do not match {num_samples.shape} audio lengths")
    return num_samples, token_lengths


def select_items(
    num_samples: np.ndarray,
    token_lengths: np.ndarray | None,
    *,
    min_samples: float,
    max_samples: float,
    sample_rate: int,
    max_tokens: int | None = None,
    keep_empty: bool = False,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Selects the items within the limits, and counts the others under the first reason that applies.

    Returns:
      int32 [kept], items in their order; and `dropped`, `dropped_seconds` and `dropped_share` of `SpeechPlan`.

    Raises:
      ValueError: no item is kept.
    """
    drops = {"empty": num_samples <= 0, "too_short": num_samples < min_samples}
    drops = ({} if keep_empty else drops) | {"too_long": num_samples > max_samples}
    if token_lengths is not None and not keep_empty:
        drops["no_tokens"] = token_lengths <= 0
        if max_tokens is not None:
            drops["too_many_tokens"] = token_lengths > max_tokens
    dropped, seconds, keep = {}, {}, np.ones(len(num_samples), bool)
    for reason, fails in drops.items():
        dropped[reason] = int(np.count_nonzero(fails & keep))
        seconds[reason] = int(num_samples[fails & keep].sum(dtype=np.int64)) / sample_rate
        keep &= ~fails
    items = np.flatnonzero(keep).astype(np.int32)
    if not len(items):
        raise ValueError(
            f"no item of {len(num_samples)} is left for the plan (dropped: {dropped}, "
            f"{hours(sum(seconds.values()))} of audio); relax its limits (data.min_seconds, data.max_seconds) or check "
            "the prepared data set"
        )
    share = sum(seconds.values()) * sample_rate / max(int(num_samples.sum(dtype=np.int64)), 1)
    return items, {"dropped": dropped, "dropped_seconds": seconds, "dropped_share": share}


def argsort_lengths(lengths: np.ndarray) -> np.ndarray:
    """Returns the stable order of positive lengths."""
    if lengths.max() < 2**16:
        lengths = lengths.astype(np.uint16)  # numpy sorts 16-bit integers by radix
    return np.argsort(lengths, kind="stable")


def rows_of_batch(row_samples: np.ndarray | int, batch_samples: float, batch_multiple: int) -> np.ndarray:
    """Returns the rows per batch by row length: as many multiples as the samples of a batch allow, at least one."""
    return np.maximum(batch_samples // (row_samples * batch_multiple), 1).astype(np.int64) * batch_multiple


def padded_tokens(most: int) -> int:
    """Returns the padded length of transcripts of at most `most` tokens."""
    return -(-max(most, 1) // 8) * 8


def make_plan(
    num_samples: np.ndarray,
    token_lengths: np.ndarray | None = None,
    *,
    seconds_per_batch: float,
    seed: int | None,
    num_buckets: int = 8,
    batch_multiple: int = 8,
    min_seconds: float = 0.1,
    max_seconds: float = 30.0,
    max_tokens: int | None = None,
    frame_samples: int = 640,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
    max_crop: float = 0.0,
    shortest_first_epochs: int = 0,
    keep_empty: bool = False,
) -> BatchPlan:
    """Plans training batches: each kept item exactly once per epoch, shuffled by (seed, epoch).

    With one static shape per bucket some padding remains: a few per cent with 24 buckets, 13 % with 8 on short clips.
    Without tokens, which must match the audio, `max_crop` reduces it further.

    Args:
      num_samples: integers [items], lengths of the audio in samples.
      token_lengths: integers [items], or None for training on audio alone.
      seconds_per_batch: padded audio of a global batch; exceeded only if `batch_multiple` rows are longer.
      seed: seed of the shuffle; None for the order of length.
      num_buckets: most static shapes, hence compiled programs.
      batch_multiple: divisor of every global batch size, a multiple of the numbers of hosts and devices.
      min_seconds, max_seconds: shorter and longer items are dropped.
      max_tokens: items with more tokens are dropped; None keeps them.
      frame_samples: divisor of padded lengths, usually one frame after subsampling.
      max_crop: largest share of an item's audio that may be cropped per epoch to fit a shorter bucket, at a position
        drawn from (seed, epoch, item); only without tokens.
      shortest_first_epochs: number of first epochs with batches by ascending length (rows still shuffled within a
        bucket), a curriculum for CTC from scratch.
      keep_empty: keep items shorter than `min_seconds` and items without tokens.

    Raises:
      ValueError: an option is out of range, the arrays differ in shape, or no item is kept.
    """
    num_samples, token_lengths = check_lengths(num_samples, token_lengths)
    if not 0 <= max_crop < 1 or (max_crop and token_lengths is not None):
        raise ValueError(f"max_crop must be in [0, 1), and 0 in a plan with tokens; got {max_crop}")
    sizes = {"seconds_per_batch": seconds_per_batch, "num_buckets": num_buckets}
    for name, value in (sizes | {"batch_multiple": batch_multiple, "frame_samples": frame_samples}).items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")

    items, account = select_items(
        num_samples,
        token_lengths,
        min_samples=min_seconds * sample_rate,
        max_samples=max_seconds * sample_rate,
        max_tokens=max_tokens,
        sample_rate=sample_rate,
        keep_empty=keep_empty,
    )
    shortest = num_samples[items] if not max_crop else np.ceil(num_samples[items] * (1 - max_crop)).astype(np.int64)
    frames = np.maximum(-(-shortest // frame_samples), 1)  # an empty clip still needs a shape
    order = argsort_lengths(frames)
    items, frames = items[order], frames[order]

    lengths = np.unique(frames)
    if len(lengths) > _MAX_EDGES:
        lengths = lengths[np.linspace(0, len(lengths) - 1, _MAX_EDGES).astype(int)]
    ends = np.searchsorted(frames, lengths, side="right")
    batch_sizes = rows_of_batch(lengths * frame_samples, seconds_per_batch * sample_rate, batch_multiple)

    buckets, start, real = [], 0, 0
    for edge in bucket_edges(lengths, np.diff(ends, prepend=0), batch_sizes, num_buckets):
        rows = items[start : ends[edge]]
        num_tokens = 0 if token_lengths is None else padded_tokens(int(token_lengths[rows].max()))
        buckets.append(Bucket(int(lengths[edge]) * frame_samples, num_tokens, int(batch_sizes[edge]), len(rows)))
        real += int(np.minimum(num_samples[rows], buckets[-1].num_samples).sum(dtype=np.int64))
        start = int(ends[edge])

    computed = sum(bucket.num_batches * bucket.batch_size * bucket.num_samples for bucket in buckets)
    whole = int(num_samples[items].sum(dtype=np.int64))
    return BatchPlan(
        buckets=tuple(buckets),
        items=items,
        seed=seed,
        shortest_first_epochs=shortest_first_epochs,
        padding_share=1 - real / computed,
        cropped_share=1 - real / max(whole, 1),
        sample_rate=sample_rate,
        **account,
    )


def make_eval_plan(
    num_samples: np.ndarray,
    token_lengths: np.ndarray | None = None,
    *,
    max_seconds: float | None = None,
    limit: int | None = None,
    **shape: Any,
) -> BatchPlan:
    """Plans evaluation batches: every item once per epoch by ascending length; drops only items that are too long.

    Empty audio and empty transcripts are kept, because corpus error rates count them. Arguments as in `make_plan`
    (`shape` are those that decide the shapes of batches); `max_seconds` None sets no limit, and with a `limit` only so
    many items, the first, are kept.
    """
    longest, kept = math.inf if max_seconds is None else max_seconds, len(num_samples[:limit])
    token_lengths = None if token_lengths is None else token_lengths[:kept]
    plan = make_plan(num_samples[:kept], token_lengths, seed=None, max_seconds=longest, keep_empty=True, **shape)
    if beyond := len(num_samples) - kept:
        plan = dataclasses.replace(plan, dropped={**plan.dropped, "beyond_limit": beyond})
    if too_long := plan.dropped["too_long"]:
        logging.getLogger(__name__).warning(
            "%d of %d items are longer than %g s and will not be evaluated", too_long, plan.num_items, max_seconds
        )
    return plan


def bucket_edges(lengths: np.ndarray, counts: np.ndarray, batch_sizes: np.ndarray, num_buckets: int) -> list[int]:
    """Chooses at most `num_buckets` of the lengths as bucket edges so that an epoch computes the fewest frames.

    A bucket with edge j holds the items longer than the previous edge, and costs its number of batches times
    `batch_sizes[j] * lengths[j]`, including padding and filler rows. The minimum over all partitions is found exactly,
    by dynamic programming in O(num_buckets * candidates^2).

    Args:
      lengths: ascending distinct lengths [candidates], in any unit.
      counts: items by length [candidates].
      batch_sizes: rows of a batch by padded length [candidates].
      num_buckets: most edges to choose.

    Returns:
      Ascending indices into `lengths`; the last is the last candidate.
    """
    total = len(lengths)
    items_before = np.concatenate([[0], np.cumsum(counts)])
    # best[k, j]: least cost of the first j candidates in at most k buckets; came_from: start of the last bucket
    best = np.full((num_buckets + 1, total + 1), np.inf)
    best[:, 0] = 0
    came_from = np.zeros((num_buckets + 1, total + 1), np.int32)
    rows = np.arange(num_buckets)
    for end in range(1, total + 1):
        size = batch_sizes[end - 1]
        num_batches = -(-(items_before[end] - items_before[:end]) // size)
        costs = best[:-1, :end] + (num_batches * size * lengths[end - 1])[None, :]
        came_from[1:, end] = costs.argmin(axis=1)
        best[1:, end] = costs[rows, came_from[1:, end]]
    edges, end, buckets_left = [], total, num_buckets
    while end:
        edges.append(end - 1)
        end = int(came_from[buckets_left, end])
        buckets_left -= 1
    return edges[::-1]
