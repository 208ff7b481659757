"""Conversations: turns of a dialogue over HTTP, typed or spoken, each conversation with a state of its own."""

import asyncio
import collections
import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from data_pipelines.audio import turns
from data_pipelines.core.errors import DataError
from jax_speechlm.inference.segmentation import Samples
from jax_speechlm.serving.admission import Client, Requests, Work
from jax_speechlm.serving.forms import ApiError, Body, Upload, read_json
from jax_speechlm.serving.pages import add_files
from jax_speechlm.serving.service import Service
from jax_speechlm.serving.settings import ConversationLimits

ROUTE = "/v1/conversations"

_CHARACTERS = 500  # of a typed turn
_REASONS_KEPT = 1000  # of conversations that have ended
_JSON_BYTES = 64 * 1024
_FIELDS = {"text": {"type": "string", "maxLength": _CHARACTERS}, "file": {"type": "string", "format": "binary"}}
_SCHEMA = {"type": "object", "properties": _FIELDS}
_TURN = {
    "requestBody": {"content": {kind: {"schema": _SCHEMA} for kind in ("application/json", "multipart/form-data")}}
}


@runtime_checkable
class Conversation(Protocol):
    """The state of a dialogue in one conversation.

    Attributes:
      ended: why it has ended; "" while it goes on.
      is_understood: whether the last turn was one that is expected.
    """

    ended: str
    is_understood: bool

    def start(self) -> str:
        """Returns the first prompt."""

    def understand(self, said: str | Samples) -> tuple[str, Any]:
        """Returns the text of a turn and its meaning, in any thread and without changing the state.

        Raises:
          AudioError: speech cannot be taken as a turn.
          DataError: the recognizer does not fit the dialogue.
        """

    def reply(self, meaning: Any) -> str:
        """Takes a turn by its meaning; returns the reply."""

    def state(self) -> dict[str, Any]:
        """Returns the state as JSON has it, for display."""


@runtime_checkable
class Dialogue(Protocol):
    """What conversations follow.

    Attributes:
      name, language: of the dialogue.
      timeout: seconds after which nothing said counts as a silence.
      sample_rate: of spoken turns in Hz; None if turns are typed only.
    """

    name: str
    language: str
    timeout: float
    sample_rate: int | None

    def begin(self) -> Conversation:
        """Returns a conversation before its start."""

    def programs(self) -> Sequence[Callable[[], Any]]:
        """Returns calls that compile what spoken turns run."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What came of a turn.

    Attributes:
      id: of the conversation.
      heard: text of the turn; "" of a silence.
      say: the reply.
      understood, ended, state: as of the `Conversation`.
    """

    id: str
    heard: str
    say: str
    understood: bool
    ended: str
    state: dict[str, Any]


class _Open:
    """An open conversation; its turns are taken one after the other."""

    def __init__(self, conversation: Conversation, prompt: str):
        self.conversation, self.prompt, self.lock, self.last = conversation, prompt, asyncio.Lock(), 0.0

    def turn(self, key: str, heard: str, say: str) -> Turn:
        own = self.conversation
        return Turn(key, heard, say, own.is_understood, own.ended, own.state())


