"""A dialogue over the letters of the trained tones, for services."""

from pathlib import Path

import numpy as np

from jax_speechlm.apps.commands.understanding import SpeechUnderstanding
from jax_speechlm.apps.dialogue.script import Script
from jax_speechlm.apps.dialogue.serve import ServedDialogue
from jax_speechlm.inference.asr.ctc import Recognizer
from tests.serving.service import encoded
from tests.trained_tones import QUIET, RATE, speak, trained_run

LETTERS = """
start: main
phrases:
  "yes": [ab ca]
  "no": [ba cb]
  repeat: [acb acb]
  help: [bca bca]
  cancel: [cab cab]
  lead: [cb cb]
  tail: [bc bc]
  nth: [[ac ac]]
nodes:
  main:
    say: "One. Two."
    choices:
      - {sentences: ["abc [ab]"], next: end}
      - {sentences: ["cba"], next: other}
  other: {say: "Other.", next: main}
  end: {say: "Bye."}
"""

TIMEOUT = 'timeout: {seconds: 2, say: "Are you there?", most: 1, end: "Nobody is there."}\n'


def letters(folder: Path) -> ServedDialogue:
    """Returns the dialogue, whose file is written to a folder."""
    file = folder / "letters.yaml"
    file.write_text(LETTERS + TIMEOUT)
    # Threshold 0: to a browser's noise suppression tones are noise, so that the recognizer is less sure of them.
    return ServedDialogue(Script.load(file), SpeechUnderstanding(Recognizer.load(trained_run()), threshold=0.0))


def said(text: str, before: float = 0.0, after: float = 0.0) -> bytes:
    """Returns a wav file of a text, and of some seconds of quiet before and after it."""
    rng = np.random.default_rng(0)
    first, last = ((QUIET * rng.normal(size=round(RATE * each))).astype(np.int16) for each in (before, after))
    return encoded(np.concatenate([first, speak(text)[0], last]))
