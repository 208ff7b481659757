"""From the frames of a recording, however long, to utterances that are decoded each by itself."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.tokenizers.base import BLANK
from jax_speechlm.decoding.ctc.alignment import Span


class Frames(NamedTuple):
    """What a CTC model makes of consecutive frames.

    Attributes:
      ids: the likeliest id of each.
      log_probs: its log-probability; nats.
      posteriors: the log-probabilities of all ids; None where the best path is all that is needed.
    """

    ids: Int[np.ndarray, " time"]
    log_probs: Float[np.ndarray, " time"]
    posteriors: Float[np.ndarray, "time vocab"] | None = None

    @classmethod
    def of(cls, posteriors: Float[np.ndarray, "time vocab"]) -> "Frames":
        return cls(posteriors.argmax(-1), posteriors.max(-1), posteriors)

    def part(self, start: int, end: int | None = None) -> "Frames":
        """Frames `start` to `end` - 1."""
        return Frames(*(None if each is None else each[start:end] for each in self))


def joined(parts: list[Frames]) -> Frames:
    """Frames that follow each other as one."""
    return (
        parts[0]
        if len(parts) == 1
        else Frames(*(None if each[0] is None else np.concatenate(each) for each in zip(*parts, strict=True)))
    )


def path_spans(frames: Frames) -> list[Span]:
    """The tokens of the best path and their frames, as `force_align` finds them: no path is likelier."""
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
    """Cuts a stream of frames into utterances of at most `most` frames.

    Up to `most` frames stay whole. Of more, a cut falls between half and the whole: before the word with the longest
    run of blanks before it; where no word begins there, into the longest run of blanks; else behind the longest run of
    one id. So it never parts a token's frames unless a token fills all that stretch, and the best path spells the same
    in parts as whole. Where the cuts fall depends on the frames, not on the parts in which they come.

    Args:
      begins_word: whether the piece of each id begins a word.

    Returns:
      Pairs of an utterance's first frame, counted from the start, and its frames; those of blanks alone are left out.
    """
    held: list[Frames] = []
    length = start = 0
    for part in parts:
        held.append(part)
        length += len(part.ids)
        while length > most:
            frames = joined(held)
            cut = _place_to_cut(np.asarray(frames.ids[:most]), begins_word)
            if (frames.ids[:cut] != BLANK).any():
                yield start, frames.part(0, cut)
            held, length, start = [frames.part(cut)], length - cut, start + cut
    if held and (joined(held).ids != BLANK).any():
        yield start, joined(held)


def _place_to_cut(ids: Int[np.ndarray, " time"], begins_word: Bool[np.ndarray, " vocab"]) -> int:
    half, most = len(ids) // 2, len(ids)
    edges = np.flatnonzero(np.diff(ids, prepend=-1, append=-1))
    starts, ends = edges[:-1], edges[1:]
    blank = ids[starts] == BLANK
    inside = (ends > half) & (ends < most)
    before_word = inside & np.append(begins_word[ids[starts[1:]]] & ~blank[1:], False)
    for wanted, at in ((before_word & blank, "end"), (before_word, "end"), (inside & blank, "middle"), (inside, "end")):
        if wanted.any():
            run = int(np.where(wanted, ends - starts, -1).argmax())
            return int(ends[run]) if at == "end" else int(starts[run] + ends[run] + 1) // 2
    return most
