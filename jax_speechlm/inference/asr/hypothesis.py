"""Text of a stream: tokens to words with times, partial transcripts, and segments at pauses."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from pydantic import PositiveFloat

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.config import Config
from jax_speechlm.decoding.ctc.alignment import Span, Word, words_of
from jax_speechlm.decoding.lm.ngram import SPACE
from jax_speechlm.inference.transcript import Segment


class Endpointing(Config):
    """When a segment of a stream ends. What the model computes does not depend on it.

    Attributes:
      silence_seconds: frames without a token after a token, in seconds, that end a segment; None for any number.
      longest_seconds: a longer segment ends before its last word, or with it if there is no other.
    """

    silence_seconds: PositiveFloat | None = None
    longest_seconds: PositiveFloat = 30.0


@dataclasses.dataclass(frozen=True)
class Partial:
    """The transcript so far of the segment of a stream that has not ended.

    Attributes:
      seconds: audio of the stream that has been processed.
      text: its text.
      stable: part of the text at its beginning that does not change any more: all words but the last.
      words: words with times.
      revised: words of the partial transcript before it, if of the same segment, that it changed otherwise than by
        adding to their ends.
    """

    seconds: float = 0.0
    text: str = ""
    stable: str = ""
    words: tuple[Word, ...] = ()
    revised: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Converts it to a JSON object; times are rounded to 1 ms."""
        words = [
            {
                "word": word.word,
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "confidence": round(word.confidence, 4),
            }
            for word in self.words
        ]
        return {
            "seconds": round(self.seconds, 3),
            "text": self.text,
            "stable": self.stable,
            "words": words,
            "revised": self.revised,
        }


class Hypothesis:
    """Collects the tokens of one stream.

    Attributes:
      segments: those that have ended.
      partial: the transcript so far of the one that has not.
    """

    def __init__(self, tokenizer: Tokenizer, frame_seconds: float, endpointing: Endpointing):
        self.segments: tuple[Segment, ...] = ()
        self.partial = Partial()
        self._tokenizer, self._frame_seconds = tokenizer, frame_seconds
        pieces = tokenizer.pieces
        self._begins_word = [piece.startswith(SPACE) for piece in pieces]
        self._ends_word = [piece.endswith(SPACE) for piece in pieces]
        silence, longest = endpointing.silence_seconds, endpointing.longest_seconds
        self._silence = float("inf") if silence is None else max(round(silence / frame_seconds), 1)
        self._longest = max(round(longest / frame_seconds), 1)
        self._spans: list[Span] = []
        self._num_frames = 0

    def extend(self, emissions: Iterable[tuple[int, int, int, float, bool]], num_frames: int) -> None:
        """Appends the tokens that a search emitted in the next `num_frames` frames, as in `decoding.stream.Emissions`.

        It closes segments where they end, frame by frame, so that they do not depend on the length of chunks.
        """
        for token, frame, width, log_prob, continues in emissions:
            at = self._num_frames + frame
            if continues and self._spans:
                last = self._spans[-1]
                self._spans[-1] = Span(last.token, last.start, at + width, last.log_prob + width * log_prob)
                continue
            self._end_at_pause(at)
            self._spans.append(Span(token, at, at + width, width * log_prob))
            if at - self._spans[0].start >= self._longest:
                self._close(self._last_word() or len(self._spans))
        self._num_frames += num_frames
        self._end_at_pause(self._num_frames)
        self._update()

    def close(self) -> None:
        """Ends the last segment."""
        self._close(len(self._spans))
        self._update()

    def _end_at_pause(self, frame: int) -> None:
        if self._spans and frame - self._spans[-1].end >= self._silence:
            self._close(len(self._spans))

    def _last_word(self) -> int:
        """Returns the index of the last word's first token: those before it are of complete words."""
        if not any(self._begins_word):  # a script without spaces
            return len(self._spans)
        for index in range(len(self._spans) - 1, -1, -1):
            token = self._spans[index].token
            if self._ends_word[token]:
                return index + (index < len(self._spans) - 1)
            if self._begins_word[token]:
                return index
        return 0

    def _close(self, num: int) -> None:
        closed, self._spans = self._spans[:num], self._spans[num:]
        text = self._text(closed)
        if not text:
            return
        log_prob = sum(span.log_prob for span in closed) / len(closed)  # without blanks, which may last hours
        times = closed[0].start * self._frame_seconds, closed[-1].end * self._frame_seconds
        self.segments += (Segment(*times, text, log_prob, self._words(closed, text)),)
        self.partial = Partial(self.partial.seconds)

    def _update(self) -> None:
        text, stable = self._text(self._spans), self._text(self._spans[: self._last_word()])
        words = self._words(self._spans, text)
        before = self.partial.words
        revised = sum(not new.word.startswith(old.word) for old, new in zip(before, words, strict=False))
        revised += max(len(before) - len(words), 0)
        self.partial = Partial(self._num_frames * self._frame_seconds, text, stable, words, revised)

    def _text(self, spans: list[Span]) -> str:
        return " ".join(self._tokenizer.decode([span.token for span in spans]).split())

    def _words(self, spans: list[Span], text: str) -> tuple[Word, ...]:
        return words_of(spans, self._tokenizer.pieces, self._frame_seconds, text)
