"""Synthesis: OpenAI's `/v1/audio/speech` over one trained run, sent as it is computed."""

import asyncio
import base64
import contextlib
import dataclasses
import math
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response
from jaxtyping import Float32

from data_pipelines.core.errors import DataError
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.serving.admission import Client, GivenUpError, Requests, Work, timed_out
from jax_speechlm.serving.encoders import ENCODERS
from jax_speechlm.serving.forms import ApiError, Body, read_json
from jax_speechlm.serving.service import RunService, chain
from jax_speechlm.serving.streams import AudioStream, EventStream

ROUTE = "/v1/audio/speech"

_OPENAI_VOICES = (
    *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer"),
    "verse",
)
_DEFAULT_VOICE = "default"
_SPEEDS = 0.25, 4.0
_PARTS_AHEAD = 4  # parts of audio that are computed before the client reads them
_FIRST_SAMPLES = 4000  # of a text, that are encoded and sent on their own
_NAMES_SHOWN = 20
_OTHER_BYTES, _CHARACTER_BYTES = 64 * 1024, 12  # of a request: in JSON a character has at most \ud83d\ude00
_FIELDS = {
    "input": {"type": "string"},
    "model": {"type": "string"},
    "voice": {"type": "string"},
    "response_format": {"type": "string", "enum": list(ENCODERS)},
    "stream_format": {"type": "string", "enum": ["audio", "sse"]},
    "speed": {"type": "number", "minimum": _SPEEDS[0], "maximum": _SPEEDS[1]},
    "instructions": {"type": "string"},
}
_SCHEMA = {"type": "object", "required": ["input"], "properties": _FIELDS}
_JSON = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}


@runtime_checkable
class Voice(Protocol):
    """What is served: the part of `inference.synthesize.Synthesizer` that this module uses.

    Attributes:
      speakers: names of the speakers; empty if there is one voice without a name.
      sample_rate: of the samples, in Hz.
    """

    experiment: Experiment
    params: Any
    speakers: Sequence[str]
    sample_rate: int

    def programs(self) -> Sequence[Callable[[], Any]]:
        """Returns calls that compile what `stream` runs."""

    def stream(
        self, text: str, speaker: str | None = None, speed: float = 1.0
    ) -> Generator[Float32[np.ndarray, " samples"], None, None]:
        """Yields samples in [-1, 1]. Raises `DataError` for a text that cannot be spoken, before any samples."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """The speech that a request asks for, by the fields of OpenAI's schema."""

    text: str
    speaker: str | None
    format: str
    stream_format: str
    speed: float

    @classmethod
    def parse(cls, body: dict[str, Any], speakers: Sequence[str], max_characters: int) -> "Wish":
        """Reads a request's fields; null is the default of each. Raises `ApiError` if one is unsupported."""
        fields = {name: value for name, value in body.items() if value is not None}
        if unknown := fields.keys() - _FIELDS.keys():
            name = min(unknown)[:80]
            raise ApiError.invalid(name, f"{name!r} is unknown; there are {', '.join(_FIELDS)}", "unknown_parameter")
        if fields.get("instructions"):
            raise ApiError.invalid(
                "instructions", "this model takes no instructions: leave them out", "unsupported_parameter"
            )
        if not isinstance(fields.get("model", ""), str):
            raise ApiError.invalid("model", "model must be a string")
        return cls(
            _text(fields, max_characters),
            _speaker(fields.get("voice"), speakers),
            _one(fields, "response_format", tuple(ENCODERS)),
            _one(fields, "stream_format", ("audio", "sse")),
            _speed(fields),
        )


def voices_of(speakers: Sequence[str]) -> list[str]:
    """Returns the names of voices that a request may give besides OpenAI's own."""
    return list(speakers) or [_DEFAULT_VOICE]


class Speaking(Work):
    """The work of one request, and the samples that it has made so far."""

    def __init__(self, wish: Wish):
        super().__init__()
        self.wish, self.num_samples = wish, 0


