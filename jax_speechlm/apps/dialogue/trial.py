"""Scripted conversations with a dialogue, typed or spoken."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from data_pipelines.audio import decode
from jax_speechlm.apps.commands.understanding import SpeechUnderstanding, of_text
from jax_speechlm.apps.dialogue.script import SHIPPED, Script
from jax_speechlm.apps.dialogue.session import Session
from jax_speechlm.apps.yaml_file import YamlFile
from jax_speechlm.evaluation import conversations
from jax_speechlm.evaluation.conversations import Conversation, Conversations, Outcome, ScriptedTurn
from jax_speechlm.inference.segmentation import Samples
from jax_speechlm.inference.synthesize import Synthesizer


@runtime_checkable
class Voice(Protocol):
    """What speaks replies: a `Synthesizer`."""

    def stream(self, text: str) -> Iterator[np.ndarray]:
        """Yields the samples of a text, sentence by sentence."""
        ...


def load_conversations(name: str | Path) -> tuple[tuple[Conversation, ...], Path]:
    """Reads scripted conversations; returns them with the folder of their recordings. Raises `DataError`."""
    file = YamlFile.read(name, SHIPPED)
    return file.validated(Conversations).conversations, file.path.parent


class Trial:
    """Holds scripted conversations with a dialogue.

    Args:
      recognizer: understands the turns as speech; None takes them as typed.
      user: voice of the turns without a recording.
      voice: voice of the replies; None leaves them as text.
      folder: of the recordings.
    """

    def __init__(
        self,
        script: Script,
        recognizer: SpeechUnderstanding | None = None,
        user: Synthesizer | None = None,
        voice: Voice | None = None,
        folder: Path = Path(),
    ):
        self.script, self.recognizer, self.user, self.voice, self.folder = script, recognizer, user, voice, folder

    def hold(self, conversation: Conversation) -> Outcome:
        """Holds one conversation, to its end or to the end of the dialogue."""
        session, typed = Session(self.script), None
        session.start()

        def record(turn: ScriptedTurn) -> Samples | None:
            nonlocal typed
            typed = None if turn.silence else of_text(turn.user, session.expected)
            return None if typed is None or self.recognizer is None else self._recording(turn)

        def answer(turn: ScriptedTurn, recording: Samples | None) -> tuple[str, bool]:
            meaning = typed if recording is None else self.recognizer.understand(recording, session.expected)
            reply = session.reply_to(meaning)
            if self.voice is not None and reply:
                next(iter(self.voice.stream(reply)))
            return reply, recording is not None and meaning is not None and meaning[:2] == typed[:2]

        return conversations.hold(conversation, session, record, answer, self.recognizer and self.recognizer.rate)

    def _recording(self, turn: ScriptedTurn) -> Samples:
        """Returns the samples of a turn, 16 bits at the recognizer's rate."""
        import soxr

        from data_pipelines.audio.wav import to_int16

        rate = self.recognizer.rate
        if turn.audio is not None:
            return np.concatenate(list(decode.stream(self.folder / turn.audio, rate=rate)))
        if self.user is None:
            raise ValueError(f"{turn.user!r} has no recording: name one with `audio`, or a voice with --user-voice")
        (speech,) = self.user.synthesize([turn.user])
        return to_int16(soxr.resample(speech.samples, speech.sample_rate, rate))
