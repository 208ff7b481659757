"""Packs a histogram of piece lengths into rows: an epoch is a list of patterns of lengths with their counts.

Plans (`packing.TextPlan`, `rows.RowPlan`) assign pieces to slots of equal length by a permutation.
"""

import dataclasses
import functools
from bisect import bisect_left
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

Patterns: TypeAlias = list[tuple[tuple[int, ...], int]]
"""Pairs of (lengths of the pieces in a row, number of such rows)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """One epoch of one source: patterns of piece lengths, and the pieces by length.

    Pattern p is a row of pieces with lengths `slot_length[first_slot[p] : first_slot[p + 1]]`; an epoch has it
    `copies[p]` times. The copies of a slot take consecutive ranks, from `slot_base` on, among the pieces of its length.
    """

    copies: np.ndarray
    first_slot: np.ndarray
    slot_length: np.ndarray
    slot_base: np.ndarray
    pieces: np.ndarray  # piece numbers by ascending length, those of length n from first_of_length[n] on
    first_of_length: np.ndarray

    @classmethod
    def of(cls, pieces: np.ndarray, histogram: np.ndarray, patterns: Patterns) -> "Packing":
        """Assigns pieces, by ascending length, to the slots of patterns that hold `histogram[n]` pieces of length n."""
        slot_length = np.concatenate([pattern for pattern, _ in patterns]).astype(np.int64)
        slot_copies = np.repeat([copies for _, copies in patterns], [len(pattern) for pattern, _ in patterns])
        order = np.argsort(slot_length, kind="stable")
        before = np.cumsum(slot_copies[order]) - slot_copies[order]
        first_of_length = np.concatenate([[0], np.cumsum(histogram)])
        slot_base = np.empty_like(slot_length)
        slot_base[order] = before - first_of_length[slot_length[order]]
        return cls(
            copies=np.array([copies for _, copies in patterns], np.int64),
            first_slot=np.cumsum([0] + [len(pattern) for pattern, _ in patterns]),
            slot_length=slot_length,
            slot_base=slot_base,
            pieces=pieces,
            first_of_length=first_of_length,
        )

    @functools.cached_property
    def first_row(self) -> np.ndarray:
        """int64 [patterns + 1]: pattern p has the rows first_row[p] to first_row[p + 1] - 1."""
        return np.cumsum(np.concatenate([[0], self.copies]))

    @property
    def num_rows(self) -> int:
        return int(self.first_row[-1])

    @property
    def num_positions(self) -> int:
        """Positions with a token, per epoch."""
        return int(np.diff(self.first_of_length) @ np.arange(len(self.first_of_length) - 1))

    def slots(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Looks up the slots of rows.

        Returns:
          Arrays over the slots: index into `rows`, length, and rank among the pieces of that length.
        """
        pattern = np.searchsorted(self.first_row, rows, side="right") - 1
        counts = self.first_slot[pattern + 1] - self.first_slot[pattern]
        place = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        slot = self.first_slot[pattern][place] + within
        return place, self.slot_length[slot], self.slot_base[slot] + (rows - self.first_row[pattern])[place]


def pack_histogram(
    histogram: Sequence[int] | np.ndarray, row_lengths: Sequence[int] = (), max_pieces: int | None = None
) -> Patterns:
    """Packs pieces, counted by length, into rows: best fit, the longest first, many equal rows at a time.

    A piece that fits into no open row opens a row of the shortest sufficient length. With several row lengths, short
    pieces therefore fill long rows first.

    Args:
      histogram: integers [longest + 1], number of pieces by length; 0 for length 0.
      row_lengths: row lengths, ascending, the last at least `longest`; empty for `longest` alone.
      max_pieces: maximum number of pieces per row; None for no limit.

    Returns:
      Patterns in descending order of length; every piece is in exactly one row. A row has the shortest of the row
      lengths that its longest piece fits into.
    """
    longest = len(histogram) - 1
    row_lengths = row_lengths or (longest,)
    most = max_pieces or row_lengths[-1]
    open_rows: dict[int, Patterns] = {}  # by room left
    patterns: Patterns = []

    def put(pattern: tuple[int, ...], copies: int, room: int) -> None:
        if copies:
            is_full = room == 0 or len(pattern) == most
            (patterns if is_full else open_rows.setdefault(room, [])).append((pattern, copies))

    for length in range(longest, 0, -1):
        left = int(histogram[length])
        while left:
            room = min((room for room in open_rows if room >= length), default=0)
            if room:
                pattern, copies = open_rows[room].pop()
                if not open_rows[room]:
                    del open_rows[room]
                used = min(copies, left)
                put(pattern, copies - used, room)
                put((*pattern, length), used, room - length)
                left -= used
            else:
                whole = row_lengths[bisect_left(row_lengths, length)]
                each = min(whole // length, left, most)
                used = left // each
                put((length,) * each, used, whole - each * length)
                left -= used * each
    return patterns + [row for rows in open_rows.values() for row in rows]


def pack_ascending(
    histogram: Sequence[int] | np.ndarray, row_lengths: Sequence[int], max_pieces: int | None = None
) -> Patterns:
    """Packs pieces, counted by length, into rows in ascending order of length, filling one row at a time.

    Arguments as in `pack_histogram`.

    Returns:
      Patterns in ascending order of length, within and between rows.
    """
    most = max_pieces or row_lengths[-1]
    patterns: Patterns = []
    begun: list[int] = []  # the open row
    room = 0
    for length in range(1, len(histogram)):
        left = int(histogram[length])
        while left:
            if begun and (room < length or len(begun) == most):
                patterns.append((tuple(begun), 1))
                begun = []
            if not begun:
                room = row_lengths[bisect_left(row_lengths, length)]
                each = min(room // length, most)
                if full := left // each:
                    patterns.append(((length,) * each, full))
                    left -= full * each
                    continue
            begun.append(length)
            room -= length
            left -= 1
    return patterns + ([(tuple(begun), 1)] if begun else [])
