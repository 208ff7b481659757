"""CTC posteriors of a recording of any length, and their segmentation into utterances for decoding."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.decoding.ctc.alignment import Span


class Frames(NamedTuple):
    """Output of a CTC model for consecutive frames.

    Attributes:
      ids: most probable id per frame.
      log_probs: log-probability of that id in nats.
      posteriors: log-probabilities of all ids; None if only the best path is needed.
    """

    ids: Int[np.ndarray, " time"]
    log_probs: Float[np.ndarray, " time"]
    posteriors: Float[np.ndarray, "time vocab"] | None = None

    @classmethod
    def of(cls, posteriors: Float[np.ndarray, "time vocab"]) -> "Frames":
        """Derives ids and log-probabilities from posteriors."""
        return cls(posteriors.argmax(-1), posteriors.max(-1), posteriors)

    def part(self, start: int, end: int | None = None) -> "Frames":
        """Returns frames `start` to `end` - 1."""
        return Frames(*(None if array is None else array[start:end] for array in self))


def joined(parts: list[Frames]) -> Frames:
    """Concatenates consecutive frames."""
    if len(parts) == 1:
        return parts[0]
    return Frames(*(None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def path_spans(frames: Frames) -> list[Span]:
    """Returns the tokens of the best path with their frames, which equal the result of `force_align` for them."""
    ids = np.asarray(frames.ids)
    edges = np.flatnonzero(np.diff(ids, prepend=-1, append=-1))
    return [
        Span(int(ids[start]), start, end, float(frames.log_probs[start:end].sum(dtype=np.float64)))
        for start, end in itertools.pairwise(edges.tolist())
        if ids[start] != BLANK
    ]


def utterances(
    parts: Iterable[Frames], most: int, begins_word: Bool[np.ndarray, " vocab"]
) -> Iterator[tuple[int, Frames]]:
    """Splits a stream of frames into utterances of at most `most` frames.

    A longer stretch is cut in its second half: before the word with the longest run of blanks before it; without a word
    boundary, in the middle of the longest run of blanks; without blanks, after the longest run of one id. A cut never
    splits the frames of a token unless the token fills the second half, so the best path decodes to the same text in
    parts as whole. Cuts depend on the frames, not on the parts in which they arrive.

    Args:
      begins_word: by id, whether the piece begins a word.

    Yields:
      Pairs of an utterance's first frame, counted from the start of the stream, and its frames. Utterances of blanks
      only are omitted.
    """
    pending: list[Frames] = []
    length = start = 0
    for part in parts:
        pending.append(part)
        length += len(part.ids)
        while length > most:
            frames = joined(pending)
            cut = _choose_cut(np.asarray(frames.ids[:most]), begins_word)
            if (frames.ids[:cut] != BLANK).any():
                yield start, frames.part(0, cut)
            pending, length, start = [frames.part(cut)], length - cut, start + cut
    if pending and (joined(pending).ids != BLANK).any():
        yield start, joined(pending)


def _choose_cut(ids: Int[np.ndarray, " time"], begins_word: Bool[np.ndarray, " vocab"]) -> int:
    half, most = len(ids) // 2, len(ids)
    edges = np.flatnonzero(np.diff(ids, prepend=-1, append=-1))
    starts, ends = edges[:-1], edges[1:]
    blank = ids[starts] == BLANK
    inside = (ends > half) & (ends < most)
    before_word = inside & np.append(begins_word[ids[starts[1:]]] & ~blank[1:], False)
    for candidates, at in (
        (before_word & blank, "end"),
        (before_word, "end"),
        (inside & blank, "middle"),
        (inside, "end"),
    ):
        if candidates.any():
            run = int(np.where(candidates, ends - starts, -1).argmax())
            return int(ends[run]) if at == "end" else int(starts[run] + ends[run] + 1) // 2
    return most
