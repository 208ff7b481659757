"""Token ids of a language model: the tokenizer's, followed by special tokens and speech units."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from data_pipelines.core.tokenizer import Tokenizer

PADDING = 0
"""Id of padding: the tokenizer's blank."""

Modality = Literal["text", "units"]

_MULTIPLE = 8  # the embedding table's rows are a multiple of it, so that common device counts divide them


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Layout of the token ids.

    With V = `tokenizer_size`, in order:

    - 0: padding (the tokenizer's blank); 1 to V - 1: the tokenizer's ids;
    - V: boundary before and after every document; V + 1: mask of masked language modelling;
    - from V + 2: `num_sentinels` sentinels of span corruption;
    - if `num_units` > 0: the tokens that switch to speech and to text (Spirit-LM, Nguyen et al. 2024), then the units.

    The embedding table is padded to a multiple of 8 rows with unused ids. Imported models may start a document with
    another id of their tokenizer, `opening`, end it at further ids, `other_ends`, and have no prefix.
    """

    tokenizer_size: int
    num_sentinels: int = 0
    num_units: int = 0
    opening: int | None = None
    other_ends: tuple[int, ...] = ()
    has_prefix: bool = True

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, num_sentinels: int = 0, num_units: int = 0) -> "Vocabulary":
        """Returns the vocabulary of a tokenizer; None is a ValueError."""
        if tokenizer is None:
            raise ValueError(
                "a model of text needs a tokenizer: make one with jax-speechlm train-tokenizer, and set data.tokenizer"
            )
        documents = tokenizer.begin, tokenizer.other_ends, tokenizer.has_prefix
        return cls(tokenizer.vocab_size, num_sentinels, num_units, *documents)

    @property
    def boundary(self) -> int:
        return self.tokenizer_size

    @property
    def begin(self) -> int:
        """The id that separates documents in a row: `opening`, by default the boundary."""
        return self.boundary if self.opening is None else self.opening

    @property
    def prefix(self) -> list[int]:
        """Ids before a text or a prompt: `begin`, or empty."""
        return [self.begin] if self.has_prefix else []

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end a generated text; the boundary first."""
        return (self.boundary, *self.other_ends)

    @property
    def mask(self) -> int:
        return self.tokenizer_size + 1

    @property
    def sentinel(self) -> int:
        """The first sentinel's id."""
        return self.tokenizer_size + 2

    @property
    def speech(self) -> int:
        """The id that precedes units; valid if `num_units` > 0."""
        return self.sentinel + self.num_sentinels

    @property
    def text(self) -> int:
        """The id that precedes text after units. A document starts in text mode without it."""
        return self.speech + 1

    @property
    def first_unit(self) -> int:
        """The id of unit 0."""
        return self.speech + 2

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        used = self.first_unit + self.num_units if self.num_units else self.speech
        return -(-used // _MULTIPLE) * _MULTIPLE

    def enclose(self, ids: Iterable[int]) -> list[int]:
        """Returns a document's ids with prefix and boundary."""
        return [*self.prefix, *ids, self.boundary]

    def prompt(self, ids: Iterable[int]) -> list[int]:
        """Returns the ids to condition on for a continuation of `ids`; never empty."""
        return [*self.prefix, *ids] or [self.begin]

    def may_follow(self, modality: Modality | None = None) -> Bool[np.ndarray, " vocab"]:
        """Returns a mask of the ids that may be generated next: the ends, and the tokenizer's ids or the units.

        None allows both, and the tokens that switch between them.
        """
        ids = np.arange(self.size)
        text = (ids != PADDING) & (ids != self.begin) & (ids < self.boundary)
        units = self.is_unit(ids)
        switches = (ids == self.speech) | (ids == self.text) if self.num_units else np.zeros_like(text)
        chosen = {"text": text, "units": units, None: text | units | switches}[modality]
        return chosen | np.isin(ids, self.ends)

    def is_unit(self, ids: Any) -> Any:
        """Returns whether ids (a number, or a NumPy or JAX array) are units."""
        return (ids >= self.first_unit) & (ids < self.first_unit + self.num_units)

    def shared_with(self, other: "Vocabulary") -> tuple[Int[np.ndarray, " shared"], Int[np.ndarray, " shared"]]:
        """Matches ids with a vocabulary over the same tokenizer and units.

        Returns:
          Ids here, and the ids of the same tokens in `other`.
        """
        ranges = zip(self._ranges(), other._ranges(), strict=True)
        pairs = [
            (start + np.arange(min(count, other_count)), other_start + np.arange(min(count, other_count)))
            for (start, count), (other_start, other_count) in ranges
        ]
        return tuple(np.concatenate(ids) for ids in zip(*pairs, strict=True))

    def _ranges(self) -> list[tuple[int, int]]:
        """Returns (first id, count) of the tokens of text, the sentinels, and the units with their switches."""
        units = 2 + self.num_units if self.num_units else 0
        return [(0, self.sentinel), (self.sentinel, self.num_sentinels), (self.speech, units)]


def pad(rows: Sequence[Sequence[int]], length: int, num_rows: int | None = None) -> np.ndarray:
    """Returns rows of ids as an int32 array [num_rows, length], right-padded with `PADDING`."""
    padded = np.full((len(rows) if num_rows is None else num_rows, length), PADDING, np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
