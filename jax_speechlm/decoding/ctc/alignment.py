"""Forced alignment of a known transcript by CTC: times of tokens and words, and their file formats."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from data_pipelines.core.tokenizer import BLANK
from data_pipelines.text import scripts
from jax_speechlm.decoding.lm.ngram import SPACE

Format = Literal["ctm", "textgrid", "json", "index"]

_TEXTGRID = """\
File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = {end:.6f}
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = {end:.6f}
        intervals: size = {count}
"""
_INTERVAL = """\
        intervals [{index}]:
            xmin = {start:.6f}
            xmax = {stop:.6f}
            text = "{label}"
"""


@dataclasses.dataclass(frozen=True)
class Span:
    """The frames of a token in an alignment.

    Attributes:
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
    """The aligned words of an utterance, in order; `seconds` is its duration."""

    id: str
    seconds: float
    words: tuple[Word, ...]


def frames_needed(tokens: Sequence[int]) -> int:
    """Returns the fewest frames of an alignment: one per token, and a blank between equal neighbours."""
    return len(tokens) + sum(first == second for first, second in itertools.pairwise(tokens))


def force_align(
    log_probs: Sequence[Float[np.ndarray, "_ vocab"]], tokens: Sequence[Sequence[int]]
) -> list[list[Span] | None]:
    """Finds the most probable alignment of tokens: Viterbi over blank, token, blank, ... (Graves et al. 2006).

    All rows are searched in lockstep. The result of a row depends only on its own frames; among equally probable
    alignments it stays longest in a state.

    Args:
      log_probs: normalised log-probabilities of the frames of each row; id 0 is the blank.
      tokens: ids of the transcripts by row; may be empty.

    Returns:
      By row, a span for every token; None for a row with fewer frames than `frames_needed`.
    """
    if not log_probs:
        return []
    length_B = np.array([len(row) for row in log_probs])
    batch, num_frames = len(log_probs), int(length_B.max())
    log_probs_BxTxV = np.zeros((batch, num_frames, log_probs[0].shape[1]), log_probs[0].dtype)
    for row, frames in enumerate(log_probs):
        log_probs_BxTxV[row, : len(frames)] = frames
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
        path = np.zeros(length_B[row], np.int64)
        state = max(ends, key=lambda state: score[row, state + 2]) if ends else 0
        for frame in range(len(path) - 1, -1, -1):
            path[frame] = state
            state -= int(steps[frame, row, state])
        spans = []
        for index, token in enumerate(ids):
            frames = np.flatnonzero(path == 2 * index + 1)
            log_prob = float(log_probs[row][frames, token].sum(dtype=np.float64))
            spans.append(Span(int(token), int(frames[0]), int(frames[-1]) + 1, log_prob))
        alignments.append(spans)
    return alignments


def words_of(
    spans: Sequence[Span], pieces: Sequence[str], frame_seconds: float, text: str | None = None
) -> tuple[Word, ...]:
    """Joins tokens to words at spaces; in scripts without spaces, a character is a word.

    Args:
      pieces: text by id, with "\u2581" for a space.
      text: text of all tokens, if pieces represent it differently (as bytes, or decomposed).
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

    The characters of a token share its frames evenly. `spans` are those of its tokens, at least one.
    """
    parts = scripts.words(label)
    characters: list[tuple[float, float, Span]] = []  # start and end in frames, and token
    for span in spans:
        count = max(len(pieces[span.token].replace(SPACE, "")), 1)
        width = (span.end - span.start) / count
        characters += [(span.start + width * i, span.start + width * (i + 1), span) for i in range(count)]
    timed, end, length = [], 0, sum(map(len, parts))
    for part in parts:
        first, end = end, end + len(part)
        last = max(-(-end * len(characters) // length), 1) - 1
        first = min(first * len(characters) // length, last)
        chosen = list(dict.fromkeys(span for _, _, span in characters[first : last + 1]))
        confidence = math.exp(sum(s.log_prob for s in chosen) / sum(s.end - s.start for s in chosen))
        timed.append(Word(part, characters[first][0] * frame_seconds, characters[last][1] * frame_seconds, confidence))
    return timed


def joined_word(label: str, parts: Sequence[Word]) -> Word:
    """Joins the parts of a word; the confidence is their geometric mean, weighted by time."""
    seconds = [part.end - part.start for part in parts]
    log_prob = sum(time * math.log(max(part.confidence, 1e-30)) for time, part in zip(seconds, parts, strict=True))
    return Word(label, parts[0].start, parts[-1].end, math.exp(log_prob / sum(seconds)))


def name_in(format: Format, id: str) -> str:
    """Returns the name of an utterance in a format: a CTM has no spaces in names, and TextGrids are named by it."""
    return {"ctm": "_".join(id.split()), "textgrid": id.replace("/", "_")}.get(format, id)


def to_files(format: Format, utterances: Sequence[AlignedUtterance]) -> dict[str, str]:
    """Formats utterances as "ctm", "json" or "textgrid"; returns the texts by file name."""
    if format == "textgrid":
        return {f"{name_in(format, utterance.id)}.TextGrid": to_textgrid(utterance) for utterance in utterances}
    return {"words.ctm": to_ctm(utterances)} if format == "ctm" else {"words.jsonl": to_json(utterances)}


def to_ctm(utterances: Sequence[AlignedUtterance]) -> str:
    """Formats NIST's CTM: one line a word with utterance, channel, start and duration in seconds, word, confidence."""
    words = ((name_in("ctm", utterance.id), word) for utterance in utterances for word in utterance.words)
    return "".join(
        f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.word} {word.confidence:.4f}\n"
        for name, word in words
    )


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
    text = _TEXTGRID.format(end=end, count=len(intervals))
    for index, (start, stop, label) in enumerate(intervals, start=1):
        quoted = label.replace('"', '""')
        text += _INTERVAL.format(index=index, start=start, stop=stop, label=quoted)
    return text


def to_json(utterances: Sequence[AlignedUtterance]) -> str:
    """Formats JSON lines: one object an utterance with its id, seconds and words."""
    return "".join(json.dumps(dataclasses.asdict(utterance), ensure_ascii=False) + "\n" for utterance in utterances)
