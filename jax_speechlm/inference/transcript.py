"""Transcripts with times, and their conversion to JSON and subtitles."""

import dataclasses
import itertools
import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from data_pipelines.text import scripts
from jax_speechlm.decoding.ctc.alignment import Word

Format = Literal["text", "json", "srt", "vtt"]

# Limits of a subtitle: two lines of 42 characters, one to seven seconds.
_LINE, _LINES = 42, 2
_LONGEST, _SHORTEST = 7.0, 1.0
_PAUSE = 0.6  # seconds without a word that end a phrase


@dataclasses.dataclass(frozen=True)
class Segment:
    """The text of a stretch of a recording.

    Attributes:
      start, end: seconds.
      avg_logprob: log-probability of the text (for CTC of its best path), in nats per token.
      words: words with times, in scripts without spaces characters; empty if the model has no word times.
      alternatives: hypotheses of a beam search, best first.
    """

    start: float
    end: float
    text: str
    avg_logprob: float
    words: tuple[Word, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def confidence(self) -> float:
        """Geometric mean of the token probabilities."""
        return math.exp(self.avg_logprob)


@dataclasses.dataclass(frozen=True)
class Transcript:
    """The transcript of one file; `error` is a message if it cannot be read, else None."""

    file: str
    text: str
    seconds: float
    error: str | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for segment in self.segments for word in segment.words)

    def to_json(self) -> str:
        """Returns one line of JSON: file, text, seconds, error, segments with words; times rounded to 1 ms."""
        line = {"file": self.file, "text": self.text, "seconds": self.seconds, "error": self.error}
        return json.dumps(line | {"segments": [segment_dict(each) for each in self.segments]}, ensure_ascii=False)


def segment_dict(segment: Segment) -> dict:
    """Converts a segment to a JSON object."""
    fields = dataclasses.asdict(segment) | {"confidence": segment.confidence}
    fields["avg_logprob"] = round(segment.avg_logprob, 4)
    for timed in (fields, *fields["words"]):
        timed |= {name: round(timed[name], 3) for name in ("start", "end")}
        timed["confidence"] = round(timed["confidence"], 4)
    return fields


def phrases(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Splits segments at pauses and to the limits of a subtitle; words without times get times by their lengths."""
    for segment in segments:
        fits = segment.end - segment.start <= _LONGEST and len(_lines(segment.text)) <= _LINES
        if not segment.words and (fits or not segment.text.strip()):
            yield segment
            continue
        timed = segment.words or _spread(segment)
        places = _places(segment.text, timed)
        first = 0
        for last, (word, following) in enumerate(itertools.zip_longest(timed, timed[1:])):
            text = _cut(timed, places, first, min(last + 1, len(timed) - 1), segment)
            if following is not None and _fits(timed[first], word, following, text):
                continue
            words = timed[first : last + 1]
            logprob = sum(math.log(max(each.confidence, 1e-30)) for each in words) / len(words)
            words = tuple(words) if segment.words else ()
            yield Segment(timed[first].start, word.end, _cut(timed, places, first, last, segment), logprob, words)
            first = last + 1


def _fits(first: Word, last: Word, following: Word, text: str) -> bool:
    if following.start - last.end >= _PAUSE or following.end - first.start > _LONGEST:
        return False
    return len(_lines(text)) <= _LINES


def _spread(segment: Segment) -> list[Word]:
    words = scripts.words(segment.text)
    ends = list(itertools.accumulate(map(len, words), initial=0))
    times = [segment.start + (segment.end - segment.start) * end / ends[-1] for end in ends]
    return [
        Word(word, start, end, segment.confidence)
        for word, (start, end) in zip(words, itertools.pairwise(times), strict=True)
    ]


def _places(text: str, words: Sequence[Word]) -> list[tuple[int, int]]:
    """Returns the spans of words in a text; empty if the text does not contain them all in order."""
    places, reached = [], 0
    for word in words:
        start = text.find(word.word, reached)
        if start < 0:
            return []
        reached = start + len(word.word)
        places.append((start, reached))
    return places


def _cut(words: Sequence[Word], places: Sequence[tuple[int, int]], first: int, last: int, segment: Segment) -> str:
    """Returns the text of the words from `first` to `last`."""
    if places:
        return segment.text[places[first][0] : places[last][1]]
    return scripts.join(word.word for word in words[first : last + 1])


def _lines(text: str) -> list[str]:
    """Splits a text into subtitle lines, between words where possible."""
    lines, line = [], ""
    for chunk in text.split():
        for place, word in enumerate(scripts.words(chunk)):
            space = " " if line and place == 0 else ""
            if line and _width(line + space + word) > _LINE:
                lines.append(line)
                line = space = ""
            line += space + word
            while _width(line) > _LINE:  # a word longer than a line
                end = max(end for end in range(1, len(line)) if _width(line[:end]) <= _LINE)
                lines.append(line[:end])
                line = line[end:]
    return [*lines, line] if line else lines


def _width(text: str) -> int:
    """Returns the width in columns: two for a wide character such as Han, none for a combining mark."""
    narrow = sum(unicodedata.category(character) not in ("Mn", "Me", "Cf") for character in text)
    return narrow + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def to_srt(segments: Sequence[Segment]) -> str:
    """Formats SubRip subtitles."""
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(segments), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(segments: Sequence[Segment]) -> str:
    """Formats WebVTT subtitles (W3C)."""

    def escape(text):
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    blocks = [f"{_clock(start, '.')} --> {_clock(end, '.')}\n{escape(text)}\n" for start, end, text in _cues(segments)]
    return "\n".join(["WEBVTT\n", *blocks])


SUBTITLES: dict[str, Callable[[Sequence[Segment]], str]] = {"srt": to_srt, "vtt": to_vtt}


def _cues(segments: Sequence[Segment]) -> Iterator[tuple[float, float, str]]:
    """Yields start, end and text of subtitles, without overlaps and empty ones."""
    shown = [phrase for phrase in phrases(segments) if phrase.text.strip()]
    for phrase, following in itertools.zip_longest(shown, shown[1:]):
        limit = max(following.start, phrase.start) if following else math.inf
        end = min(max(phrase.end, phrase.start + _SHORTEST), phrase.start + _LONGEST, limit)
        yield phrase.start, end, "\n".join(_lines(phrase.text))


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
