"""Plans text batches: packs pieces of documents into rows, as a pure function of (seed, step).

A document of n tokens is enclosed in two boundary tokens, so it has n + 2 positions. Documents longer than the context
are cut into pieces; the last token of a piece is the first of the next, so every token but the first boundary is
predicted exactly once per epoch. Several pieces share a row, each with its own segment number:

1. pieces are counted by length, and the histogram is packed, the longest first, each into the fullest row that still
   has room (histogram packing: Krell et al. 2021, "Efficient sequence packing without cross-contamination");
2. (seed, epoch) permutes the rows of an epoch, and the pieces of each length among the slots of that length;
3. with weights, every source is packed separately and has a fixed share of each `PERIOD` rows.

Epochs follow one another within a batch, so training has no filler rows. All permutations are evaluated per index
(`shuffle.permute`): a resume at any step costs O(1), and hosts share no state.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from data_pipelines.batching.histogram_packing import Packing, pack_histogram
from data_pipelines.core.shuffle import derive_key, keys_of, permute

PERIOD = 10_000  # rows in which each source has its exact share
BOUNDARIES = 2  # boundary tokens per document

_ORDER, _PIECES, _MIXTURE = 0, 1, 2  # streams of randomness


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedText:
    """Segments in one host's rows of a global batch, row by row.

    Attributes:
      place: int32 [segments], row of the batch, counted from the first of this host.
      row: int64 [segments], document.
      start: int64 [segments], first position in the document; 0 is its leading boundary.
      length: int32 [segments], positions.
      example_id: int32 [rows], index of the packed row in an epoch (without packing, of the document); -1 for filler.
    """

    place: np.ndarray
    row: np.ndarray
    start: np.ndarray
    length: np.ndarray
    example_id: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TextPlan:
    """A packed epoch and its shuffle; made by `make_text_plan` or `make_text_eval_plan`.

    Attributes:
      context: positions per row.
      sequences_per_batch: rows of a global batch.
      seed: seed of the shuffle; None keeps the order of lengths for one epoch, with filler rows in the last batch.
      packings: one per source.
      quotas: rows per source in `PERIOD` rows.
      lengths: int64 [documents], tokens without boundaries.
      is_packed: whether rows hold several pieces; else each holds the beginning of one document.
      dropped: documents left out, by reason.
      num_cut: documents longer than the context: cut into pieces, or truncated without packing.
      names: names of the sources for `describe`; numbers by default.
    """

    context: int
    sequences_per_batch: int
    seed: int | None
    packings: tuple[Packing, ...]
    quotas: tuple[int, ...]
    lengths: np.ndarray
    is_packed: bool
    dropped: Mapping[str, int]
    num_cut: int
    names: tuple[str, ...] = ()

    @functools.cached_property
    def _first_piece(self) -> np.ndarray:
        return np.cumsum(np.concatenate([[0], _piece_counts(self.lengths, self.context)]))

    @functools.cached_property
    def _first_id(self) -> np.ndarray:
        return np.cumsum([0] + [packing.num_rows for packing in self.packings])

    @property
    def batch_sizes(self) -> set[int]:
        """Rows of its global batches."""
        return {self.sequences_per_batch}

    @property
    def num_rows(self) -> int:
        """Rows of one pass over all pieces."""
        return int(self._first_id[-1])

    @property
    def cut_off_share(self) -> float:
        """Share of the tokens beyond the context, which are left out without packing."""
        beyond = np.maximum(self.lengths + BOUNDARIES - self.context, 0).sum()
        return 0.0 if self.is_packed else float(beyond / max(self.lengths.sum(), 1))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over all documents; with weights, over the slowest source."""
        rows = max(p.num_rows * sum(self.quotas) / quota for p, quota in zip(self.packings, self.quotas, strict=True))
        return -int(-rows // self.sequences_per_batch)

    @property
    def fill_share(self) -> float:
        """Share of the positions of training rows with a token."""
        shares = (packing.num_positions / (packing.num_rows * self.context) for packing in self.packings)
        return sum(share * quota for share, quota in zip(shares, self.quotas, strict=True)) / sum(self.quotas)

    def epochs(self, step: int) -> tuple[Fraction, ...]:
        """Returns the exact number of passes over each source in the batches before `step`."""
        total = step * self.sequences_per_batch
        if len(self.packings) == 1:
            return (Fraction(total, self.packings[0].num_rows),)
        period, rest = divmod(total, PERIOD)
        source, _ = self._sources(period * PERIOD + np.arange(rest))
        counts = np.bincount(source, minlength=len(self.packings))
        return tuple(
            Fraction(period * quota + int(count), packing.num_rows)
            for packing, quota, count in zip(self.packings, self.quotas, counts, strict=True)
        )

    def _sources(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps rows, counted over the run, to (source, row counted over that source's epochs)."""
        if len(self.packings) == 1:
            return np.zeros(len(numbers), np.int64), numbers
        period, place = np.divmod(numbers, PERIOD)
        place = permute(place, PERIOD, keys_of(derive_key(self.seed, _MIXTURE), period))
        first = np.cumsum((0, *self.quotas))
        source = np.searchsorted(first, place, side="right") - 1
        return source, period * np.array(self.quotas)[source] + place - first[source]

    def batch(self, step: int, host: int = 0, num_hosts: int = 1) -> PlannedText:
        """Plans this host's rows of the global batch of a step, counted from 0 over all epochs."""
        size, rest = divmod(self.sequences_per_batch, num_hosts)
        if step < 0 or rest or not 0 <= host < num_hosts:
            raise ValueError(
                f"host {host} of {num_hosts} cannot take an equal share of {self.sequences_per_batch} rows of step "
                f"{step}; make sequences_per_batch a multiple of the number of hosts"
            )
        numbers = step * self.sequences_per_batch + host * size + np.arange(size)
        if self.seed is None:
            numbers = numbers[numbers < self.num_rows]
        source, number = self._sources(numbers)
        example_id = np.full(size, -1, np.int32)
        parts = []
        for index, packing in enumerate(self.packings):
            places = np.flatnonzero(source == index)
            epoch, rows = np.divmod(number[places], packing.num_rows)
            if self.seed is not None:
                rows = permute(rows, packing.num_rows, keys_of(derive_key(self.seed, index, _ORDER), epoch))
            within, length, rank = packing.slots(rows)
            if self.seed is not None:
                keys = keys_of(derive_key(self.seed, index, _PIECES), epoch[within] * (self.context + 1) + length)
                rank = permute(rank, np.diff(packing.first_of_class)[length], keys)
            piece = packing.pieces[packing.first_of_class[length] + rank]
            example_id[places] = self._first_id[index] + rows
            parts.append((places[within], piece, length))
        place, piece, length = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.argsort(place, kind="stable")
        place, piece, length = place[order], piece[order], length[order]
        row = np.searchsorted(self._first_piece, piece, side="right") - 1
        if not self.is_packed:
            example_id[place] = row
        start = (piece - self._first_piece[row]) * (self.context - 1)
        return PlannedText(place.astype(np.int32), row, start, length.astype(np.int32), example_id)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the plan; equal only for plans with the same batch at every step."""
        settings = (self.context, self.sequences_per_batch, self.seed, self.quotas, self.is_packed)
        digest = hashlib.sha256(repr((settings, [packing.num_rows for packing in self.packings])).encode())
        digest.update(np.ascontiguousarray(self.lengths))
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """Formats rows, fill and mixture as a table."""
        names = self.names or tuple(map(str, range(len(self.packings))))
        width = max(6, *map(len, names))
        lines = [f"{'source':>{width}} {'share':>7} {'tokens':>13} {'rows':>9} {'filled':>7}"]
        for name, packing, quota in zip(names, self.packings, self.quotas, strict=True):
            lines.append(
                f"{name:>{width}} {quota / sum(self.quotas):7.2%} {packing.num_positions:13,d} {packing.num_rows:9,d} "
                f"{packing.num_positions / (packing.num_rows * self.context):7.2%}"
            )
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count) or "none"
        cut = "cut into pieces" if self.is_packed else f"cut off ({self.cut_off_share:.1%} of the tokens)"
        lines.append(
            f"{self.steps_per_epoch} steps an epoch of {self.sequences_per_batch} rows of {self.context} positions, "
            f"{self.fill_share:.2%} filled; documents {cut}: {self.num_cut}, dropped: {dropped}"
        )
        return "\n".join(lines)


def make_text_plan(
    lengths: np.ndarray,
    *,
    context: int,
    sequences_per_batch: int,
    seed: int,
    source_rows: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    is_packed: bool = True,
) -> TextPlan:
    """Plans training batches: each piece of a document exactly once per epoch of its source, shuffled by (seed, epoch).

    Args:
      lengths: integers [documents], tokens without boundaries.
      context: positions per row.
      sequences_per_batch: rows of a global batch, a multiple of the numbers of devices and hosts.
      source_rows: number of consecutive documents of each source; with `weights` only.
      weights: relative shares of the rows by source, rounded to 1 in 10,000; None packs all documents together.
      is_packed: False gives each document its own row and truncates it to the context.

    Raises:
      ValueError: an option is out of range, or a source has no document with text.
    """
    lengths = np.asarray(lengths, np.int64)
    if weights is None:
        counts, quotas = [len(lengths)], (PERIOD,)
    else:
        counts, quotas = list(source_rows or ()), to_quotas(weights)
        if len(counts) != len(quotas) or sum(counts) != len(lengths):
            raise ValueError(f"{len(quotas)} weights need so many source_rows, of {len(lengths)} in all; got {counts}")
    return _lay_out(lengths, context, sequences_per_batch, seed, counts, quotas, is_packed)


def make_text_eval_plan(
    lengths: np.ndarray, *, context: int, sequences_per_batch: int, is_packed: bool = True
) -> TextPlan:
    """Plans evaluation batches: each piece once, in `steps_per_epoch` steps; the last may have filler rows.

    Every token after the leading boundary is predicted exactly once. Arguments as in `make_text_plan`.
    """
    lengths = np.asarray(lengths, np.int64)
    return _lay_out(lengths, context, sequences_per_batch, None, [len(lengths)], (PERIOD,), is_packed)


def _piece_counts(lengths: np.ndarray, context: int) -> np.ndarray:
    pieces = -(-(lengths + BOUNDARIES - 1) // (context - 1))
    return np.where(lengths > 0, pieces, 0)


def to_quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Rounds weights to rows in PERIOD by largest remainder, at least one per source."""
    shares = np.asarray(weights, np.float64)
    if not len(shares) or not np.isfinite(shares).all() or (shares <= 0).any():
        raise ValueError(f"weights must be positive numbers, got {list(weights)}")
    exact = shares / shares.sum() * PERIOD
    quotas = np.maximum(np.floor(exact), 1).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: max(PERIOD - quotas.sum(), 0)]] += 1
    quotas[np.argmax(quotas)] -= quotas.sum() - PERIOD
    return tuple(map(int, quotas))


def _lay_out(
    lengths: np.ndarray,
    context: int,
    sequences_per_batch: int,
    seed: int | None,
    counts: Sequence[int],
    quotas: tuple[int, ...],
    is_packed: bool,
) -> TextPlan:
    if lengths.ndim != 1 or context < 3 or sequences_per_batch < 1:
        raise ValueError(
            f"a text plan needs lengths of shape [documents], a context of at least 3 and a positive batch; got "
            f"{lengths.shape}, {context}, {sequences_per_batch}"
        )
    num_pieces = _piece_counts(lengths, context)
    first_piece = np.concatenate([[0], np.cumsum(num_pieces)])
    piece_lengths = np.full(first_piece[-1], context, np.int64)
    whole = num_pieces > 0
    piece_lengths[first_piece[1:][whole] - 1] = (lengths + BOUNDARIES - (num_pieces - 1) * (context - 1))[whole]
    packings = []
    ends = np.cumsum(counts)
    for start, end in zip(ends - counts, ends, strict=True):
        pieces = np.arange(first_piece[start], first_piece[end])
        if not is_packed:
            pieces = first_piece[start:end][whole[start:end]]
        if not len(pieces):
            raise ValueError(f"documents {start} to {end} hold no token; prepare text with words, or leave the set out")
        packings.append(_pack(pieces, piece_lengths[pieces], context, is_packed))
    return TextPlan(
        context=context,
        sequences_per_batch=sequences_per_batch,
        seed=seed,
        packings=tuple(packings),
        quotas=quotas,
        lengths=lengths,
        is_packed=is_packed,
        dropped={"empty": int(np.count_nonzero(~whole))},
        num_cut=int(np.count_nonzero(num_pieces > 1)),
    )


def _pack(pieces: np.ndarray, lengths: np.ndarray, context: int, is_packed: bool) -> Packing:
    histogram = np.bincount(lengths, minlength=context + 1)
    if is_packed:
        patterns = pack_histogram(histogram)
    else:
        patterns = [((int(length),), int(histogram[length])) for length in np.flatnonzero(histogram)]
    return Packing.of(pieces[np.argsort(lengths, kind="stable")], histogram, patterns)
