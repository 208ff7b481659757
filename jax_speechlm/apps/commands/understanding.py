"""What a text or speech means by a grammar: typed, or spoken to any run that transcribes."""

import threading
from typing import NamedTuple

from jax_speechlm.apps.commands.grammar import Grammar, normal
from jax_speechlm.apps.commands.nearest import nearest_sentence
from jax_speechlm.apps.commands.run import THRESHOLDS, CommandRecognizer
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.segmentation import Recording

_TYPED = 0.9  # similarity of a typed text to a sentence: a slip of the keyboard, not another word


class Meaning(NamedTuple):
    """What was understood.

    Attributes:
      intent: as the grammar names it; None of what is not in the grammar.
      slots: values by name.
      text: what was recognised.
    """

    intent: str | None
    slots: dict[str, str]
    text: str


def of_text(text: str, grammar: Grammar) -> Meaning:
    """Understands a typed text, as it is or as the nearest sentence of the grammar."""
    words = normal(text, grammar.intents.language)
    found = grammar.understand(words)
    if found is None:
        sentence, similarity = nearest_sentence(words, grammar.words)
        found = grammar.understand(sentence) if similarity >= _TYPED else None
    return Meaning(None, {}, words) if found is None else Meaning(*found, words)


class SpeechUnderstanding:
    """Understands speech with one run, by the grammar of the moment.

    A run trained by ctc or transducer is held to the grammar; of others the nearest sentence is taken.
    """

    def __init__(self, transcriber: Transcriber, threshold: float | None = None):
        """
        Args:
          threshold: confidence below which speech is not understood; None takes that of `jax-speechlm commands`.
        """
        self.transcriber, self._threshold = transcriber, threshold
        self._recognizers: dict[Grammar, CommandRecognizer] = {}
        self._lock = threading.Lock()  # conversations take turns

    @property
    def rate(self) -> int:
        """Of samples, in Hz."""
        return self.transcriber.experiment.sample_rate

    def understand(self, recording: Recording, grammar: Grammar) -> Meaning | None:
        """Understands a recording; None of silence."""
        with self._lock:
            if grammar not in self._recognizers:
                self._recognizers[grammar] = CommandRecognizer(grammar, self.transcriber)
            recognizer = self._recognizers[grammar]
            (command,) = recognizer.recognize([recording])
        if command.intent is None and not command.text:
            return None
        kept = command.above(THRESHOLDS[recognizer.method] if self._threshold is None else self._threshold)
        return Meaning(kept.intent, kept.slots, command.text)
