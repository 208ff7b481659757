"""A dialogue as a service: conversations on a page, over HTTP and over Wyoming."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.audio import turns
from jax_speechlm.apps.commands.understanding import Meaning, SpeechUnderstanding, of_text
from jax_speechlm.apps.dialogue.script import Script
from jax_speechlm.apps.dialogue.session import Session
from jax_speechlm.inference.lm.phrasing import Phrasing
from jax_speechlm.inference.segmentation import Samples, shapes
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.serving.admission import Limits, Requests
from jax_speechlm.serving.conversations import Conversations
from jax_speechlm.serving.run import name_of, run_services
from jax_speechlm.serving.service import Service
from jax_speechlm.serving.settings import Address, ConversationLimits
from jax_speechlm.serving.speech import Synthesis
from jax_speechlm.serving.transcription import ROUTES, Transcription


class ServedSession(Session):
    """A conversation of a service."""

    def __init__(self, script: Script, recognizer: SpeechUnderstanding | None, phrasing: Phrasing | None):
        super().__init__(script, phrasing)
        self._recognizer = recognizer

    def understand(self, said: str | Samples) -> tuple[str, Meaning | None]:
        """Returns the text of a turn and its meaning; "" and None of a silence."""
        if isinstance(said, str):
            meaning = of_text(said, self.expected) if said.strip() else None
        else:
            meaning = self._recognizer.understand(said, self.expected)
        return "" if meaning is None else meaning.text, meaning

    def reply(self, meaning: Meaning | None) -> str:
        """Takes a turn, or a silence; returns the reply."""
        return self.reply_to(meaning)


@dataclasses.dataclass(frozen=True)
class ServedDialogue:
    """A dialogue of a service, typed and, with a recognizer, spoken."""

    script: Script
    recognizer: SpeechUnderstanding | None = None
    phrasing: Phrasing | None = None

    @property
    def name(self) -> str:
        return self.script.file.path.stem

    @property
    def language(self) -> str:
        return self.script.declared.language

    @property
    def timeout(self) -> float:
        """Seconds of a silence."""
        return self.script.declared.timeout.seconds

    @property
    def sample_rate(self) -> int | None:
        """Of spoken turns, in Hz."""
        return None if self.recognizer is None else self.recognizer.rate

    def begin(self) -> ServedSession:
        """Returns a conversation before its start."""
        return ServedSession(self.script, self.recognizer, self.phrasing)

    def programs(self) -> Sequence[Callable[[], Any]]:
        """Returns calls that compile what turns run, by length."""
        if self.recognizer is None:
            return ()
        session, rng = self.begin(), np.random.default_rng(0)
        session.start()
        lengths = sorted({length for _, length in shapes(turns.LONGEST, 60.0)})
        noises = [rng.normal(0, 1000, length).astype(np.int16) for length in lengths]
        return [functools.partial(session.understand, noise) for noise in noises]


def serve(
    script: Script,
    recognizer: SpeechUnderstanding | None,
    voice: Synthesizer | None,
    phrasing: Phrasing | None,
    address: Address,
    limits: ConversationLimits,
) -> None:
    """Serves a dialogue, the voice of its replies and, for Wyoming, the recognizer's transcripts, until Ctrl-C."""
    requests = Requests(Limits(max_requests=2 * limits.max_conversations))  # a turn and a reply of each
    services: list[Service] = [Conversations(ServedDialogue(script, recognizer, phrasing), requests, limits)]
    if voice is not None:
        services.append(Synthesis(voice, name_of(voice.checkpoint), requests))
    if recognizer is not None and address.wyoming_port is not None and recognizer.transcriber.task in ROUTES:
        transcriber = recognizer.transcriber
        services.append(Transcription(transcriber, name_of(transcriber.checkpoint), requests, 30.0, 60.0))
    run_services(services, requests, address, (script.declared.language,))
