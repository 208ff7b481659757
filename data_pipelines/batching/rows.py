"""Plans packed speech batches: several utterances per row, as a pure function of (seed, step).

Utterances follow one another from the start of a row. Each starts at an output frame of the speech encoder, after the
gap that the front end needs. Padding is small, and a run has one static shape per row length, usually one.

1. A histogram of utterance lengths, in frames, is packed (`histogram_packing`): best fit, longest first. With several
   row lengths, an utterance that fits into no open row opens a row of the shortest sufficient length; short
   utterances therefore fill long rows first. Where transcripts follow their audio in a row of a language model, the
   histogram is over lengths and numbers of tokens, and the tokens of a row are bounded too.
2. Permutations keyed by (seed, epoch) shuffle the rows of an epoch, and assign utterances to slots of their class: of
   their length, and of about their number of tokens where tokens are bounded.
3. Epochs follow one another within a batch, without filler rows. With several row lengths, their batches are
   interleaved in proportion.

The first epochs of a curriculum pack rows in ascending order of length, and batches keep that order; the last batch
of a row length may have filler rows. Permutations are evaluated per index (`shuffle.permute`): a resume at any step
costs O(1), and hosts share no state.
"""

import dataclasses
import functools
import hashlib
import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from data_pipelines.batching.histogram_packing import Classes, Packing, Patterns, pack_ascending, pack_histogram
from data_pipelines.batching.interleaving import Interleaving
from data_pipelines.batching.plan import (
    FILLER,
    Bucket,
    PlannedBatch,
    SpeechPlan,
    argsort_lengths,
    check_lengths,
    padded_tokens,
    rows_of_batch,
    select_items,
)
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.shuffle import derive_key, keys_of, permute

ROOM_LEFT = 0.01  # acceptable share of unused frames when the row length is chosen

_ORDER, _ITEMS, _BUCKETS = 0, 1, 2  # streams of randomness
_MAX_CANDIDATES = 24  # row lengths that divide a batch; packing takes about 50 ms per candidate
_TEXT_ROOM = (1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.6, 2.0)  # candidates for a row's text, relative to the mean
_TEXT_BITS = 6  # numbers of tokens are rounded up to so many significant bits: by 1.5 % on average


@dataclasses.dataclass(frozen=True, eq=False)
class RowLayout:
    """Rows of an epoch, ordered by bucket.

    Attributes:
      num_rows: number of rows by bucket.
      class_frames: integers [classes], length of a class of items, in frames.
    """

    packing: Packing
    num_rows: tuple[int, ...]
    class_frames: np.ndarray

    @classmethod
    def of(
        cls, items: np.ndarray, histogram: np.ndarray, patterns: Patterns, classes: Classes, row_frames: Sequence[int]
    ) -> "RowLayout":
        """Orders patterns by row length, one of `row_frames`; `items` are by ascending class."""
        bucket = [_bucket_of(pattern, classes, row_frames) for pattern, _ in patterns]
        order = np.argsort(bucket, kind="stable")
        copies = [copies for _, copies in patterns]
        num_rows = np.bincount(bucket, copies, minlength=len(row_frames)).astype(int)
        packing = Packing.of(items, histogram, [patterns[at] for at in order])
        return cls(packing, tuple(num_rows.tolist()), classes.length)

    @functools.cached_property
    def first_row(self) -> np.ndarray:
        return np.cumsum((0, *self.num_rows))


