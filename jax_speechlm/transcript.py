"""What was heard in a recording, with times; and as lines of text, JSON, and subtitles."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from jax_speechlm.decoding.alignment import Word

Format = Literal["text", "json", "srt", "vtt"]

# What subtitles hold: two lines of 42 characters for at most seven seconds, and for a second at least.
_LINE, _LINES = 42, 2
_LONGEST, _SHORTEST = 7.0, 1.0
_PAUSE = 0.6  # seconds without a word that end a phrase


@dataclasses.dataclass(frozen=True)
class Segment:
    """What was heard in a stretch of a recording.

    Attributes:
      start, end: seconds.
      confidence: the model's log-probability of the text (by CTC: of its best path), in nats a token.
      words: each with its times; none where the model does not tell them.
      alternatives: the texts that the search kept, the best first; of a beam search alone.
    """

    start: float
    end: float
    text: str
    confidence: float
    words: tuple[Word, ...] = ()
    alternatives: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was heard in one file; `error` says why nothing could be, and is None otherwise."""

    file: str
    text: str
    seconds: float
    error: str | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for segment in self.segments for word in segment.words)

    def to_json(self) -> str:
        """One line: file, text, seconds, error, and segments with their words; times to a millisecond."""
        line = {"file": self.file, "text": self.text, "seconds": self.seconds, "error": self.error}
        return json.dumps(line | {"segments": [segment_dict(each) for each in self.segments]}, ensure_ascii=False)


def segment_dict(segment: Segment) -> dict:
    """A segment as JSON has it."""
    fields = dataclasses.asdict(segment)
    for timed in (fields, *fields["words"]):
        timed |= {name: round(timed[name], 3) for name in ("start", "end")}
        timed["confidence"] = round(timed["confidence"], 4)
    return fields


def phrases(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Segments parted at pauses, and where they would not fit a subtitle; those without words stay as they are."""
    for segment in segments:
        if not segment.words:
            yield segment
            continue
        held: list[Word] = []
        for word in segment.words:
            if held and not _fits(held, word):
                yield _phrase(held)
                held = []
            held.append(word)
        yield _phrase(held)


def _fits(held: Sequence[Word], word: Word) -> bool:
    if word.start - held[-1].end >= _PAUSE or word.end - held[0].start > _LONGEST:
        return False
    return len(textwrap.wrap(_spelled([*held, word]), _LINE)) <= _LINES


def _phrase(words: Sequence[Word]) -> Segment:
    confidence = sum(math.log(max(word.confidence, 1e-30)) for word in words) / len(words)
    return Segment(words[0].start, words[-1].end, _spelled(words), confidence, tuple(words))


def _spelled(words: Sequence[Word]) -> str:
    return " ".join(word.word for word in words)


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip subtitles: number, times, one or two lines, an empty line."""
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(segments), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT subtitles (W3C)."""
    escape = lambda text: text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")  # noqa: E731
    blocks = [f"{_clock(start, '.')} --> {_clock(end, '.')}\n{escape(text)}\n" for start, end, text in _cues(segments)]
    return "\n".join(["WEBVTT\n", *blocks])


SUBTITLES: dict[str, Callable[[Sequence[Segment]], str]] = {"srt": to_srt, "vtt": to_vtt}


def _cues(segments: Sequence[Segment]) -> Iterator[tuple[float, float, str]]:
    """Start, end and lines of each subtitle: none overlaps the next, and none is empty."""
    shown = [phrase for phrase in phrases(segments) if phrase.text.strip()]
    for place, phrase in enumerate(shown):
        following = shown[place + 1].start if place + 1 < len(shown) else math.inf
        end = min(max(phrase.end, phrase.start + _SHORTEST), max(following, phrase.start))
        yield phrase.start, end, "\n".join(textwrap.wrap(phrase.text, _LINE))


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
