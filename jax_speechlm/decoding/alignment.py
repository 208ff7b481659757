"""Where in the audio each token and word of a known transcript lies: the likeliest CTC alignment, and its files."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jax_speechlm.decoding.ngram import SPACE

BLANK = 0

Format = Literal["ctm", "textgrid", "json", "index"]


@dataclasses.dataclass(frozen=True)
class Span:
    """The frames that an alignment gives to one token.

    Attributes:
      token: its id.
      start, end: first frame, and the one behind the last.
      log_prob: sum over these frames; nats.
    """

    token: int
    start: int
    end: int
    log_prob: float


@dataclasses.dataclass(frozen=True)
class Word:
    """A word and where it lies.

    Attributes:
      start, end: seconds, from the first frame of its first token to the end of the last frame of its last. CTC models
        spell a token in a frame or two and blanks in between, so words come out short rather than long.
      confidence: geometric mean of its frames' probabilities.
    """

    word: str
    start: float
    end: float
    confidence: float


@dataclasses.dataclass(frozen=True)
class AlignedUtterance:
    """An utterance's words in order; `id` names its file in the formats that have room for one."""

    id: str
    seconds: float
    words: tuple[Word, ...]


def frames_needed(tokens: Sequence[int]) -> int:
    """The fewest frames that spell the tokens: one each, and a blank between equal neighbours."""
    return len(tokens) + sum(one == two for one, two in itertools.pairwise(tokens))


def force_align(
    log_probs_BxTxV: Float[np.ndarray, "batch time vocab"],
    length_B: Int[np.ndarray, " batch"],
    tokens: Sequence[Sequence[int]],
) -> list[list[Span] | None]:
    """The likeliest alignment of each row's tokens: Viterbi over blank, token, blank, ... (Graves et al. 2006).

    All rows are searched in lockstep. A row's result depends on its own valid frames alone; of equally likely
    alignments, the one that stays longest where it is.

    Args:
      log_probs_BxTxV: normalised log probabilities; id 0 is the blank.
      length_B: valid frames.
      tokens: the ids of each row's transcript; may be empty.

    Returns:
      A span for each token; None for a row whose frames are fewer than `frames_needed`.
    """
    batch, num_frames, _ = log_probs_BxTxV.shape
    num_states = 2 * max((len(row) for row in tokens), default=0) + 1
    labels_BxS = np.full((batch, num_states), BLANK)
    for row, ids in enumerate(tokens):
        labels_BxS[row, 1 : 2 * len(ids) : 2] = ids
    may_skip = np.zeros(labels_BxS.shape, bool)  # from a token to the next one, unless they are equal
    may_skip[:, 1:2] = True  # the first token, from before the first frame
    may_skip[:, 2:] = (labels_BxS[:, 2:] != BLANK) & (labels_BxS[:, 2:] != labels_BxS[:, :-2])

    score = np.full((batch, num_states + 2), -np.inf)  # state s has column s + 2
    score[:, 1] = 0.0  # before the first frame
    steps = np.zeros((num_frames, batch, num_states), np.int8)
    for frame in range(num_frames):
        skip = np.where(may_skip, score[:, :-2], -np.inf)
        choices = np.stack([score[:, 2:], score[:, 1:-1], skip])
        steps[frame] = np.argmax(choices, axis=0)
        here = np.take_along_axis(log_probs_BxTxV[:, frame].astype(np.float64), labels_BxS, axis=1)
        going = (frame < length_B)[:, None]
        score[:, 2:] = np.where(going, choices.max(0) + here, score[:, 2:])
        score[:, 1] = -np.inf

    found: list[list[Span] | None] = []
    for row, ids in enumerate(tokens):
        last = 2 * len(ids)
        ends = [state for state in (last, last - 1) if state >= 0 and np.isfinite(score[row, state + 2])]
        if length_B[row] < frames_needed(ids) or (length_B[row] and not ends):
            found.append(None)
            continue
        path = []
        state = max(ends, key=lambda state: score[row, state + 2]) if ends else 0
        for frame in range(int(length_B[row]) - 1, -1, -1):
            path.append(state)
            state -= int(steps[frame, row, state])
        found.append(_spans(np.array(path[::-1], np.int64), ids, log_probs_BxTxV[row]))
    return found


def _spans(path: Int[np.ndarray, " time"], tokens: Sequence[int], log_probs: np.ndarray) -> list[Span]:
    spans = []
    for place, token in enumerate(tokens):
        frames = np.flatnonzero(path == 2 * place + 1)
        log_prob = float(log_probs[frames, token].sum(dtype=np.float64))
        spans.append(Span(int(token), int(frames[0]), int(frames[-1]) + 1, log_prob))
    return spans


def words_of(spans: Sequence[Span], pieces: Sequence[str], frame_seconds: float) -> tuple[Word, ...]:
    """Joins tokens to words at their spaces. `pieces` is what each id spells, a space as "▁"."""
    words: list[tuple[str, list[Span]]] = [("", [])]
    for span in spans:
        before, *after = pieces[span.token].split(SPACE)
        if before:
            words[-1] = words[-1][0] + before, [*words[-1][1], span]
        words.extend((text, [span] if text else []) for text in after)
    return tuple(_word(text, parts, frame_seconds) for text, parts in words if text)


def _word(text: str, spans: Sequence[Span], frame_seconds: float) -> Word:
    frames = sum(span.end - span.start for span in spans)
    confidence = math.exp(sum(span.log_prob for span in spans) / frames)
    return Word(text, spans[0].start * frame_seconds, spans[-1].end * frame_seconds, confidence)


def to_ctm(utterances: Sequence[AlignedUtterance]) -> str:
    """NIST's CTM: a line a word with utterance, channel, start and duration in seconds, word, confidence."""
    lines = [
        f"{'_'.join(utterance.id.split())} 1 {word.start:.3f} {word.end - word.start:.3f} {word.word} "
        f"{word.confidence:.4f}\n"
        for utterance in utterances
        for word in utterance.words
    ]
    return "".join(lines)


def to_textgrid(utterance: AlignedUtterance) -> str:
    """A Praat TextGrid with one tier, "words"; the time between words is intervals without text."""
    intervals, reached = [], 0.0
    end = max([utterance.seconds, *(word.end for word in utterance.words)])
    for word in utterance.words:
        if word.start > reached:
            intervals.append((reached, word.start, ""))
        intervals.append((word.start, word.end, word.word))
        reached = word.end
    if end > reached or not intervals:
        intervals.append((reached, end, ""))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end:.6f}",
        "tiers? <exists>",
        "size = 1",
        "item []:",
        "    item [1]:",
        '        class = "IntervalTier"',
        '        name = "words"',
        "        xmin = 0",
        f"        xmax = {end:.6f}",
        f"        intervals: size = {len(intervals)}",
    ]
    for number, (start, stop, text) in enumerate(intervals, start=1):
        quoted = text.replace('"', '""')
        lines += [
            f"        intervals [{number}]:",
            f"            xmin = {start:.6f}",
            f"            xmax = {stop:.6f}",
            f'            text = "{quoted}"',
        ]
    return "\n".join(lines) + "\n"


def to_json(utterances: Sequence[AlignedUtterance]) -> str:
    """JSON lines: one object an utterance with its id, seconds and words."""
    return "".join(json.dumps(dataclasses.asdict(each), ensure_ascii=False) + "\n" for each in utterances)
