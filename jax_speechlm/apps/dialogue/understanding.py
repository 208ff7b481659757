"""What a turn of the user means: typed, or spoken to any run that transcribes."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jax_speechlm.apps.commands.grammar import Grammar, normal
from jax_speechlm.apps.commands.nearest import nearest_sentence
from jax_speechlm.apps.commands.run import THRESHOLDS, CommandRecognizer
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.segmentation import Recording, Samples

_TYPED = 0.9  # similarity of a typed text to a sentence: a slip of the keyboard, not another word
_LOUD = 10 ** (-40 / 20) * 2**15  # RMS of 16-bit samples, -40 dB of full scale
_PAUSE = 0.8  # seconds of quiet that end a turn
_LONGEST = 20.0  # seconds of a turn


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
        self._transcriber, self._threshold = transcriber, threshold
        self._recognizers: dict[Grammar, CommandRecognizer] = {}

    @property
    def rate(self) -> int:
        """Of samples, in Hz."""
        return self._transcriber.experiment.sample_rate

    def understand(self, recording: Recording, grammar: Grammar) -> Meaning | None:
        """Understands a recording; None of silence."""
        if grammar not in self._recognizers:
            self._recognizers[grammar] = CommandRecognizer(grammar, self._transcriber)
        recognizer = self._recognizers[grammar]
        (command,) = recognizer.recognize([recording])
        if command.intent is None and not command.text:
            return None
        kept = command.above(THRESHOLDS[recognizer.method] if self._threshold is None else self._threshold)
        return Meaning(kept.intent, kept.slots, command.text)


def next_turn(blocks: Iterable[Samples], rate: int, timeout: float) -> Samples | None:
    """Cuts the next turn of the user out of what a microphone records: from the first sound to a pause of 0.8 s.

    Args:
      blocks: 16-bit samples, in order.
      timeout: seconds without a sound after which there is no turn.

    Returns:
      The samples; None if nothing is said.

    Raises:
      EOFError: the recording was ended.
    """
    before, turn, quiet, waited = np.zeros(0, np.int16), list[Samples](), 0.0, 0.0
    for block in blocks:
        seconds = len(block) / rate
        is_loud = np.sqrt(np.mean(np.square(block, dtype=np.float64))) > _LOUD
        if not turn:
            if is_loud:
                turn = [before, block]
            before, waited = block, waited + seconds
            if waited >= timeout and not turn:
                return None
            continue
        turn.append(block)
        quiet = 0.0 if is_loud else quiet + seconds
        if quiet >= _PAUSE or sum(map(len, turn)) >= _LONGEST * rate:
            return np.concatenate(turn)
    raise EOFError