class Conversations(Service):
    """The open conversations of a dialogue. What is not understood, or is no audio, leaves their state as it was.

    Attributes:
      num_begun: number of conversations so far.
    """

    task, route, page = "converse", ROUTE, "/dialogue"

    def __init__(
        self,
        dialogue: Dialogue,
        requests: Requests,
        limits: ConversationLimits = ConversationLimits(),  # noqa: B008  frozen
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__(f"dialogue {dialogue.name}", requests, dialogue.sample_rate or 0)
        self.dialogue, self.num_begun, self._limits, self._clock = dialogue, 0, limits, clock
        self._open: dict[str, _Open] = {}
        self._reasons: collections.OrderedDict[str, str] = collections.OrderedDict()

    def close(self) -> None:
        self._open.clear()

    def programs(self) -> Sequence[Callable[[], Any]]:
        return self.dialogue.programs()

    def health(self) -> dict[str, dict[str, int | float]]:
        self._end_idle()
        return {"conversations": {"open": len(self._open), "begun": self.num_begun}}

    def begin(self, key: str | None = None) -> Turn:
        """Begins a conversation, by default with a random id. Raises `ApiError` if as many are open as may be."""
        self._end_idle()
        if len(self._open) >= (most := self._limits.max_conversations):
            raise ApiError(503, f"{most} conversations are open, as many as may be", code="queue_full", retry=10)
        key = uuid.uuid4().hex if key is None else key
        conversation = self.dialogue.begin()
        opened = self._open[key] = _Open(conversation, conversation.start())
        opened.last = self._clock()
        self.num_begun += 1
        turn = opened.turn(key, "", opened.prompt)
        self._end_if(key, turn.ended)
        return turn

    async def take(self, client: Client, key: str, said: str | Upload) -> Turn:
        """Takes a turn: a text, "" for a silence, or a recording.

        Raises:
          ApiError: the conversation is not open, or the turn cannot be understood at all; its state is then as before.
        """
        opened = self._opened(key)
        async with opened.lock:
            opened = self._opened(key)  # a turn before this one may have ended it
            opened.last = float("inf")  # not idle
            try:
                meaning = await self._understood(client, opened.conversation, said)
            finally:
                opened.last = self._clock()
            heard, meant = meaning
            turn = opened.turn(key, heard, opened.conversation.reply(meant))
        self._end_if(key, turn.ended)
        return turn

    def is_open(self, key: str) -> bool:
        """Returns whether a conversation goes on."""
        self._end_idle()
        return key in self._open

    def end(self, key: str) -> None:
        """Ends a conversation, if it is open."""
        self._end_if(key, "left")

    async def _understood(self, client: Client, conversation: Conversation, said: str | Upload) -> tuple[str, Any]:
        def understand(work: Work) -> tuple[str, Any]:
            turn = said if isinstance(said, str) else np.concatenate(list(self.blocks(said, work)))
            return conversation.understand(turn)

        try:
            return await self.run(client, understand, Work())
        except DataError as error:
            raise ApiError(500, str(error), code="dialogue_error") from error

    def _opened(self, key: str) -> _Open:
        self._end_idle()
        if (opened := self._open.get(key)) is None:
            if reason := self._reasons.get(key):
                message = f"the conversation has ended ({reason}): begin another with POST {ROUTE}"
                raise ApiError(410, message, code="conversation_ended")
            raise ApiError(404, f"there is no such conversation: begin one with POST {ROUTE}", code="not_found")
        return opened

    def _end_idle(self) -> None:
        limit = self._limits.idle_seconds
        for key in [key for key, opened in self._open.items() if self._clock() - opened.last > limit]:
            self._end_if(key, f"no turn for {limit:g} s")

    def _end_if(self, key: str, reason: str) -> None:
        if reason and self._open.pop(key, None) is not None:
            self._reasons[key] = reason
            while len(self._reasons) > _REASONS_KEPT:
                self._reasons.popitem(last=False)

    def add_routes(self, app: FastAPI) -> None:
        @app.post(ROUTE)
        async def begin(request: Request) -> Response:
            await Body(request).drain()
            listening = {"rate": self.dialogue.sample_rate, "level": turns.LEVEL, "pause": turns.PAUSE}
            about = {"dialogue": self.dialogue.name, "language": self.dialogue.language}
            spoken = {"microphone": listening | {"longest": turns.LONGEST} if self.dialogue.sample_rate else None}
            return JSONResponse(
                dataclasses.asdict(self.begin()) | about | spoken | {"timeout": self.dialogue.timeout}, 201
            )

        @app.post(ROUTE + "/{key}", openapi_extra=_TURN)
        async def take(request: Request, key: str) -> Response:
            body = Body(request)
            async with self.requests.admitted(body):
                said = await self._said(request)
                return JSONResponse(dataclasses.asdict(await self.take(body, key, said)))

        @app.delete(ROUTE + "/{key}")
        async def end(key: str) -> Response:
            self.end(key)
            return Response(status_code=204)

        add_files(app, "dialogue.js", pages={self.page: "dialogue.html"})

    async def _said(self, request: Request) -> str | Upload:
        """Reads a turn: a form with an audio file, or JSON with a text."""
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            if self.dialogue.sample_rate is None:
                await Body(request).drain()
                raise ApiError.invalid("file", "turns are typed here: no recognizer is served", "no_recognizer")
            return await self.upload_of(request)
        fields = await read_json(request, _JSON_BYTES, f"a text has at most {_CHARACTERS} characters")
        return checked_text(fields.get("text"))


def checked_text(text: Any) -> str:
    """Returns a typed turn. Raises `ApiError` if it is none."""
    if not isinstance(text, str):
        raise ApiError.invalid("text", 'a turn is {"text": ...}, "" for a silence, or a form with an audio file')
    if len(text) > _CHARACTERS:
        message = f"the text has {len(text)} characters, and the limit is {_CHARACTERS}"
        raise ApiError.invalid("text", message, "string_above_max_length")
    return text.encode(errors="replace").decode()
