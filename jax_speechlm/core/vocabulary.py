"""The ids of a language model: a tokenizer's, and a few of its own behind them."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from data_pipelines.tokenizers.base import Tokenizer

PADDING = 0
"""The id that fills a row up: the tokenizer's blank."""

Modality = Literal["text", "units"]

_MULTIPLE = 8  # of the table's rows, so that the usual numbers of devices divide it


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which id means what.

    0 is padding and 1 to V - 1 are the tokenizer's, of whose V = `tokenizer_size` ids 0 is the blank. Behind them stand
    V, the boundary before and after every document; V + 1, the mask of masked language modelling; and from V + 2 the
    sentinels of span corruption. Where there are units of speech, the two tokens after which speech and text begin
    follow (Spirit-LM, Nguyen et al. 2024), and then the units. The table is rounded up to a multiple of 8 rows, whose
    last ids stand for nothing. Models from elsewhere may begin a document with another id than ends it, `opening`,
    which is one of their tokenizer's; stop at further ids of it, `other_ends`; and, without `has_prefix`, have nothing
    at all before a text.
    """

    tokenizer_size: int
    num_sentinels: int = 0
    num_units: int = 0
    opening: int | None = None
    other_ends: tuple[int, ...] = ()
    has_prefix: bool = True

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, num_sentinels: int = 0, num_units: int = 0) -> "Vocabulary":
        """The vocabulary over a tokenizer.

        Raises:
          ValueError: there is no tokenizer.
        """
        if tokenizer is None:
            raise ValueError(
                "a model of text needs a tokenizer: make one with jax-speechlm train-tokenizer, and set data.tokenizer"
            )
        theirs = tokenizer.begin, tokenizer.other_ends, tokenizer.has_prefix
        return cls(tokenizer.vocab_size, num_sentinels, num_units, *theirs)

    @property
    def boundary(self) -> int:
        return self.tokenizer_size

    @property
    def begin(self) -> int:
        """What parts documents in a row: the boundary, unless the tokenizer has an id for it."""
        return self.boundary if self.opening is None else self.opening

    @property
    def prefix(self) -> list[int]:
        """What stands before a text or a prompt: `begin`, or nothing."""
        return [self.begin] if self.has_prefix else []

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text where the model puts one of them; the boundary first."""
        return (self.boundary, *self.other_ends)

    @property
    def mask(self) -> int:
        return self.tokenizer_size + 1

    @property
    def sentinel(self) -> int:
        """The first sentinel; the others follow it."""
        return self.tokenizer_size + 2

    @property
    def speech(self) -> int:
        """The token behind which units stand; there is one where there are units."""
        return self.sentinel + self.num_sentinels

    @property
    def text(self) -> int:
        """The token behind which text goes on after units. A document begins in text, without it."""
        return self.speech + 1

    @property
    def first_unit(self) -> int:
        """The id of unit 0; the others follow it."""
        return self.speech + 2

    @property
    def size(self) -> int:
        """Rows of the table of embeddings."""
        used = self.first_unit + self.num_units if self.num_units else self.speech
        return -(-used // _MULTIPLE) * _MULTIPLE

    def enclose(self, ids: Iterable[int]) -> list[int]:
        """A document's ids between its prefix and the boundary."""
        return [*self.prefix, *ids, self.boundary]

    def prompt(self, ids: Iterable[int]) -> list[int]:
        """What a text that begins with these ids is continued from; there has to be something."""
        return [*self.prefix, *ids] or [self.begin]

    def may_follow(self, modality: Modality | None = None) -> Bool[np.ndarray, " vocab"]:
        """True for the ids that a document can go on with.

        Args:
          modality: "text" leaves the tokenizer's ids and the boundary, "units" the units and the boundary; None leaves
            both, and the tokens between them.
        """
        ids = np.arange(self.size)
        text = (ids != PADDING) & (ids != self.begin) & (ids < self.boundary)
        units = self.is_unit(ids)
        switches = (ids == self.speech) | (ids == self.text) if self.num_units else np.zeros_like(text)
        chosen = {"text": text, "units": units, None: text | units | switches}[modality]
        return chosen | np.isin(ids, self.ends)

    def is_unit(self, ids: Any) -> Any:
        """Whether an id, or each of an array of NumPy or JAX, is a unit."""
        return (ids >= self.first_unit) & (ids < self.first_unit + self.num_units)

    def shared_with(self, other: "Vocabulary") -> tuple[Int[np.ndarray, " shared"], Int[np.ndarray, " shared"]]:
        """The ids that mean the same here and in another vocabulary, of the same tokenizer and units: (here, there)."""

        def kinds(vocabulary: "Vocabulary") -> list[tuple[int, int]]:
            units = 2 + vocabulary.num_units if vocabulary.num_units else 0
            return [
                (0, vocabulary.sentinel),
                (vocabulary.sentinel, vocabulary.num_sentinels),
                (vocabulary.speech, units),
            ]

        pairs = [
            (here + np.arange(min(count, other_count)), there + np.arange(min(count, other_count)))
            for (here, count), (there, other_count) in zip(kinds(self), kinds(other), strict=True)
        ]
        return tuple(np.concatenate(ids) for ids in zip(*pairs, strict=True))


def pad(rows: Sequence[Sequence[int]], length: int, num_rows: int | None = None) -> np.ndarray:
    """Rows of ids as one int32 array [num_rows, length], filled up with `PADDING`."""
    padded = np.full((len(rows) if num_rows is None else num_rows, length), PADDING, np.int32)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded
