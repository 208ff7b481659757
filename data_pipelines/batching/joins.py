"""Utterances joined in pairs, with their transcripts: longer ones than the corpus has, and words across their seam.

Like those of another speed, joined utterances are further items of a plan, whose lengths are exact.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines.core.shuffle import derive_key, permute
from data_pipelines.core.tokenizer import Tokenizer

PAUSE = 0.2
"""Seconds of silence between the two."""

_STREAM = 7  # of randomness


class Joins(NamedTuple):
    """Pairs of rows of an index; each is an item of a plan, after those of the rows.

    Attributes:
      first, second: int64 [joins]; the rows.
      pause: samples between the two.
      gap: tokens between the two transcripts.
    """

    first: np.ndarray
    second: np.ndarray
    pause: int = 0
    gap: tuple[int, ...] = ()

    def lengths(
        self, num_samples: np.ndarray, token_lengths: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the samples and the tokens of the pairs, from those of the rows."""
        samples = num_samples[self.first] + self.pause + num_samples[self.second]
        if token_lengths is None:
            return samples, None
        return samples, token_lengths[self.first] + len(self.gap) + token_lengths[self.second]


def draw_joins(
    num_samples: np.ndarray,
    token_lengths: np.ndarray | None,
    tokenizer: Tokenizer | None,
    *,
    share: float,
    longest: float,
    sample_rate: int,
    seed: int,
) -> Joins:
    """Draws pairs of different rows: a pure function of the lengths and the seed.

    A row begins at most one pair and ends at most one. Rows without a transcript are in no pair if there are tokens.

    Args:
      num_samples: of the rows.
      token_lengths: of the transcripts of the rows, encoded by `tokenizer`; None for audio alone.
      share: pairs to draw, as a share of the rows; longer ones than `longest` are left out of them.
      longest: in seconds.
      sample_rate: in Hz.
    """
    rows = np.arange(len(num_samples)) if token_lengths is None else np.flatnonzero(token_lengths)
    order = rows[permute(np.arange(len(rows)), len(rows), derive_key(seed, _STREAM))] if len(rows) else rows
    first, second = order[: round(share * len(rows))], np.roll(order, -1)[: round(share * len(rows))]
    gap = () if tokenizer is None or token_lengths is None else tuple(tokenizer.encode(" "))
    joins = Joins(first, second, round(PAUSE * sample_rate), gap)
    samples, _ = joins.lengths(np.asarray(num_samples, np.int64), None)
    fits = (samples <= longest * sample_rate) & (first != second)
    return joins._replace(first=first[fits], second=second[fits])