def _bucket_of(pattern: Sequence[int], classes: Classes, row_frames: Sequence[int]) -> int:
    return bisect_left(row_frames, classes.length[max(pattern)])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RowPlan(SpeechPlan):
    """A packed epoch and its shuffle; made by `make_row_plan`.

    Attributes:
      seed: seed of the shuffle.
      layout: rows of a shuffled epoch.
      ascending: rows of an epoch of the curriculum; None without a curriculum.
      frame_samples: unit of utterance starts, in samples.
      added_tokens: tokens that a row of text has for each utterance besides its own; None if tokens are not bounded.
      text_padding_share: share of an epoch's places for text without a token; 0 if tokens are not bounded.
    """

    seed: int
    layout: RowLayout
    ascending: RowLayout | None
    frame_samples: int
    added_tokens: int | None = None
    text_padding_share: float = 0.0

    @functools.cached_property
    def _quotas(self) -> tuple[int, ...]:
        """Steps by bucket in `_period` epochs."""
        return tuple(bucket.num_rows * (self._period // bucket.batch_size) for bucket in self.buckets)

    @property
    def _period(self) -> int:
        return math.lcm(*(bucket.batch_size for bucket in self.buckets))

    @functools.cached_property
    def _interleaving(self) -> Interleaving:
        return Interleaving(self._quotas, derive_key(self.seed, _BUCKETS))

    @functools.cached_property
    def _first_ascending(self) -> np.ndarray:
        """First step by bucket in an epoch of the curriculum, followed by the steps of that epoch."""
        rows = self.ascending.num_rows if self.ascending else ()
        sizes = [bucket.batch_size for bucket in self.buckets[: len(rows)]]
        return np.cumsum([0] + [-(-num // size) for num, size in zip(rows, sizes, strict=True)])

    @property
    def curriculum_steps(self) -> int:
        """Steps of the curriculum, before the shuffled epochs."""
        return self.shortest_first_epochs * int(self._first_ascending[-1])

    @property
    def steps_per_epoch(self) -> int:
        return -(-sum(self._quotas) // self._period)

    @property
    def step_shares(self) -> tuple[float, ...]:
        return tuple(quota / sum(self._quotas) for quota in self._quotas)

    @property
    def curriculum_padding_share(self) -> float:
        """Like `padding_share`, for an epoch of the curriculum."""
        steps = np.diff(self._first_ascending)
        computed = sum(
            int(count) * bucket.batch_size * bucket.num_samples
            for count, bucket in zip(steps, self.buckets, strict=True)
        )
        shuffled = sum(bucket.num_rows * bucket.num_samples for bucket in self.buckets)
        return 1 - (1 - self.padding_share) * shuffled / computed

    def batch(self, step: int) -> PlannedBatch:
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        if step < self.curriculum_steps:
            epoch, number = divmod(step, int(self._first_ascending[-1]))
            index = int(np.searchsorted(self._first_ascending, number, side="right")) - 1
            size = self.buckets[index].batch_size
            start = (number - int(self._first_ascending[index])) * size
            rows = np.arange(start, min(start + size, self.ascending.num_rows[index]))
            return self._planned(self.ascending, index, rows, np.full(len(rows), epoch))
        index, number = self._interleaving.place(step - self.curriculum_steps)
        bucket = self.buckets[index]
        epoch, rows = np.divmod(number * bucket.batch_size + np.arange(bucket.batch_size), bucket.num_rows)
        epoch += self.shortest_first_epochs
        rows = permute(rows, bucket.num_rows, keys_of(derive_key(self.seed, _ORDER, index), epoch))
        return self._planned(self.layout, index, rows, epoch)

    def _planned(self, layout: RowLayout, index: int, rows: np.ndarray, epoch: np.ndarray) -> PlannedBatch:
        """Returns the batch of rows of a bucket; `epoch` has the epoch of every row."""
        bucket, packing = self.buckets[index], layout.packing
        place, kind, rank = packing.slots(layout.first_row[index] + rows)
        counts = np.diff(packing.first_of_class)
        keys = keys_of(derive_key(self.seed, _ITEMS), epoch[place] * len(counts) + kind)
        rank = permute(rank, counts[kind], keys)
        length = layout.class_frames[kind]
        first_slot = np.searchsorted(place, place)  # of the slot's row
        before = np.cumsum(length) - length
        at = place, np.arange(len(place)) - first_slot
        items = np.full((bucket.batch_size, bucket.num_utterances), FILLER, np.int32)
        items[at] = packing.pieces[packing.first_of_class[kind] + rank]
        start = np.zeros_like(items)
        start[at] = (before - before[first_slot]) * self.frame_samples
        return PlannedBatch(index, items, np.zeros(items.shape), start)

    @functools.cached_property
    def fingerprint(self) -> str:
        utterances = [bucket.num_utterances for bucket in self.buckets]
        settings = (self.buckets, utterances, self.seed, self.shortest_first_epochs, self.frame_samples)
        if self.added_tokens is not None:
            settings += (self.added_tokens, [bucket.num_text for bucket in self.buckets])
        digest = hashlib.sha256(repr(settings).encode())
        for layout in (self.layout, self.ascending) if self.ascending else (self.layout,):
            packing = layout.packing
            for array in (packing.copies, packing.first_slot, packing.slot_class, packing.first_of_class):
                digest.update(np.ascontiguousarray(array, np.int64))
        digest.update(np.ascontiguousarray(self.items))
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        bounded = self.added_tokens is not None
        text = f" {'text':>6}" if bounded else ""
        lines = [f"{'seconds':>8} {'tokens':>7} {'utterances':>10}{text} {'batch':>6} {'rows':>9} {'batches':>8}"]
        for bucket in self.buckets:
            seconds = bucket.num_samples / self.sample_rate
            text = f" {bucket.num_text:6d}" if bounded else ""
            lines.append(
                f"{seconds:8.2f} {bucket.num_tokens:7d} {bucket.num_utterances:10d}{text} "
                f"{bucket.batch_size:6d} {bucket.num_rows:9d} {bucket.num_rows / bucket.batch_size:8.1f}"
            )
        num_rows = sum(bucket.num_rows for bucket in self.buckets)
        lines.append(
            f"{self.steps_per_epoch} steps an epoch, {len(self.items)} utterances, {len(self.items) / num_rows:.1f} a "
            f"row, padding {self.padding_share:.1%}{f' and {self.text_padding_share:.1%} of text' if bounded else ''}, "
            f"dropped: {self.describe_dropped()}"
        )
        lines.append(
            "a line for each shape: length of a row, most tokens of an utterance, most utterances of a row, "
            f"{'most text tokens of a row, ' if bounded else ''}rows of a batch; rows and batches of an epoch"
        )
        if self.ascending:
            lines.append(
                f"by ascending length at first: {self.shortest_first_epochs} epochs, {self.curriculum_steps} steps, "
                f"padding {self.curriculum_padding_share:.1%}"
            )
        return "\n".join(lines)


def make_row_plan(
    num_samples: np.ndarray,
    token_lengths: np.ndarray | None = None,
    *,
    seconds_per_batch: float,
    seed: int,
    row_seconds: Sequence[float] = (),
    max_utterances: int = 32,
    batch_multiple: int = 8,
    min_seconds: float = 0.1,
    max_seconds: float = 30.0,
    frame_samples: int = 640,
    gap_samples: int = 0,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
    shortest_first_epochs: int = 0,
    added_tokens: int | None = None,
) -> RowPlan:
    """Plans training batches of packed rows: each kept item exactly once per epoch, shuffled by (seed, epoch).

    Args:
      num_samples: integers [items], lengths of the audio in samples.
      token_lengths: integers [items], or None for training on audio alone.
      seconds_per_batch: audio of a global batch; exceeded only if `batch_multiple` rows are longer.
      seed: seed of the shuffle.
      row_seconds: row lengths, rounded up to whole frames; empty for one, chosen by `choose_row_frames`.
      max_utterances: maximum number of items per row; bounds the size of per-utterance arrays.
      batch_multiple: divisor of every global batch size, a multiple of the numbers of hosts and devices.
      min_seconds, max_seconds: shorter and longer items are dropped, as are items longer than the longest row.
      frame_samples: one frame after subsampling; items start at multiples of it.
      gap_samples: minimum distance between two items of a row.
      shortest_first_epochs: number of initial epochs in ascending order of length, a curriculum for CTC from scratch.
      added_tokens: for rows of a language model that hold the transcripts too: tokens that each utterance has besides
        its own, such as a prompt. A row's tokens are then bounded (`Bucket.num_text`), by the number that leaves least
        unused, of audio and text together. None bounds nothing, as does `token_lengths` of None.

    Raises:
      ValueError: an option is out of range, the arrays differ in shape, or no item is kept.
    """
    num_samples, token_lengths = check_lengths(num_samples, token_lengths)
    sizes = {"seconds_per_batch": seconds_per_batch, "max_utterances": max_utterances, "frame_samples": frame_samples}
    sizes |= {"batch_multiple": batch_multiple, "row_seconds": min(row_seconds, default=1)}
    for name, value in sizes.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if gap_samples < 0:
        raise ValueError(f"gap_samples must not be negative, got {gap_samples}")

    row_frames = sorted({-(-round(seconds * sample_rate) // frame_samples) for seconds in row_seconds})
    longest = row_frames[-1] * frame_samples if row_frames else math.inf
    items, account = select_items(
        num_samples,
        token_lengths,
        min_samples=min_seconds * sample_rate,
        max_samples=min(max_seconds * sample_rate, longest),
        sample_rate=sample_rate,
    )
    slots = -(-(num_samples[items].astype(np.int64) + gap_samples) // frame_samples)
    if not row_frames:
        histogram = np.bincount(np.minimum(slots, -(-int(num_samples[items].max()) // frame_samples)))
        batch_frames = int(seconds_per_batch * sample_rate / (frame_samples * batch_multiple))
        row_frames = [choose_row_frames(histogram, batch_frames, max_utterances)]
    # An item that fits the longest row only without its gap has the row to itself: no neighbour needs the gap.
    lengths = np.minimum(slots, row_frames[-1])
    bounded = added_tokens is not None and token_lengths is not None
    text = _rounded_up(token_lengths[items] + added_tokens) if bounded else np.zeros_like(lengths)
    kinds, classes = _classes(lengths, text) if bounded else (lengths, None)
    order = argsort_lengths(kinds)
    items, text, histogram = items[order], text[order], np.bincount(kinds)

    if classes is not None:
        classes = _with_bound(histogram, classes, row_frames, max_utterances)
    else:
        classes = Classes.of_lengths(histogram, row_frames)
    patterns = pack_histogram(histogram, row_frames, max_utterances, classes)
    used = sorted({_bucket_of(pattern, classes, row_frames) for pattern, _ in patterns})
    row_frames = [row_frames[index] for index in used]
    classes = dataclasses.replace(classes, row_text=[classes.row_text[index] for index in used])
    layout, ascending = RowLayout.of(items, histogram, patterns, classes, row_frames), None
    if shortest_first_epochs:
        most = max(len(pattern) for pattern, _ in patterns)
        rising = pack_ascending(histogram, row_frames, most, classes)
        ascending = RowLayout.of(items, histogram, rising, classes, row_frames)
        patterns = patterns + rising
    most_tokens = _by_class(token_lengths[items], histogram) if token_lengths is not None else None
    buckets = []
    for index, frames in enumerate(row_frames):
        held = [pattern for pattern, _ in patterns if _bucket_of(pattern, classes, row_frames) == index]
        tokens = 0 if most_tokens is None else padded_tokens(int(most_tokens[max(map(max, held))]))
        size = int(rows_of_batch(frames * frame_samples, seconds_per_batch * sample_rate, batch_multiple))
        places = padded_tokens(max(int(classes.text[list(row)].sum()) for row in held)) if bounded else 0
        shape = {"num_utterances": max(map(len, held)), "num_text": places}
        buckets.append(Bucket(frames * frame_samples, tokens, size, layout.num_rows[index], **shape))
    if bounded:
        tokens = int((token_lengths[items].astype(np.int64) + added_tokens).sum())
        unused_text = 1 - tokens / sum(bucket.num_rows * bucket.num_text for bucket in buckets)
    real = int(num_samples[items].sum(dtype=np.int64))
    return RowPlan(
        buckets=tuple(buckets),
        items=items,
        seed=seed,
        shortest_first_epochs=shortest_first_epochs,
        padding_share=1 - real / sum(bucket.num_rows * bucket.num_samples for bucket in buckets),
        sample_rate=sample_rate,
        layout=layout,
        ascending=ascending,
        frame_samples=frame_samples,
        added_tokens=added_tokens if bounded else None,
        text_padding_share=unused_text if bounded else 0.0,
        **account,
    )


def choose_row_frames(histogram: np.ndarray, batch_frames: int, max_utterances: int) -> int:
    """Chooses the row length: the shortest with little unused space, because attention costs less in shorter rows.

    Rows as long as the longest item can waste space. In LibriSpeech the longest item has 24 s but most have 11 to 17 s,
    so two do not fit; in a small set the last row may be nearly empty. Candidates are the longest item, lengths up to
    3 % above it that keep the number of rows per batch, and lengths up to twice as long that divide a batch evenly.

    Args:
      histogram: number of items by length in frames.
      batch_frames: frames per batch, divided by `batch_multiple`.

    Returns:
      Frames per row: the shortest candidate with at most `ROOM_LEFT` unused, or else the candidate with the least.
    """
    longest = len(histogram) - 1
    num_rows = batch_frames // longest
    near = min(round(1.03 * longest), batch_frames // num_rows) if num_rows else longest
    whole = [batch_frames // number for number in range(num_rows, 0, -1) if batch_frames // number <= 2 * longest]
    if len(whole) > _MAX_CANDIDATES:
        whole = [whole[at] for at in np.linspace(0, len(whole) - 1, _MAX_CANDIDATES).astype(int)]
    candidates = sorted({*range(longest, near + 1, max(longest // 200, 1)), *whole})
    used = int(histogram @ np.arange(longest + 1))
    room = {}
    for frames in candidates:
        num_rows = sum(copies for _, copies in pack_histogram(histogram, (frames,), max_utterances))
        room[frames] = 1 - used / (num_rows * frames)
        if room[frames] <= ROOM_LEFT:
            return frames
    return min(room, key=room.get)


def _rounded_up(numbers: np.ndarray) -> np.ndarray:
    """Rounds positive integers up to `_TEXT_BITS` significant bits."""
    bits = np.ceil(np.log2(numbers + 1)).astype(np.int64)
    unit = 1 << np.maximum(bits - _TEXT_BITS, 0)
    return -(-numbers // unit) * unit


def _classes(lengths: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, Classes]:
    """Returns the class of each item, and the classes of items of equal length and text, in order."""
    factor = int(text.max()) + 1
    sizes, kinds = np.unique(lengths.astype(np.int64) * factor + text, return_inverse=True)
    return kinds, Classes(sizes // factor, sizes % factor, ())


def _with_bound(histogram: np.ndarray, classes: Classes, row_frames: Sequence[int], max_utterances: int) -> Classes:
    """Chooses the bound on the text of rows: the one that leaves least unused, of audio and text together."""
    frames, text = int(histogram @ classes.length), int(histogram @ classes.text)
    least = [max(classes.text[classes.length <= row], default=0) for row in row_frames]

    def bounded(factor: float) -> tuple[float, Classes]:
        mean = [factor * row * text / frames for row in row_frames]
        row_text = [max(math.ceil(places), most) for places, most in zip(mean, least, strict=True)]
        candidate = dataclasses.replace(classes, row_text=row_text)
        computed = np.zeros(2)
        for pattern, copies in pack_histogram(histogram, row_frames, max_utterances, candidate):
            bucket = _bucket_of(pattern, classes, row_frames)
            computed += copies * row_frames[bucket], copies * row_text[bucket]
        return float(computed @ (1 / frames, 1 / text)), candidate

    return min(map(bounded, _TEXT_ROOM), key=lambda result: result[0])[1]


def _by_class(token_lengths: np.ndarray, histogram: np.ndarray) -> np.ndarray:
    """Returns, by class, the maximum number of tokens of items up to that class; items are by ascending class."""
    most = np.maximum.accumulate(token_lengths)
    return most[np.maximum(np.cumsum(histogram) - 1, 0)]
