"""Disagreement of two alignments of the same words, such as a voice's and a recognizer's."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float
from rich.table import Table

from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base

TOLERANCE = 0.05
"""Seconds within which two boundaries count as the same."""


class BoundaryDistance(Config):
    """Distances of one boundary of all words, in milliseconds.

    Attributes:
      median, mean: of the absolute distances.
      later: mean of the signed distances; positive if the first alignment is later.
      within: share of the words with a distance of at most `TOLERANCE`.
    """

    median: float
    mean: float
    later: float
    within: float

    @classmethod
    def of(cls, seconds: Float[np.ndarray, " words"]) -> "BoundaryDistance":
        """Summarises signed distances in seconds."""
        size = np.abs(seconds)
        within = float(np.mean(size <= TOLERANCE + 1e-9))
        median, mean, later = (1e3 * float(each) for each in (np.median(size), size.mean(), seconds.mean()))
        return cls(median=median, mean=mean, later=later, within=within)


class AlignmentReport(base.SetReport):
    """The comparison of a run's alignment with another's.

    Attributes:
      against: the other run.
      utterances, words: compared; words without times in one of the two are not.
      skipped: utterances that one of the two could not align, or divides into other words.
      starts, ends: distances of the words' starts and ends.
    """

    against: str = ""
    utterances: int
    words: int
    skipped: int = 0
    starts: BoundaryDistance
    ends: BoundaryDistance

    def tables(self) -> Iterator[Table]:
        """Yields the table of distances."""
        columns = "median", "mean", f"within {1e3 * TOLERANCE:.0f} ms", "later by"
        table = base.new_table("distance of", *columns, title=f"{self.title}, against {self.against}")
        for name, each in (("word starts", self.starts), ("word ends", self.ends)):
            table.add_row(
                name, f"{each.median:.0f} ms", f"{each.mean:.0f} ms", f"{each.within:.1%}", f"{each.later:+.0f} ms"
            )
        table.caption = f"{self.words:,} words of {self.utterances:,} utterances, {self.skipped:,} left out"
        yield table


def compare(
    pairs: Iterable[tuple[Float[np.ndarray, "_ 2"], Float[np.ndarray, "_ 2"]]],
) -> AlignmentReport:
    """Compares two alignments of the same utterances.

    Args:
      pairs: start and end of every word in seconds, by both alignments; NaN of words without times.

    Raises:
      ValueError: there is no word with times in both.
    """
    utterances, differences = 0, [np.zeros((0, 2))]
    for first, second in pairs:
        utterances += 1
        difference = first - second
        differences.append(difference[~np.isnan(difference).any(axis=1)])
    starts, ends = np.concatenate(differences).T
    if not len(starts):
        raise ValueError("there is nothing to compare: no word has times in both alignments")
    return AlignmentReport(
        utterances=utterances,
        words=len(starts),
        starts=BoundaryDistance.of(starts),
        ends=BoundaryDistance.of(ends),
    )
