"""The ids of a language model: a tokenizer's, and a few of its own behind them."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool

from data_pipelines.tokenizers import Tokenizer

PADDING = 0
"""The id that fills a row up: the tokenizer's blank."""

_MULTIPLE = 8  # of the table's rows, so that the usual numbers of devices divide it


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which id means what.

    0 is padding and 1 to V - 1 are the tokenizer's, of whose V = `tokenizer_size` ids 0 is the blank. Behind them stand
    V, the boundary before and after every document; V + 1, the mask of masked language modelling; and from V + 2 the
    sentinels of span corruption. The table is rounded up to a multiple of 8 rows, whose last ids stand for nothing.
    """

    tokenizer_size: int
    num_sentinels: int = 0

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, num_sentinels: int = 0) -> "Vocabulary":
        """The vocabulary over a tokenizer.

        Raises:
          ValueError: there is no tokenizer.
        """
        if tokenizer is None:
            raise ValueError(
                "a model of text needs a tokenizer: make one with jax-speechlm train-tokenizer, and set data.tokenizer"
            )
        return cls(tokenizer.vocab_size, num_sentinels)

    @property
    def boundary(self) -> int:
        return self.tokenizer_size

    @property
    def mask(self) -> int:
        return self.tokenizer_size + 1

    @property
    def sentinel(self) -> int:
        """The first sentinel; the others follow it."""
        return self.tokenizer_size + 2

    @property
    def size(self) -> int:
        """Rows of the table of embeddings."""
        return -(-(self.sentinel + self.num_sentinels) // _MULTIPLE) * _MULTIPLE

    def enclose(self, ids: Iterable[int]) -> list[int]:
        """A document's ids between two boundaries."""
        return [self.boundary, *ids, self.boundary]

    @property
    def may_follow(self) -> Bool[np.ndarray, " vocab"]:
        """True for the ids that a text can go on with: the tokenizer's and the boundary."""
        ids = np.arange(self.size)
        return (ids != PADDING) & (ids <= self.boundary)


def pad(rows: Sequence[Sequence[int]], length: int, num_rows: int | None = None) -> np.ndarray:
    """Rows of ids as one int32 array [num_rows, length], filled up with `PADDING`."""
    padded = np.full((len(rows) if num_rows is None else num_rows, length), PADDING, np.int32)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded
