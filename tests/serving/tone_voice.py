"""A voice that plays a tone for each sentence: what the service uses of a synthesizer, without a model."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_pipelines.core.errors import DataError
from tests.trained_tones import EXPERIMENT

RATE = 16_000
LETTER = 0.05  # seconds


class ToneVoice:
    """Sentences end at full stops; a sentence lasts 0.05 s a character, and its tone, of a
    level that goes up and down, is higher for a later speaker.

    Attributes:
      gate: called with a sentence before it is computed.
      said: sentences that were computed, in order.
      ended: number of texts whose computation has ended, also before their end.
      threads: the threads that computed.
    """

    experiment, params, sample_rate = EXPERIMENT, {}, RATE

    def __init__(self, speakers: Sequence[str] = (), gate: Callable[[str], object] = lambda sentence: None):
        self.speakers, self.gate = tuple(speakers), gate
        self.said: list[str] = []
        self.ended = 0
        self.threads: set[int] = set()

    def programs(self) -> list[Callable[[], object]]:
        return []

    def stream(self, text: str, speaker: str | None = None, speed: float = 1.0) -> Iterator[np.ndarray]:
        try:
            if unknown := re.findall(r"[^a-zA-Z ,.?!]", text):
                raise DataError(f"cannot speak {unknown[0]!r}: leave it out, or write it in letters")
            for sentence in sentences(text):
                self.gate(sentence)
                self.threads.add(threading.get_ident())
                self.said.append(sentence)
                yield self.tone(sentence, speaker, speed)
        finally:
            self.ended += 1

    def tone(self, sentence: str, speaker: str | None = None, speed: float = 1.0) -> np.ndarray:
        """Samples of one sentence, float32."""
        hertz = 300.0 * (2 + (self.speakers.index(speaker) if speaker else 0))
        time = np.arange(round(LETTER * RATE * len(sentence) / speed)) / RATE
        level = 0.3 + 0.2 * np.sin(2 * np.pi * 3 * time)
        return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)

    def whole(self, text: str, speaker: str | None = None, speed: float = 1.0) -> np.ndarray:
        """Samples of a text, float32."""
        return np.concatenate([self.tone(sentence, speaker, speed) for sentence in sentences(text)])


def sentences(text: str) -> list[str]:
    return [part.strip() for part in text.split(".") if part.strip()]
