"""Texts of an attention decoder for windows of audio, and when one is drawn again."""

import dataclasses
import zlib
from typing import NamedTuple

from data_pipelines.text.scripts import join
from jax_speechlm.core.config import Config
from jax_speechlm.decoding.ctc.alignment import Word


class Fallback(Config):
    """When a text is drawn again at a higher temperature, and when it is left out (Radford et al. 2022, section 4.5).

    Attributes:
      temperatures: tried in order, 0 being greedy or beam search; the last text stays in any case.
      compression_ratio: a text that gzip shrinks by more repeats itself.
      log_prob: least mean log-probability of a token, in nats.
      no_speech: a text below `log_prob` is left out where the probability of no speech is above this.
    """

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    log_prob: float = -1.0
    no_speech: float = 0.6


class Phrase(NamedTuple):
    """A stretch of a window's text, from `start` to `end` in seconds; without an end it reaches that of the window."""

    start: float
    end: float | None
    text: str
    words: tuple[Word, ...] = ()

    def later(self, seconds: float) -> "Phrase":
        """Returns the phrase, moved."""
        end = None if self.end is None else self.end + seconds
        words = tuple(
            dataclasses.replace(word, start=word.start + seconds, end=word.end + seconds) for word in self.words
        )
        return Phrase(self.start + seconds, end, self.text, words)


class Answer(NamedTuple):
    """The text of one window.

    Attributes:
      phrases: the text by the times in it; a single one without.
      avg_logprob: mean log-probability of its tokens and the end by the decoder, in nats.
      num_tokens: number of tokens, with the end if it ended.
      no_speech: probability of no speech; 0 if the model does not predict it.
      resume: second of the window from which speech follows that the text leaves out: it ends with two times, the first
        of which ends a phrase and the second begins one. None if nothing does.
      ids: its tokens, times among them.
      alternatives: texts of a beam search, best first.
    """

    phrases: tuple[Phrase, ...]
    avg_logprob: float
    num_tokens: int
    no_speech: float
    temperature: float
    resume: float | None = None
    ids: tuple[int, ...] = ()
    alternatives: tuple[str, ...] = ()

    def followed_by(self, other: "Answer", offset: float) -> "Answer":
        """Returns both texts as one, the second of audio that begins at `offset` seconds."""
        if not other.num_tokens:
            return self
        phrases = (*self.phrases, *(phrase.later(offset) for phrase in other.phrases))
        count = self.num_tokens + other.num_tokens
        total = self.avg_logprob * self.num_tokens + other.avg_logprob * other.num_tokens
        parts = {"ids": self.ids + other.ids, "temperature": max(self.temperature, other.temperature)}
        return self._replace(phrases=phrases, avg_logprob=total / count, num_tokens=count, alternatives=(), **parts)

    @property
    def text(self) -> str:
        """The whole text."""
        return join((phrase.text for phrase in self.phrases), " ")

    @property
    def compression_ratio(self) -> float:
        """Bytes of the text over its bytes in gzip."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data))
