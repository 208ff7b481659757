"""Forced alignment of a known transcript by CTC: times of tokens and words, and their file formats."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.core.tokenizer import BLANK
from data_pipelines.text import scripts
from jax_speechlm.decoding.lm.ngram import SPACE

Format = Literal["ctm", "textgrid", "json", "index"]


@dataclasses.dataclass(frozen=True)
class Span:
    """The frames of a token in an alignment.

    Attributes:
      token: its id.
      start, end: first frame, and the frame after the last.
      log_prob: sum over these frames in nats.
    """

    token: int
    start: int
    end: int
    log_prob: float


@dataclasses.dataclass(frozen=True)
class Word:
    """A word with its times; in scripts without spaces, a character.

    Attributes:
      word: its text.
      start, end: seconds, from the first frame of its first token to the end of the last frame of its last one. CTC
        models emit a token in one or two frames, with blanks between tokens, so words are rather short than long.
      confidence: geometric mean of the probabilities of its frames.
    """

    word: str
    start: float
    end: float
    confidence: float


@dataclasses.dataclass(frozen=True)
class AlignedUtterance:
    """The aligned words of an utterance.

    Attributes:
      id: of the utterance; formats with a file name or an id field use it.
      seconds: duration.
      words: in order.
    """

    id: str
    seconds: float
    words: tuple[Word, ...]


def frames_needed(tokens: Sequence[int]) -> int:
    """Returns the fewest frames of an alignment: one per token, and a blank between equal neighbours."""
    return len(tokens) + sum(first == second for first, second in itertools.pairwise(tokens))


def force_align(
    log_probs_BxTxV: Float[np.ndarray, "batch time vocab"],
    length_B: Int[np.ndarray, " batch"],
    tokens: Sequence[Sequence[int]],
) -> list[list[Span] | None]:
    """Finds the most probable alignment of tokens: Viterbi over blank, token, blank, ... (Graves et al. 2006).

    All rows are searched in lockstep. The result of a row depends only on its valid frames; among equally probable
    alignments it stays longest in a state.

    Args:
      log_probs_BxTxV: normalised log-probabilities; id 0 is the blank.
      length_B: valid frames.
      tokens: ids of the transcripts by row; may be empty.

    Returns:
      By row, a span for every token; None for a row with fewer frames than `frames_needed`.
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
        emission = np.take_along_axis(log_probs_BxTxV[:, frame].astype(np.float64), labels_BxS, axis=1)
        valid = (frame < length_B)[:, None]
        score[:, 2:] = np.where(valid, choices.max(0) + emission, score[:, 2:])
        score[:, 1] = -np.inf

    alignments: list[list[Span] | None] = []
    for row, ids in enumerate(tokens):
        last = 2 * len(ids)
        ends = [state for state in (last, last - 1) if state >= 0 and np.isfinite(score[row, state + 2])]
        if length_B[row] < frames_needed(ids) or (length_B[row] and not ends):
            alignments.append(None)
            continue
        path = []
        state = max(ends, key=lambda state: score[row, state + 2]) if ends else 0
        for frame in range(int(length_B[row]) - 1, -1, -1):
            path.append(state)
            state -= int(steps[frame, row, state])
        alignments.append(_spans(np.array(path[::-1], np.int64), ids, log_probs_BxTxV[row]))
    return alignments


def _spans(path: Int[np.ndarray, " time"], tokens: Sequence[int], log_probs: np.ndarray) -> list[Span]:
    spans = []
    for index, token in enumerate(tokens):
        frames = np.flatnonzero(path == 2 * index + 1)
        log_prob = float(log_probs[frames, token].sum(dtype=np.float64))
        spans.append(Span(int(token), int(frames[0]), int(frames[-1]) + 1, log_prob))
    return spans


