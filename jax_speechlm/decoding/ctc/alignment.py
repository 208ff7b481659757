"""Where in the audio each token and word of a known transcript lies: the likeliest CTC alignment, and its files."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.text import scripts
from data_pipelines.tokenizers.base import BLANK
from jax_speechlm.decoding.lm.ngram import SPACE

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
    """A word and where it lies; of a text in a script without spaces, a character.

    Attributes:
      start, end: seconds, from the first frame of its first token to the end of the last frame of its last. CTC models
        spell a token in a frame or two and blanks in between, so words come out short rather than long.
      confidence: a probability: the geometric mean of its frames'.
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


def words_of(
    spans: Sequence[Span], pieces: Sequence[str], frame_seconds: float, text: str | None = None
) -> tuple[Word, ...]:
    """Joins tokens to words at their spaces; in scripts without spaces, a character is a word.

    Args:
      pieces: what each id spells, a space as "\u2581".
      text: what the tokens spell together, where pieces may spell it otherwise (in bytes, or decomposed).
    """
    words: list[tuple[str, list[Span]]] = [("", [])]
    for span in spans:
        before, *after = pieces[span.token].split(SPACE)
        if before:
            words[-1] = words[-1][0] + before, [*words[-1][1], span]
        words.extend((part, [span] if part else []) for part in after)
    words = [(spelled, parts) for spelled, parts in words if spelled]
    labels = [spelled for spelled, _ in words] if text is None else text.split()
    if len(labels) != len(words):
        labels = [spelled for spelled, _ in words]
    return tuple(
        word
        for label, (_, parts) in zip(labels, words, strict=True)
        for word in time_word(label, parts, pieces, frame_seconds)
    )


def time_word(label: str, spans: Sequence[Span], pieces: Sequence[str], frame_seconds: float) -> list[Word]:
    """A word between white space and its times; in a script without spaces, each of its characters.

    Characters of one token share its frames evenly.

    Args:
      spans: of its tokens, at least one.
      pieces: what each id spells.
    """
    parts = scripts.words(label)
    places: list[tuple[float, float, Span]] = []  # start and end of every character that tokens spell, in frames
    for span in spans:
        count = max(len(pieces[span.token].replace(SPACE, "")), 1)
        width = (span.end - span.start) / count
        places += [(span.start + width * at, span.start + width * (at + 1), span) for at in range(count)]
    timed, behind, length = [], 0, sum(map(len, parts))
    for part in parts:
        first, behind = behind, behind + len(part)
        last = max(-(-behind * len(places) // length), 1) - 1
        first = min(first * len(places) // length, last)
        chosen = list(dict.fromkeys(span for _, _, span in places[first : last + 1]))
        confidence = math.exp(sum(s.log_prob for s in chosen) / sum(s.end - s.start for s in chosen))
        timed.append(Word(part, places[first][0] * frame_seconds, places[last][1] * frame_seconds, confidence))
    return timed


def joined_word(label: str, parts: Sequence[Word]) -> Word:
    """The parts of a word as one; its confidence is their geometric mean by time."""
    seconds = [part.end - part.start for part in parts]
    sure = sum(each * math.log(max(part.confidence, 1e-30)) for each, part in zip(seconds, parts, strict=True))
    return Word(label, parts[0].start, parts[-1].end, math.exp(sure / sum(seconds)))


def ctm_name(id: str) -> str:
    """What an utterance is called in a CTM, which has no room for spaces."""
    return "_".join(id.split())


def file_name(id: str) -> str:
    """The stem of an utterance's own file."""
    return id.replace("/", "_")


def to_ctm(utterances: Sequence[AlignedUtterance]) -> str:
    """NIST's CTM: a line a word with utterance, channel, start and duration in seconds, word, confidence."""
    lines = [
        f"{ctm_name(utterance.id)} 1 {word.start:.3f} {word.end - word.start:.3f} {word.word} {word.confidence:.4f}\n"
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
