"""Live streams: one thread that computes the audio of all open streams in common steps, and WebSockets with limits."""

import asyncio
import collections
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Annotated, Any, NamedTuple

import numpy as np
import pydantic
import soxr
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from jax_speechlm.core.config import Config
from jax_speechlm.inference.asr.hypothesis import Endpointing, Partial
from jax_speechlm.inference.asr.stream import Stream, StreamBatch
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.serving.forms import ApiError

_FULL_SCALE = 32_768
_PIECE_SECONDS = 1.0  # of a message that are computed at a time, so that a long one does not delay other streams
_LAST_SECONDS = 5.0  # `close` waits so long for the step in progress
POLICY, INTERNAL, TRY_AGAIN = 1008, 1011, 1013
"""Codes with which a WebSocket is closed: a limit is exceeded, an unexpected error, no room."""


class StreamLimits(Config):
    """Limits of live streams.

    Attributes:
      max_streams: streams at a time; the model computes a step for all of them, open or not.
      stream_minutes: audio of one connection.
      silent_seconds: that a client may send nothing, or not read a message, until it is disconnected.
    """

    max_streams: Annotated[int, pydantic.Field(ge=1)] = 8
    stream_minutes: Annotated[float, pydantic.Field(gt=0)] = 120.0
    silent_seconds: Annotated[float, pydantic.Field(gt=0)] = 60.0


class Progress(NamedTuple):
    """The transcript of a stream so far: its ended segments and the current one."""

    segments: tuple[Segment, ...]
    partial: Partial

    @property
    def seconds(self) -> float:
        """Audio that has been processed."""
        return self.partial.seconds


