"""Packs a histogram of pieces into rows: an epoch is a list of patterns of classes of pieces with their counts.

Plans (`packing.TextPlan`, `rows.RowPlan`) assign pieces to slots of their class by a permutation. A class is a length,
or a length and an amount of text, of which a row has room for a limited sum too.
"""

import dataclasses
import functools
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

Patterns: TypeAlias = list[tuple[tuple[int, ...], int]]
"""Pairs of (classes of the pieces in a row, number of such rows)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """Sizes of the classes of pieces that a histogram counts, in ascending order of length.

    Attributes:
      length: positive integers [classes].
      text: integers [classes], places for text of a piece.
      row_text: places for text of a row, by row length; at least those of every piece of up to that length.
    """

    length: np.ndarray
    text: np.ndarray
    row_text: Sequence[int]

    @classmethod
    def of_lengths(cls, histogram: Sequence[int] | np.ndarray, row_lengths: Sequence[int]) -> "Classes":
        """Returns the classes of a histogram over lengths, without text."""
        length = np.arange(len(histogram))
        return cls(length, np.zeros_like(length), [0] * len(row_lengths))


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """One epoch of one source: patterns of classes of pieces, and the pieces by class.

    Pattern p is a row of pieces of the classes `slot_class[first_slot[p] : first_slot[p + 1]]`; an epoch has it
    `copies[p]` times. The copies of a slot take consecutive ranks, from `slot_base` on, among the pieces of its class.
    """

    copies: np.ndarray
    first_slot: np.ndarray
    slot_class: np.ndarray
    slot_base: np.ndarray
    pieces: np.ndarray  # piece numbers by ascending class, those of class n from first_of_class[n] on
    first_of_class: np.ndarray

    @classmethod
    def of(cls, pieces: np.ndarray, histogram: np.ndarray, patterns: Patterns) -> "Packing":
        """Assigns pieces, by ascending class, to the slots of patterns that hold `histogram[n]` pieces of class n."""
        slot_class = np.concatenate([pattern for pattern, _ in patterns]).astype(np.int64)
        slot_copies = np.repeat([copies for _, copies in patterns], [len(pattern) for pattern, _ in patterns])
        order = np.argsort(slot_class, kind="stable")
        before = np.cumsum(slot_copies[order]) - slot_copies[order]
        first_of_class = np.concatenate([[0], np.cumsum(histogram)])
        slot_base = np.empty_like(slot_class)
        slot_base[order] = before - first_of_class[slot_class[order]]
        return cls(
            copies=np.array([copies for _, copies in patterns], np.int64),
            first_slot=np.cumsum([0] + [len(pattern) for pattern, _ in patterns]),
            slot_class=slot_class,
            slot_base=slot_base,
            pieces=pieces,
            first_of_class=first_of_class,
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
        """Positions with a token, per epoch, if classes are lengths."""
        return int(np.diff(self.first_of_class) @ np.arange(len(self.first_of_class) - 1))

    def slots(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Looks up the slots of rows.

        Returns:
          Arrays over the slots: index into `rows`, class, and rank among the pieces of that class.
        """
        pattern = np.searchsorted(self.first_row, rows, side="right") - 1
        counts = self.first_slot[pattern + 1] - self.first_slot[pattern]
        place = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        slot = self.first_slot[pattern][place] + within
        return place, self.slot_class[slot], self.slot_base[slot] + (rows - self.first_row[pattern])[place]