def words_of(
    spans: Sequence[Span], pieces: Sequence[str], frame_seconds: float, text: str | None = None
) -> tuple[Word, ...]:
    """Joins tokens to words at spaces; in scripts without spaces, a character is a word.

    Args:
      spans: of the tokens.
      pieces: text by id, with "\u2581" for a space.
      frame_seconds: duration of a frame.
      text: text of all tokens, if pieces represent it differently (as bytes, or decomposed).

    Returns:
      Words with their times.
    """
    words: list[tuple[str, list[Span]]] = [("", [])]
    for span in spans:
        before, *after = pieces[span.token].split(SPACE)
        if before:
            words[-1] = words[-1][0] + before, [*words[-1][1], span]
        words.extend((part, [span] if part else []) for part in after)
    words = [(label, parts) for label, parts in words if label]
    labels = [] if text is None else text.split()
    if len(labels) != len(words):
        labels = [label for label, _ in words]
    return tuple(
        word
        for label, (_, parts) in zip(labels, words, strict=True)
        for word in time_word(label, parts, pieces, frame_seconds)
    )


def time_word(label: str, spans: Sequence[Span], pieces: Sequence[str], frame_seconds: float) -> list[Word]:
    """Returns a word between white space with its times; in scripts without spaces, its characters.

    The characters of a token share its frames evenly.

    Args:
      label: text of the word.
      spans: of its tokens, at least one.
      pieces: text by id.
      frame_seconds: duration of a frame.
    """
    parts = scripts.words(label)
    places: list[tuple[float, float, Span]] = []  # start and end of every character of the tokens, in frames
    for span in spans:
        count = max(len(pieces[span.token].replace(SPACE, "")), 1)
        width = (span.end - span.start) / count
        places += [(span.start + width * i, span.start + width * (i + 1), span) for i in range(count)]
    timed, end, length = [], 0, sum(map(len, parts))
    for part in parts:
        first, end = end, end + len(part)
        last = max(-(-end * len(places) // length), 1) - 1
        first = min(first * len(places) // length, last)
        chosen = list(dict.fromkeys(span for _, _, span in places[first : last + 1]))
        confidence = math.exp(sum(s.log_prob for s in chosen) / sum(s.end - s.start for s in chosen))
        timed.append(Word(part, places[first][0] * frame_seconds, places[last][1] * frame_seconds, confidence))
    return timed


def joined_word(label: str, parts: Sequence[Word]) -> Word:
    """Joins the parts of a word; the confidence is their geometric mean, weighted by time."""
    seconds = [part.end - part.start for part in parts]
    log_prob = sum(time * math.log(max(part.confidence, 1e-30)) for time, part in zip(seconds, parts, strict=True))
    return Word(label, parts[0].start, parts[-1].end, math.exp(log_prob / sum(seconds)))


def ctm_name(id: str) -> str:
    """Returns the name of an utterance in a CTM, where names have no spaces."""
    return "_".join(id.split())


def file_name(id: str) -> str:
    """Returns the file name of an utterance, without suffix."""
    return id.replace("/", "_")


def to_ctm(utterances: Sequence[AlignedUtterance]) -> str:
    """Formats NIST's CTM: one line a word with utterance, channel, start and duration in seconds, word, confidence."""
    lines = [
        f"{ctm_name(utterance.id)} 1 {word.start:.3f} {word.end - word.start:.3f} {word.word} {word.confidence:.4f}\n"
        for utterance in utterances
        for word in utterance.words
    ]
    return "".join(lines)


def to_textgrid(utterance: AlignedUtterance) -> str:
    """Formats a Praat TextGrid with the tier "words", with empty intervals between words."""
    intervals, previous = [], 0.0
    end = max([utterance.seconds, *(word.end for word in utterance.words)])
    for word in utterance.words:
        if word.start > previous:
            intervals.append((previous, word.start, ""))
        intervals.append((word.start, word.end, word.word))
        previous = word.end
    if end > previous or not intervals:
        intervals.append((previous, end, ""))
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
    """Formats JSON lines: one object an utterance with its id, seconds and words."""
    return "".join(json.dumps(dataclasses.asdict(utterance), ensure_ascii=False) + "\n" for utterance in utterances)
