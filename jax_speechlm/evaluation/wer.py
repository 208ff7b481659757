"""Error rates of a corpus, with bootstrap intervals and a paired test between two systems.

A corpus's rate is its total errors over its total reference tokens, not the mean of the utterances' rates, so an
utterance with an empty reference contributes its insertions.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import jiwer
import numpy as np
from jaxtyping import Int

from jax_speechlm.evaluation import resampling

Unit = Literal["word", "character"]
Counts = Int[np.ndarray, "utterances 4"]
"""Substitutions, deletions, insertions and reference tokens per utterance."""


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A minimum edit alignment of a reference and a hypothesis.

    Attributes:
      edits: (operation, reference token, hypothesis token). The operation is "=" (equal), "S" (substituted), "D"
        (deleted: no hypothesis token) or "I" (inserted: no reference token); a missing token is "".
    """

    edits: tuple[tuple[str, str, str], ...]

    def count(self) -> tuple[int, int, int, int]:
        """Returns the numbers of substitutions, deletions, insertions and reference tokens."""
        operations = "".join(edit[0] for edit in self.edits)
        return *(operations.count(kind) for kind in "SDI"), len(operations) - operations.count("I")


def align(references: Sequence[str], hypotheses: Sequence[str], unit: Unit) -> list[Alignment]:
    """Aligns pairs of texts with jiwer. Words are separated by single spaces.

    As in jiwer, spaces are ordinary characters. Remove them first for scripts that do not use them.
    """
    if not references:
        return []
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process(list(references), list(hypotheses))
    rows = zip(output.references, output.hypotheses, output.alignments, strict=True)
    return [Alignment(tuple(_edits(*row))) for row in rows]


def _edits(reference: list[str], hypothesis: list[str], chunks: list[jiwer.AlignmentChunk]) -> Iterator[tuple]:
    for chunk in chunks:
        references = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        hypotheses = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        operation = {"equal": "=", "substitute": "S", "delete": "D", "insert": "I"}[chunk.type]
        for pair in itertools.zip_longest(references, hypotheses, fillvalue=""):
            yield operation, *pair


def count(alignments: Sequence[Alignment]) -> Counts:
    """Returns the counts per utterance; sum over the first axis for the corpus."""
    return np.array([alignment.count() for alignment in alignments], np.int64).reshape(-1, 4)


def rate(counts: Counts) -> float | None:
    """Returns total errors / total reference tokens, which may exceed 1; None without reference tokens."""
    substitutions, deletions, insertions, tokens = counts.sum(0).tolist()
    return (substitutions + deletions + insertions) / tokens if tokens else None


def bootstrap(counts: Counts, resamples: int = resampling.RESAMPLES, seed: int = 0) -> resampling.Interval | None:
    """Computes the 95 % interval of the rate by resampling rows of counts with replacement (Bisani and Ney 2004).

    Rows are treated as independent; utterances of a speaker are not quite, so with few speakers the interval is too
    narrow. With many, add up the counts of each (`of_units`).

    Returns:
      The interval; None if fewer than `resampling.MIN_UTTERANCES` have a reference token.
    """
    return resampling.bootstrap(_errors_and_tokens(counts), resamples=resamples, seed=seed)


def of_units(counts: Counts, speakers: Sequence[str | None]) -> Counts:
    """Adds up the counts of each independent unit: a speaker where there are many, else an utterance."""
    return resampling.by_unit(counts.T, resampling.units_of(speakers)).astype(np.int64).T


def paired_bootstrap(
    first: Counts, second: Counts, resamples: int = resampling.RESAMPLES, seed: int = 0
) -> resampling.Difference:
    """Compares two systems on the same utterances, with the same resamples for both (Bisani and Ney 2004).

    Raises:
      ValueError: the numbers of reference tokens differ in an utterance, or are all 0.
    """
    if first.shape != second.shape or (first[:, 3] != second[:, 3]).any():
        raise ValueError("a paired comparison needs the same references, normalised in the same way, on both sides")
    if not first[:, 3].any():
        raise ValueError("there is no reference token to compare on")
    pair = (_errors_and_tokens(counts) for counts in (first, second))
    return resampling.paired_bootstrap(*pair, resamples=resamples, seed=seed)


def _errors_and_tokens(counts: Counts) -> list[Int[np.ndarray, " utterances"]]:
    return [counts[:, :3].sum(1), counts[:, 3]]