class LiveStreams:
    """The open streams and the thread that owns their batch.

    Attributes:
      steps, pieces: calls of the model so far, and pieces of audio that they processed.
    """

    def __init__(self, batch: StreamBatch):
        """Starts the thread. Other threads must not use the batch, except by `compile` before the first stream."""
        self.sample_rate = batch.sample_rate
        self._batch = batch
        self._jobs: collections.deque[tuple[Callable[[], Any] | tuple[Stream, Any], Future]] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self.steps = self.pieces = 0
        self._thread = threading.Thread(target=self._work, name="streams", daemon=True)
        self._thread.start()

    async def open(self, endpointing: Endpointing) -> Stream:
        """Opens a stream. Raises `ApiError` if there is no room for another."""
        try:
            return await self._run(lambda: self._batch.join(endpointing))
        except ValueError as error:
            raise ApiError(503, "as many streams are open as are served at a time", code="queue_full") from error

    async def accept(self, stream: Stream, samples: np.ndarray) -> Progress:
        """Processes samples of an open stream (`Stream.accept`), in one step with those of others that wait."""
        return await self._run((stream, samples))

    async def finalize(self, stream: Stream) -> Progress:
        """Ends a stream; all its segments have ended then."""

        def finalize() -> Progress:
            stream.finalize()
            return _progress(stream)

        return await self._run(finalize)

    async def leave(self, stream: Stream) -> None:
        """Ends a stream without a transcript."""
        await self._run(stream.leave)

    def compile(self) -> None:
        """Compiles the step, before the first stream."""
        stream = self._batch.join()
        stream.accept(np.zeros(4 * self.sample_rate, np.int16))
        stream.leave()

    def close(self) -> None:
        """Cancels what waits, and ends the thread; waits a few seconds for the step in progress."""
        with self._changed:
            self._closed = True
            while self._jobs:
                self._jobs.popleft()[1].cancel()
            self._changed.notify()
        self._thread.join(_LAST_SECONDS)

    async def _run(self, job: Callable[[], Any] | tuple[Stream, Any]) -> Any:
        future: Future = Future()
        with self._changed:
            if self._closed:
                raise ApiError(503, "the service is being stopped", code="stopping")
            self._jobs.append((job, future))
            self._changed.notify()
        # Shielded: a connection that ends must not leave a job half-known.
        return await asyncio.shield(asyncio.wrap_future(future))

    def _work(self) -> None:
        while jobs := self._next():
            pieces = [(job, future) for job, future in jobs if isinstance(job, tuple)]
            if pieces:
                self._answer([future for _, future in pieces], lambda pieces=pieces: self._step(pieces))
            for job, future in jobs:
                if not isinstance(job, tuple):
                    self._answer([future], lambda job=job: [job()])

    def _step(self, pieces: list[tuple[tuple[Stream, Any], Future]]) -> list[Progress]:
        self._batch.accept(dict(job for job, _ in pieces))
        self.steps, self.pieces = self.steps + 1, self.pieces + len(pieces)
        return [_progress(stream) for (stream, _), _ in pieces]

    def _answer(self, futures: list[Future], compute: Callable[[], list[Any]]) -> None:
        try:
            results = compute()
        except Exception as error:
            for future in futures:
                future.set_exception(error)
            return
        for future, result in zip(futures, results, strict=True):
            future.set_result(result)

    def _next(self) -> list[tuple[Callable[[], Any] | tuple[Stream, Any], Future]]:
        """Waits for jobs and returns them; none once closed."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            jobs = [job for job in self._jobs if job[1].set_running_or_notify_cancel()]
            self._jobs.clear()
            return jobs


def _progress(stream: Stream) -> Progress:
    return Progress(stream.segments, stream.partial)


class LiveAudio:
    """The audio of one connection: bytes of 16-bit samples at the client's rate, into one stream after the other.

    Attributes:
      seconds: of all streams so far.
    """

    def __init__(self, streams: LiveStreams, limits: StreamLimits):
        self._streams, self._limits = streams, limits
        self._stream: Stream | None = None
        self._rest = b""
        self.seconds = 0.0

    @property
    def is_open(self) -> bool:
        """Whether audio has come since the last `finalize` or `clear`."""
        return self._stream is not None

    async def add(
        self, content: bytes, rate: int, endpointing: Endpointing, decode: Callable[[bytes], np.ndarray] | None = None
    ) -> AsyncIterator[Progress]:
        """Processes bytes of audio; a sample may be split between two calls.

        Args:
          rate: of the samples in Hz, the same until the stream ends.
          endpointing: of the stream, which the first bytes open.
          decode: converts bytes to int16 samples; None for 16-bit little-endian ones.

        Yields:
          What is known after each piece.
        """
        if self._stream is None:
            self._stream = await self._streams.open(endpointing)
            self._resample = None
            if rate != self._streams.sample_rate:
                self._resample = soxr.ResampleStream(rate, self._streams.sample_rate, 1).resample_chunk
        if decode is None:
            content = self._rest + content
            whole = len(content) // 2 * 2
            samples, self._rest = np.frombuffer(content[:whole], "<i2"), content[whole:]
        else:
            samples = decode(content)
        self.seconds += len(samples) / rate
        if self.seconds > 60 * self._limits.stream_minutes:
            minutes = f"{self._limits.stream_minutes:g} minutes"
            raise ApiError(413, f"the audio of this connection is longer than {minutes}", code="audio_too_long")
        piece = max(round(_PIECE_SECONDS * rate), 1)
        for start in range(0, len(samples), piece):
            yield await self._accept(samples[start : start + piece])

    async def finalize(self) -> Progress:
        """Ends the stream. Raises `ApiError` if the audio ends in half of a sample."""
        stream, rest = self._stream, self._rest
        if rest:
            await self.clear()
            raise ApiError(400, "the audio ends in half of a sample: samples are of 16 bits", code="invalid_audio")
        if self._resample is not None:
            await self._accept(np.zeros(0, np.int16), last=True)
        self._stream = None
        return await self._streams.finalize(stream)

    async def clear(self) -> None:
        """Ends the stream, if one is open, without a transcript."""
        stream, self._stream, self._rest = self._stream, None, b""
        if stream is not None:
            await self._streams.leave(stream)

    async def _accept(self, samples: np.ndarray, last: bool = False) -> Progress:
        if self._resample is not None:  # as float32: soxr adds dither to int16
            samples = np.clip(self._resample(samples.astype(np.float32) / _FULL_SCALE, last), -1, 1)
        return await self._streams.accept(self._stream, samples)


class Socket:
    """A WebSocket whose client must send, and read, in time."""

    def __init__(self, socket: WebSocket, limits: StreamLimits):
        self._socket, self._seconds = socket, limits.silent_seconds

    async def receive(self) -> str | bytes | None:
        """Returns the next message; None once the client has closed. Raises `ApiError` if it is silent for too long."""
        try:
            async with asyncio.timeout(self._seconds):
                message = await self._socket.receive()
        except TimeoutError:
            raise ApiError(408, f"nothing was sent for {self._seconds:g} s", code="silent") from None
        if message["type"] == "websocket.disconnect":
            return None
        text = message.get("text")
        return message.get("bytes", b"") if text is None else text

    async def send(self, text: str) -> None:
        """Sends a message. Raises `WebSocketDisconnect` if the client is gone, or reads too slowly."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._socket.send_text(text)
        except (TimeoutError, RuntimeError) as error:  # closed by this side or the other
            raise WebSocketDisconnect(POLICY, "messages are not read") from error

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes the connection, unless it is closed."""
        if self._socket.application_state == self._socket.client_state == WebSocketState.CONNECTED:
            async with asyncio.timeout(self._seconds):
                await self._socket.close(code, reason.encode()[:120].decode(errors="ignore"))