class Synthesis(RunService):
    """A voice and the thread that owns it."""

    task, route, picture_route = "synthesize", ROUTE, "/page/speech/log-mel"

    def __init__(self, voice: Voice, name: str, requests: Requests):
        super().__init__(name, requests, voice.experiment, voice.params)
        self.voice = voice
        self.num_parts, self.num_samples = 0, 0
        self._model = ThreadPoolExecutor(1, "voice")

    def close(self) -> None:
        self._model.shutdown(wait=False, cancel_futures=True)

    def programs(self) -> Sequence[Callable[[], Any]]:
        return self.voice.programs()

    def health(self) -> dict[str, dict[str, int | float]]:
        seconds = round(self.num_samples / self.voice.sample_rate, 3)
        return {"spoken": {"parts": self.num_parts, "seconds": seconds}}

    def details(self) -> dict[str, Any]:
        limits = {"max_characters": self.limits.max_characters, "speed": _SPEEDS}
        return super().details() | {"voices": voices_of(self.voice.speakers), **limits}

    def card(self) -> dict[str, Any]:
        return super().card() | {
            "voices": max(len(self.voice.speakers), 1),
            "sample rate": f"{self.voice.sample_rate} Hz",
        }

    def add_routes(self, app: FastAPI) -> None:
        @app.post(self.route, openapi_extra=_JSON)
        async def speech(request: Request) -> Response:
            spoken = self._spoken(request)
            work = await anext(spoken)
            first = await anext(spoken)  # an error until here has a status
            parts = chain(first, spoken)
            if work.wish.stream_format == "sse":
                return EventStream(self._events(parts, work), end=None)
            return AudioStream(parts, ENCODERS[work.wish.format].media_type)

        self.add_picture_route(app)

    async def _spoken(self, request: Request) -> AsyncGenerator[Any, None]:
        """Yields the work of a request, and then the parts of its audio, all while it counts as in progress."""
        client = Body(request)
        async with self.requests.admitted(client):
            max_bytes = _OTHER_BYTES + _CHARACTER_BYTES * self.limits.max_characters
            remedy = f"send at most {self.limits.max_characters} characters of input at a time"
            body = await read_json(request, max_bytes, remedy)
            work = Speaking(Wish.parse(body, self.voice.speakers, self.limits.max_characters))
            yield work
            async with contextlib.aclosing(self.parts(client, work)) as parts:
                async for part in parts:
                    yield part

    async def parts(self, client: Client, work: Speaking) -> AsyncGenerator[bytes, None]:
        """Yields the parts of an audio file as they are computed; the time that the client takes is not counted."""
        loop, left = asyncio.get_running_loop(), self.limits.timeout
        ready: asyncio.Queue[bytes] = asyncio.Queue(_PARTS_AHEAD)

        def speak(work: Speaking) -> None:
            self._speak(work, lambda part: work.wait(lambda: [asyncio.run_coroutine_threadsafe(ready.put(part), loop)]))

        working = asyncio.ensure_future(self._run(client, speak, work))
        try:
            while not (working.done() and ready.empty()):
                if not ready.empty():
                    yield ready.get_nowait()
                    continue
                began, getting = loop.time(), asyncio.ensure_future(ready.get())
                try:
                    await asyncio.wait({getting, working}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    getting.cancel()
                left -= loop.time() - began
                if getting.done() and not getting.cancelled():
                    yield getting.result()
                elif left <= 0 and not working.done():
                    raise timed_out(self.limits.timeout)
            await working
        finally:
            working.cancel()

    async def _run(self, client: Client, function: Any, work: Speaking) -> None:
        try:
            await self.run(client, function, work, math.inf)
        except DataError as error:
            raise ApiError.invalid("input", str(error), "invalid_input") from error

    def _speak(self, work: Speaking, send: Callable[[bytes], Any]) -> None:
        """Synthesises and encodes a text; the model's thread takes turns between requests, part by part."""
        wish = work.wish
        encoder = ENCODERS[wish.format](self.voice.sample_rate)
        pieces = self.voice.stream(wish.text, wish.speaker, wish.speed)
        try:
            while (samples := work.wait(lambda: [self._submit(pieces)])[0]) is not None:
                # The client need not wait until all of the first part is encoded.
                beginning = [_FIRST_SAMPLES] if not work.num_samples else []
                work.num_samples += len(samples)
                self.num_parts, self.num_samples = self.num_parts + 1, self.num_samples + len(samples)
                for some in np.split(samples, beginning):
                    if part := encoder.encode(some):
                        send(part)
        finally:
            pieces.close()
        if not work.num_samples:
            raise ApiError.invalid("input", "input has nothing that can be spoken", "invalid_input")
        if part := encoder.finish():
            send(part)

    def _submit(self, pieces: Generator[Any, None, None]) -> Future:
        try:
            return self._model.submit(next, pieces, None)
        except RuntimeError as error:  # the thread is shut down
            raise GivenUpError from error

    async def _events(self, parts: AsyncGenerator[bytes, None], work: Speaking) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the events of OpenAI's schema; tokens are characters of the text and frames of the spectrogram."""
        async with contextlib.aclosing(parts):
            async for part in parts:
                yield {"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()}
        characters = len(work.wish.text)
        frames = work.num_samples // self.experiment.frontend.mel.frame_samples
        usage = {"input_tokens": characters, "output_tokens": frames, "total_tokens": characters + frames}
        yield {"type": "speech.audio.done", "usage": usage}


def _text(fields: dict[str, Any], max_characters: int) -> str:
    if "input" not in fields:
        raise ApiError.invalid("input", "input is missing: the text to speak", "missing_required_parameter")
    text = fields["input"]
    if not isinstance(text, str):
        raise ApiError.invalid("input", f"input must be a string, not {_json_type(text)}")
    if not text.strip():
        raise ApiError.invalid("input", "input is empty: give a text to speak", "empty_string")
    if len(text) > max_characters:
        remedy = "send it in several requests, or start the service with a larger --max-characters"
        message = f"input has {len(text)} characters, and the limit is {max_characters}: {remedy}"
        raise ApiError.invalid("input", message, "string_above_max_length")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError.invalid("input", "input has half of a surrogate pair, which is no character") from None
    return text


def _speaker(voice: Any, speakers: Sequence[str]) -> str | None:
    """Returns the speaker of a voice, given by name or as OpenAI's `{"id": name}`; None for the only one."""
    name = voice.get("id") if isinstance(voice, dict) else voice
    if name is not None and not isinstance(name, str):
        raise ApiError.invalid("voice", f"voice must be a name, not {_json_type(name)}")
    if name in speakers:
        return name
    if len(speakers) <= 1 and name in (None, _DEFAULT_VOICE, *_OPENAI_VOICES):
        return speakers[0] if speakers else None
    voices = voices_of(speakers)
    shown = ", ".join(voices[:_NAMES_SHOWN]) + (
        f" and {len(voices) - _NAMES_SHOWN} more" * (len(voices) > _NAMES_SHOWN)
    )
    if name is None:
        raise ApiError.invalid("voice", f"voice is missing: there are {shown}", "missing_required_parameter")
    raise ApiError.invalid("voice", f"voice {name[:80]!r} is unknown: there are {shown}", "voice_not_found")


def _one(fields: dict[str, Any], name: str, allowed: Sequence[str]) -> str:
    value = fields.get(name, allowed[0])
    if value not in allowed:
        shown = repr(value[:80]) if isinstance(value, str) else _json_type(value)
        raise ApiError.invalid(name, f"{name} must be one of {', '.join(allowed)}; got {shown}")
    return value


def _speed(fields: dict[str, Any]) -> float:
    value, (least, most) = fields.get("speed", 1.0), _SPEEDS
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        shown = f"{value:g}" if type(value) is float else _json_type(value) if type(value) is not int else str(value)
        raise ApiError.invalid("speed", f"speed must be a number from {least:g} to {most:g}; got {shown[:80]}")
    return float(value)


def _json_type(value: Any) -> str:
    """Returns the name of a value's type in JSON."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
