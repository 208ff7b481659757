"""Wyoming, the protocol of Home Assistant's voice pipelines, over the same services as the HTTP endpoint.

A connection carries events: a line of JSON, then bytes of JSON and of audio whose lengths the line states. The package
`wyoming` defines the events; reading them is done here, because its reader takes any length that a client states.
"""

import asyncio
import contextlib
import io
import json
import logging
import socket
import uuid
import wave
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, TypeVar

from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioFormat, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_write_event
from wyoming.handle import Handled, NotHandled
from wyoming.info import (
    AsrModel,
    AsrProgram,
    Attribution,
    Describe,
    HandleModel,
    HandleProgram,
    Info,
    TtsProgram,
    TtsVoice,
    TtsVoiceSpeaker,
)
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize

from jax_speechlm.serving.admission import Requests
from jax_speechlm.serving.conversations import Conversations, checked_text
from jax_speechlm.serving.encoders import PCM_RATE
from jax_speechlm.serving.forms import ApiError, Upload, internal_error
from jax_speechlm.serving.service import Service
from jax_speechlm.serving.speech import Speaking, Synthesis, Wish
from jax_speechlm.serving.transcription import Transcription

E = TypeVar("E", bound=Eventable)

log = logging.getLogger(__name__)

_EVENT_BYTES = 2**20  # of an event's JSON, and of its audio
_IDLE_SECONDS = 60.0  # that a client may be silent, or not read a response
_REFUSED_SECONDS = 5.0  # that a client may go on sending after an error
_RATES, _WIDTHS, _CHANNELS = range(4_000, 192_001), (1, 2, 3, 4), range(1, 9)
_NAME_CHARACTERS = 200
_AUTHOR = Attribution(name="jax_speechlm", url="")


class Wyoming:
    """Answers the protocol's requests for transcripts, speech, and replies of a dialogue."""

    def __init__(self, services: Sequence[Service], requests: Requests, languages: Sequence[str]):
        """Serves the runs of an endpoint.

        Args:
          languages: of the runs, such as "en": clients offer a run for these languages only.
        """
        self.requests, self.languages = requests, list(languages)
        self.recognizer = next((service for service in services if isinstance(service, Transcription)), None)
        self.voice = next((service for service in services if isinstance(service, Synthesis)), None)
        self.conversations = next((service for service in services if isinstance(service, Conversations)), None)
        self._connections = 0

    async def run(self, listener: socket.socket) -> None:
        """Answers connections until cancelled."""
        server = await asyncio.start_server(self._connected, sock=listener, limit=_EVENT_BYTES)
        try:
            await server.serve_forever()
        finally:
            server.close()

    def info(self) -> Info:
        """Returns what clients ask for first: the runs that are served."""
        common = {"attribution": _AUTHOR, "installed": True, "version": version("jax_speechlm")}
        asr, tts, handle = [], [], []
        if (recognizer := self.recognizer) is not None:
            model = AsrModel(name=recognizer.name, description=None, languages=self.languages, **common)
            program = {"name": "jax_speechlm", "description": f"{recognizer.task}s", "models": [model]}
            asr.append(AsrProgram(**program, supports_transcript_streaming=True, **common))
        if (voice := self.voice) is not None:
            speakers = [TtsVoiceSpeaker(name) for name in voice.voice.speakers] or None
            voices = TtsVoice(name=voice.name, description=None, languages=self.languages, speakers=speakers, **common)
            tts.append(TtsProgram(name="jax_speechlm", description=f"{voice.task}s", voices=[voices], **common))
        if self.conversations is not None:
            dialogue = self.conversations.dialogue
            model = HandleModel(name=dialogue.name, description=None, languages=[dialogue.language], **common)
            program = {"name": "jax_speechlm", "description": "holds a dialogue", "models": [model]}
            handle.append(HandleProgram(**program, **common))
        return Info(asr=asr, tts=tts, handle=handle)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        connection = _Connection(self, reader, writer)
        try:
            if self._connections > self.requests.limits.max_requests:
                raise ApiError(503, f"{self.requests.limits.max_requests} clients are connected", code="queue_full")
            while (event := await connection.read()) is not None:
                await connection.answer(event)
        except ApiError as error:
            await connection.refuse(error)
        except TimeoutError:  # `close` would wait for a client that reads nothing
            writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception:
            log.exception("a connection failed")
            await connection.refuse(internal_error())
        finally:
            self._connections -= 1
            writer.close()


