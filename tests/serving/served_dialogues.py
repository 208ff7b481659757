"""A dialogue over the letters of the trained tones, for services."""

from pathlib import Path

import numpy as np

from jax_speechlm.apps.dialogue.script import Script
from jax_speechlm.apps.dialogue.serve import ServedDialogue
from jax_speechlm.apps.dialogue.understanding import SpeechUnderstanding
from jax_speechlm.inference.asr.ctc import Recognizer
from tests.serving.service import encoded
from tests.trained_tones import speak, trained_run

DECLARED = """
start: main
timeout: {seconds: 2, say: "Are you there?", most: 1, end: "Nobody is there."}
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


def letters(folder: Path, is_spoken: bool = True) -> ServedDialogue:
    """Returns the dialogue, whose file is written to a folder."""
    file = folder / "letters.yaml"
    file.write_text(DECLARED)
    recognizer = SpeechUnderstanding(Recognizer.load(trained_run())) if is_spoken else None
    return ServedDialogue(Script.load(file), recognizer)


def said(text: str, quiet_seconds: float = 0.0) -> bytes:
    """Returns a wav file of a text, and of the quiet after it."""
    samples, _ = speak(text)
    return encoded(np.concatenate([samples, np.zeros(round(quiet_seconds * 16_000), np.int16)]))
