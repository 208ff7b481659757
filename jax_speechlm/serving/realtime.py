"""OpenAI's Realtime transcription on a WebSocket: audio is appended, and the text of items is sent while it comes.

With turn detection (the default) an item is a segment between pauses. Without it (`turn_detection: null`), it is what
the client commits. A delta has words that do not change any more; the completed item has all of them.
"""

import base64
import binascii
import dataclasses
import io
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import soundfile

from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.serving.forms import ApiError, internal_error
from jax_speechlm.serving.live import LiveAudio, Progress, Socket

_PCM_RATES = range(8_000, 48_001)
_G711 = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}
_G711_RATE = 8_000
_PAUSE_MS, _PAUSES_MS = 500, (40, 10_000)
_TRANSCRIPTION = "conversation.item.input_audio_transcription"
Event = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a session that have an effect here.

    Attributes:
      format: of the audio, as the protocol has it.
      pause_ms: silence that ends an item; None where the client commits.
      language: returned as it was sent.
    """

    format: Event = dataclasses.field(default_factory=lambda: {"type": "audio/pcm", "rate": 24_000})
    pause_ms: int | None = _PAUSE_MS
    language: str | None = None

    @property
    def rate(self) -> int:
        return self.format.get("rate", _G711_RATE)

    @property
    def decode(self) -> Callable[[bytes], np.ndarray] | None:
        """Converts bytes to samples; None for samples of 16 bits."""
        subtype = _G711.get(self.format["type"])
        if subtype is None:
            return None
        options = {"format": "RAW", "subtype": subtype, "samplerate": _G711_RATE, "channels": 1, "dtype": "int16"}
        return lambda content: soundfile.read(io.BytesIO(content), **options)[0]

    @property
    def endpointing(self) -> Endpointing:
        return Endpointing(silence_seconds=self.pause_ms and self.pause_ms / 1000)

    def updated(self, session: Any) -> "Settings":
        """Returns the settings after `session.update`. Raises `ApiError` for what is not supported."""
        session = _object(session, "session")
        if (kind := session.get("type", "transcription")) != "transcription":
            raise ApiError.invalid("session.type", f"sessions here are of type transcription, not {kind!r:.80}")
        at = "session.audio.input"
        audio = _object(_object(session.get("audio"), "session.audio").get("input"), at)
        if audio.get("noise_reduction") is not None:
            raise ApiError.invalid(f"{at}.noise_reduction", "there is no noise reduction here: send null")
        settings = self
        if audio.get("format") is not None:
            settings = dataclasses.replace(settings, format=_format(audio["format"], f"{at}.format"))
        if "turn_detection" in audio:
            pause = _pause(audio["turn_detection"], f"{at}.turn_detection")
            settings = dataclasses.replace(settings, pause_ms=pause)
        if audio.get("transcription") is not None:
            language = _object(audio["transcription"], f"{at}.transcription").get("language")
            if language is not None and not isinstance(language, str):
                raise ApiError.invalid(f"{at}.transcription.language", "language must be a string")
            settings = dataclasses.replace(settings, language=language)
        return settings

    def to_dict(self, model: str) -> Event:
        """Returns the session as the protocol has it."""
        detection = None if self.pause_ms is None else {"type": "server_vad", "silence_duration_ms": self.pause_ms}
        transcription = {"model": model} | ({"language": self.language} if self.language else {})
        audio = {"format": self.format, "transcription": transcription, "turn_detection": detection}
        kinds = {"type": "transcription", "object": "realtime.transcription_session"}
        return kinds | {"audio": {"input": audio | {"noise_reduction": None}}}


class Items:
    """The events of a stream's items, from what is known of the stream."""

    def __init__(self, by_pauses: bool, previous: str | None):
        """Starts before the first item of a stream.

        Args:
          by_pauses: whether an item is a segment, else the whole stream.
          previous: id of the item before.
        """
        self.previous = previous
        self._by_pauses, self._id = by_pauses, _id("item")
        self._sent, self._num_ended, self._has_started = "", 0, False

    def progress(self, progress: Progress) -> Iterator[Event]:
        """Yields the events of new words."""
        if self._by_pauses:
            for segment in progress.segments[self._num_ended :]:
                yield from self._start(segment.start)
                yield {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": _ms(segment.end)} | self._named()
                yield from self._completed([segment], segment.end - segment.start)
            if progress.partial.words:
                yield from self._start(progress.partial.words[0].start)
            yield from self._delta(progress.partial.stable)
        else:
            texts = [segment.text for segment in progress.segments] + [progress.partial.stable]
            yield from self._delta(" ".join(filter(None, texts)))
        self._num_ended = len(progress.segments)

    def committed(self, progress: Progress) -> Iterator[Event]:
        """Yields the events of a stream that has ended; at least one item is completed."""
        if self._by_pauses and len(progress.segments) > self._num_ended:
            yield from self.progress(progress)
        else:
            yield from self._completed([] if self._by_pauses else progress.segments, progress.seconds)

    def _start(self, seconds: float) -> Iterator[Event]:
        if not self._has_started:
            self._has_started = True
            yield {"type": "input_audio_buffer.speech_started", "audio_start_ms": _ms(seconds)} | self._named()

    def _delta(self, text: str) -> Iterator[Event]:
        if text.startswith(self._sent) and text != self._sent:
            yield (
                self._named()
                | {"type": f"{_TRANSCRIPTION}.delta", "content_index": 0}
                | {"delta": text[len(self._sent) :]}
            )
            self._sent = text

    def _completed(self, segments: "list[Segment] | tuple[Segment, ...]", seconds: float) -> Iterator[Event]:
        text = " ".join(segment.text for segment in segments)
        yield {"type": "input_audio_buffer.committed", "previous_item_id": self.previous} | self._named()
        part = {"type": "input_audio", "transcript": None}
        item = {"id": self._id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user"}
        added = {"previous_item_id": self.previous, "item": item | {"content": [part]}}
        yield {"type": "conversation.item.added"} | added
        yield {"type": "conversation.item.done"} | added
        yield from self._delta(text)
        usage = {"type": "duration", "seconds": round(seconds, 3)}
        done = {"content_index": 0, "transcript": text, "usage": usage}
        yield {"type": f"{_TRANSCRIPTION}.completed"} | self._named() | done
        self.previous, self._id, self._sent, self._has_started = self._id, _id("item"), "", False

    def _named(self) -> Event:
        return {"item_id": self._id}


async def serve_realtime(socket: Socket, audio: LiveAudio, model: str) -> None:
    """Answers a client until it closes. An invalid event has an error event and no other effect.

    Raises:
      ApiError: a limit is exceeded; the connection ends.
    """
    await _Session(socket, audio, model).run()


class _Session:
    """A connection's settings and current stream."""

    def __init__(self, socket: Socket, audio: LiveAudio, model: str):
        self._socket, self._audio, self._model = socket, audio, model
        self._settings, self._items, self._previous = Settings(), None, None
        self._id = _id("sess")

    async def run(self) -> None:
        await self._send(self._session("session.created"))
        while (message := await self._socket.receive()) is not None:
            event: Event = {}
            try:
                event = _parsed(message)
                await self._answer(event)
            except ApiError as error:
                await self._send(error_event(error, event.get("event_id")))
                if error.status not in (400, 404):
                    raise

    async def _answer(self, event: Event) -> None:
        kind = event.get("type")
        if kind in ("session.update", "transcription_session.update"):
            settings = self._settings.updated(event.get("session"))
            if self._audio.is_open and settings.format != self._settings.format:
                message = "the format cannot change within an item: commit or clear the audio first"
                raise ApiError.invalid("session.audio.input.format", message)
            self._settings = settings
            await self._send(self._session("session.updated"))
        elif kind == "input_audio_buffer.append":
            await self._append(_bytes(event))
        elif kind == "input_audio_buffer.commit":
            await self._commit()
        elif kind == "input_audio_buffer.clear":
            await self._audio.clear()
            self._items = None
            await self._send({"type": "input_audio_buffer.cleared"})
        else:
            known = "session.update, input_audio_buffer.append, .commit and .clear"
            raise ApiError.invalid("type", f"there are the events {known}; got {kind!r:.80}", "unknown_event")

    async def _append(self, content: bytes) -> None:
        settings = self._settings
        if self._items is None:
            self._items = Items(settings.pause_ms is not None, self._previous)
        pieces = self._audio.add(content, settings.rate, settings.endpointing, settings.decode)
        async for progress in pieces:
            for event in self._items.progress(progress):
                await self._send(event)
        self._previous = self._items.previous

    async def _commit(self) -> None:
        if not self._audio.is_open:
            message = "nothing was appended since the last commit"
            raise ApiError(400, message, code="input_audio_buffer_commit_empty")
        items, self._items = self._items, None
        for event in items.committed(await self._audio.finalize()):
            await self._send(event)
        self._previous = items.previous

    def _session(self, kind: str) -> Event:
        return {"type": kind, "session": {"id": self._id} | self._settings.to_dict(self._model)}

    async def _send(self, event: Event) -> None:
        await self._socket.send(json.dumps({"event_id": _id("event")} | event, ensure_ascii=False))


def error_event(error: ApiError, event_id: Any = None) -> Event:
    """Returns the event of an error; `event_id` is that of the client's event."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    fields = {"type": kind, "code": error.code, "message": error.message, "param": error.param}
    return {"type": "error", "error": fields | {"event_id": event_id if isinstance(event_id, str) else None}}


def failure_event() -> Event:
    """Returns the event of an unexpected exception."""
    return error_event(internal_error())


def _parsed(message: str | bytes) -> Event:
    try:
        event = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise ApiError(400, "an event is a text message with a JSON object", code="invalid_json")
    return event


def _bytes(event: Event) -> bytes:
    try:
        return base64.b64decode(event["audio"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise ApiError.invalid("audio", "audio must be a string of base64", "invalid_audio") from None


def _object(value: Any, name: str) -> Event:
    """Returns an object that may be left out."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError.invalid(name, f"{name} must be an object")
    return value


def _format(value: Any, name: str) -> Event:
    kind = _object(value, name).get("type")
    if kind in _G711:
        return {"type": kind}
    rate = value.get("rate", 24_000)
    if kind != "audio/pcm" or isinstance(rate, bool) or rate not in _PCM_RATES:
        formats = f"audio/pcm with a rate from {_PCM_RATES[0]} to {_PCM_RATES[-1]}, audio/pcmu or audio/pcma"
        raise ApiError.invalid(name, f"format must be {formats}; got {json.dumps(value)[:80]}")
    return {"type": kind, "rate": int(rate)}


def _pause(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if (kind := _object(value, name).get("type")) != "server_vad":
        raise ApiError.invalid(name, f"turn_detection must be of type server_vad, or null; got {kind!r:.80}")
    pause = value.get("silence_duration_ms")
    pause = _PAUSE_MS if pause is None else pause
    least, most = _PAUSES_MS
    if isinstance(pause, bool) or not isinstance(pause, int) or not least <= pause <= most:
        message = f"silence_duration_ms must be an integer from {least} to {most}; got {pause!r:.80}"
        raise ApiError.invalid(f"{name}.silence_duration_ms", message)
    return pause


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"