def pack_histogram(
    histogram: Sequence[int] | np.ndarray,
    row_lengths: Sequence[int] = (),
    max_pieces: int | None = None,
    classes: Classes | None = None,
) -> Patterns:
    """Packs pieces, counted by class, into rows: best fit, the longest first, many equal rows at a time.

    A piece that fits into no open row opens a row of the shortest sufficient length. With several row lengths, short
    pieces therefore fill long rows first. Of rows with the same room left, a piece takes that with the least sufficient
    room for text.

    Args:
      histogram: integers [classes], number of pieces by class; 0 for length 0.
      row_lengths: row lengths, ascending, the last at least the longest piece; empty for that one alone.
      max_pieces: maximum number of pieces per row; None for no limit.
      classes: sizes; None if classes are lengths, from 0, and pieces have no text.

    Returns:
      Patterns in descending order of classes; every piece is in exactly one row. A row has the shortest of the row
      lengths that its longest piece fits into.
    """
    row_lengths = row_lengths or (len(histogram) - 1,)
    classes = classes or Classes.of_lengths(histogram, row_lengths)
    most, rows = max_pieces or row_lengths[-1], _OpenRows(int(classes.text.min()))
    sizes = zip(classes.length.tolist(), classes.text.tolist(), strict=True)
    for number, (length, text) in reversed(list(enumerate(sizes))):
        left = int(histogram[number])
        while left:
            if (found := rows.take(length, text)) is not None:
                (pattern, copies), room, text_room = found
                each, used = 1, min(copies, left)
                rows.put(pattern, copies - used, room, text_room)
                pattern, room, text_room = (*pattern, number), room - length, text_room - text
            else:
                row = bisect_left(row_lengths, length)
                each = min(row_lengths[row] // length, left, most)
                each = min(each, classes.row_text[row] // text) if text else each
                used = left // each
                pattern = (number,) * each
                room, text_room = row_lengths[row] - each * length, classes.row_text[row] - each * text
            rows.put(pattern, used, 0 if len(pattern) == most else room, text_room)
            left -= used * each
    return rows.full + rows.open


class _OpenRows:
    """Patterns with room left, by room and room for text, and full ones.

    Args:
      least_text: text of the pieces that have least; rows with less room for text are full.
    """

    def __init__(self, least_text: int):
        self.full: Patterns = []
        self._least_text = least_text
        self._rooms: list[int] = []
        self._by_room: dict[int, tuple[list[int], dict[int, Patterns]]] = {}

    @property
    def open(self) -> Patterns:
        return [row for _, by_text in self._by_room.values() for rows in by_text.values() for row in rows]

    def put(self, pattern: tuple[int, ...], copies: int, room: int, text_room: int) -> None:
        """Adds rows; none if `copies` is 0."""
        if not copies:
            return
        if room == 0 or text_room < self._least_text:
            self.full.append((pattern, copies))
            return
        if room not in self._by_room:
            insort(self._rooms, room)
        texts, by_text = self._by_room.setdefault(room, ([], {}))
        if text_room not in by_text:
            insort(texts, text_room)
        by_text.setdefault(text_room, []).append((pattern, copies))

    def take(self, length: int, text: int) -> tuple[tuple[tuple[int, ...], int], int, int] | None:
        """Removes the rows that a piece fits best; returns the pattern and its copies, the room, and that for text."""
        for room in self._rooms[bisect_left(self._rooms, length) :]:
            texts, by_text = self._by_room[room]
            if texts[-1] < text:
                continue
            text_room = texts[bisect_left(texts, text)]
            row = by_text[text_room].pop()
            if not by_text[text_room]:
                del by_text[text_room]
                texts.remove(text_room)
            if not texts:
                del self._by_room[room]
                self._rooms.remove(room)
            return row, room, text_room
        return None


def pack_ascending(
    histogram: Sequence[int] | np.ndarray,
    row_lengths: Sequence[int],
    max_pieces: int | None = None,
    classes: Classes | None = None,
) -> Patterns:
    """Packs pieces, counted by class, into rows in ascending order of classes, filling one row at a time.

    Arguments as in `pack_histogram`.

    Returns:
      Patterns in ascending order of classes, within and between rows.
    """
    classes = classes or Classes.of_lengths(histogram, row_lengths)
    most = max_pieces or row_lengths[-1]
    patterns: Patterns = []
    begun: list[int] = []  # the open row
    room = text_room = 0
    for number, (length, text) in enumerate(zip(classes.length.tolist(), classes.text.tolist(), strict=True)):
        left = int(histogram[number])
        while left:
            if begun and (room < length or text_room < text or len(begun) == most):
                patterns.append((tuple(begun), 1))
                begun = []
            if not begun:
                row = bisect_left(row_lengths, length)
                room, text_room = row_lengths[row], classes.row_text[row]
                each = min(room // length, most)
                each = min(each, text_room // text) if text else each
                if full := left // each:
                    patterns.append(((number,) * each, full))
                    left -= full * each
                    continue
            begun.append(number)
            room, text_room = room - length, text_room - text
            left -= 1
    return patterns + ([(tuple(begun), 1)] if begun else [])