class _Connection:
    """A client and the audio that it has sent so far. An error of a request ends its connection."""

    def __init__(self, wyoming: Wyoming, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._wyoming, self._reader, self._writer = wyoming, reader, writer
        self._format: tuple[int, int, int] | None = None
        self._audio = bytearray()
        self._id = uuid.uuid4().hex

    async def is_disconnected(self) -> bool:
        return self._reader.at_eof()

    async def drain(self) -> None:
        """Does nothing: the audio of a request is read before it is admitted."""

    async def read(self) -> Event | None:
        """Reads an event; None at the end of the connection.

        Raises:
          ApiError: it is no event of the protocol, or too long.
          TimeoutError: the client is silent.
        """
        async with asyncio.timeout(_IDLE_SECONDS):
            try:
                line = await self._reader.readline()
            except ValueError:
                raise _invalid(f"a line is longer than {_EVENT_BYTES} bytes") from None
            if not line:
                return None
            header = _json_object(line)
            lengths = [header.get(name) or 0 for name in ("data_length", "payload_length")]
            if not all(type(length) is int and 0 <= length <= _EVENT_BYTES for length in lengths):
                raise _invalid(f"lengths of an event must be integers from 0 to {_EVENT_BYTES}; got {line[:200]!r}")
            data, payload = [await self._reader.readexactly(length) for length in lengths]
        fields = header.get("data") or {}
        if not isinstance(fields, dict) or not isinstance(header.get("type"), str):
            raise _invalid(f"an event has a type and an object of data; got {line[:200]!r}")
        return Event(header["type"], fields | (_json_object(data) if data else {}), payload)

    async def write(self, event: Eventable) -> None:
        """Sends an event. Raises `TimeoutError` if the client does not read."""
        async with asyncio.timeout(_IDLE_SECONDS):
            await async_write_event(event.event(), self._writer)

    async def refuse(self, error: ApiError) -> None:
        """Sends an error, and drops what the client still sends: closing on unread bytes would reset the connection.

        A reset may take the error with it before the client has read it.
        """
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self.write(Error(error.message, error.code))
            self._writer.write_eof()
            async with asyncio.timeout(_REFUSED_SECONDS):
                while await self._reader.read(_EVENT_BYTES):
                    pass

    async def answer(self, event: Event) -> None:
        """Answers an event; unknown ones are ignored, as the protocol has it. Raises `ApiError`."""
        if Describe.is_type(event.type):
            await self.write(self._wyoming.info())
        elif Ping.is_type(event.type):
            await self.write(Pong(_parse(Ping, event).text))
        elif Transcribe.is_type(event.type):
            self._named(_parse(Transcribe, event).name, self._wyoming.recognizer)
        elif AudioStart.is_type(event.type):
            self._start(_parse(AudioStart, event))
        elif AudioChunk.is_type(event.type):
            self._append(_parse(AudioChunk, event))
        elif AudioStop.is_type(event.type):
            await self._transcribe()
        elif Synthesize.is_type(event.type):
            await self._synthesize(_parse(Synthesize, event))
        elif Transcript.is_type(event.type):
            await self._converse(_parse(Transcript, event))

    def _named(self, name: str | None, service: Service | None) -> Service:
        """Returns the service of a request that may name it."""
        if service is None:
            raise ApiError(404, "no run that does this is served here", code="wrong_task")
        if name not in (None, service.name):
            raise ApiError(404, f"the only model here is {service.name}", code="model_not_found")
        return service

    def _start(self, audio: AudioFormat) -> None:
        values = audio.rate, audio.width, audio.channels
        for name, value, allowed in zip(
            ("rate", "width", "channels"), values, (_RATES, _WIDTHS, _CHANNELS), strict=True
        ):
            if type(value) is not int or value not in allowed:
                raise _invalid(f"{name} must be an integer from {allowed[0]} to {allowed[-1]}; got {value!r:.80}")
        self._format = values
        self._audio.clear()

    def _append(self, chunk: AudioChunk) -> None:
        if self._format is None:
            raise _invalid("audio-chunk before audio-start")
        if (values := (chunk.rate, chunk.width, chunk.channels)) != self._format:
            raise _invalid(
                f"the audio began with (rate, width, channels) {self._format} and goes on with {values}: send "
                "audio-stop and audio-start where the format changes"
            )
        self._audio += chunk.audio
        if len(self._audio) > (most := self._wyoming.requests.limits.max_megabytes) * 2**20:
            raise ApiError(413, f"the audio is larger than {most:g} MiB", code="file_too_large")

    async def _transcribe(self) -> None:
        """Transcribes the audio since audio-start."""
        recognizer = self._named(None, self._wyoming.recognizer)
        if self._format is None:
            raise _invalid("audio-stop before audio-start")
        rate, width, channels = self._format
        content = io.BytesIO()
        with wave.open(content, "wb") as file:
            file.setparams((channels, width, rate, 0, "NONE", ""))
            file.writeframes(self._audio[: len(self._audio) // (width * channels) * width * channels])
        self._format = None
        self._audio.clear()
        async with self._wyoming.requests.admitted(self):
            await self.write(TranscriptStart())
            upload = Upload(content.getvalue(), "audio.wav", {})
            async with contextlib.aclosing(recognizer.events(self, upload)) as events:
                async for event in events:
                    if "delta" in event:
                        await self.write(TranscriptChunk(event["delta"]))
                    else:
                        await self.write(Transcript(event["text"]))
            await self.write(TranscriptStop())

    async def _converse(self, said: Transcript) -> None:
        """Takes a turn of the conversation that the context names, by default of the connection's own.

        One that is not open begins with this turn; an empty text, a silence, then has the first prompt for a reply.
        """
        if (conversations := self._wyoming.conversations) is None:
            raise ApiError(404, "no dialogue is served here", code="wrong_task")
        context = said.context or {}
        if not isinstance(context, dict):
            raise _invalid(f"context must be an object; got {context!r:.80}")
        name, text = context.get("conversation_id", self._id), checked_text(said.text)
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS:
            raise _invalid(f"conversation_id must be a text of 1 to {_NAME_CHARACTERS} characters; got {name!r:.80}")
        key = f"wyoming {name}"  # apart from those of pages
        async with self._wyoming.requests.admitted(self):
            turn = None if conversations.is_open(key) else conversations.begin(key)
            if turn is None or (text.strip() and not turn.ended):
                turn = await conversations.take(self, key, text)
        kind = Handled if turn.understood else NotHandled
        await self.write(kind(turn.say, {"conversation_id": name, "ended": turn.ended, **turn.state}))

    async def _synthesize(self, request: Synthesize) -> None:
        """Sends speech as it is computed."""
        asked = request.voice
        voice = self._named(asked and asked.name, self._wyoming.voice)
        fields: dict[str, Any] = {"input": request.text, "voice": asked and asked.speaker, "response_format": "pcm"}
        if fields["voice"] is None and voice.voice.speakers:
            fields["voice"] = voice.voice.speakers[0]
        wish = Wish.parse(fields, voice.voice.speakers, self._wyoming.requests.limits.max_characters)
        pcm = {"rate": PCM_RATE, "width": 2, "channels": 1}
        async with self._wyoming.requests.admitted(self):
            async with contextlib.aclosing(voice.parts(self, Speaking(wish))) as parts:
                begun = False
                async for part in parts:
                    if not begun:  # a text that cannot be spoken has an error alone
                        await self.write(AudioStart(**pcm))
                    begun = True
                    await self.write(AudioChunk(**pcm, audio=part))
            await self.write(AudioStop())


def _parse(kind: type[E], event: Event) -> E:
    try:
        return kind.from_event(event)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _invalid(f"{event.type} lacks a field or has one of a wrong type ({error!r:.200})") from None


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise _invalid(f"an event begins with a JSON object; got {line[:200]!r}")
    return parsed


def _invalid(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_event")
