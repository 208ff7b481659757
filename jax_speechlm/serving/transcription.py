"""Transcription: OpenAI's `/v1/audio/transcriptions` or `/v1/audio/translations` over one trained run."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.segmentation import Samples, empty_batch, shapes
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.serving.admission import Client, Requests
from jax_speechlm.serving.answers import FORMATS, Wish
from jax_speechlm.serving.batcher import Batcher, Caller, Encode
from jax_speechlm.serving.forms import ApiError, Body, Upload
from jax_speechlm.serving.service import RunService, chain
from jax_speechlm.serving.streaming import Streaming
from jax_speechlm.serving.streams import EventStream

ROUTES = {"transcribe": "/v1/audio/transcriptions", "translate": "/v1/audio/translations"}
"""Routes by the task of a run."""

_PROMPTS = 32  # kept, the last; requests with the same one share batches

_FIELDS = {
    "file": {"type": "string", "format": "binary"},
    "model": {"type": "string"},
    "prompt": {"type": "string"},
    "response_format": {"type": "string", "enum": list(FORMATS)},
    "stream": {"type": "boolean"},
    "timestamp_granularities[]": {"type": "array", "items": {"enum": ["word", "segment"]}},
}
_SCHEMA = {"type": "object", "required": ["file"], "properties": _FIELDS}
_FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}


class Transcription(RunService):
    """A transcriber and the thread that owns it, with the adapters of its run.

    A request chooses an adapter by its field `model`: NAME:ADAPTER. All share the base's arrays in memory. Its field
    `prompt` is text that a model which was trained to reads before each window; other models ignore it.
    """

    picture_route = "/page/log-mel"

    def __init__(
        self,
        transcriber: Transcriber,
        name: str,
        requests: Requests,
        max_seconds: float,
        seconds_per_batch: float,
        streaming: Streaming | None = None,
        adapters: Mapping[str, Transcriber] = MappingProxyType({}),
    ):
        super().__init__(name, requests, transcriber.experiment, transcriber.params)
        self.transcriber, self.max_seconds, self.seconds_per_batch = transcriber, max_seconds, seconds_per_batch
        self.task, self.route = transcriber.task, ROUTES[transcriber.task]
        self.streaming = streaming
        self.batcher = Batcher(seconds_per_batch)
        self._transcribers = {name: transcriber} | {f"{name}:{key}": each for key, each in adapters.items()}
        self.model_names = tuple(self._transcribers)
        self._encoders = {key: self._encoder(each) for key, each in self._transcribers.items()}
        self._prompted = functools.lru_cache(_PROMPTS)(self._with_prompt)

    def close(self) -> None:
        self.batcher.close()
        if self.streaming is not None:
            self.streaming.close()

    def programs(self) -> Sequence[Callable[[], Any]]:
        every = shapes(self.max_seconds, self.seconds_per_batch)
        programs = [
            lambda shape=shape, each=each: each.encode([empty_batch(*shape)])
            for each in self._transcribers.values()
            for shape in every
        ]
        return programs + ([self.streaming.streams.compile] if self.streams_live else [])

    @property
    def streams_live(self) -> bool:
        """Whether live streams are served."""
        return self.streaming is not None and self.streaming.streams is not None

    def health(self) -> dict[str, dict[str, int | float]]:
        streams = self.streaming.health() if self.streaming is not None else {}
        return {"heard": {"windows": self.batcher.windows, "batches": self.batcher.batches}} | streams

    def details(self) -> dict[str, Any]:
        return super().details() | {"streams": self.streams_live}

    def card(self) -> dict[str, Any]:
        transcriber = self.transcriber
        return super().card() | {
            "steps": transcriber.run.step,
            "tokens": f"{transcriber.tokenizer.vocab_size} ({transcriber.tokenizer.kind})",
            "decoding": transcriber.decoding_description,
            "checkpoint": "/".join(transcriber.checkpoint.parts[-3:]),
        }

    def add_routes(self, app: FastAPI) -> None:
        @app.post(self.route, openapi_extra=_FORM)
        async def transcriptions(request: Request) -> Response:
            responses = self._responses(request)
            response = await anext(responses)
            if isinstance(response, Response):
                await responses.aclose()
                return response
            return EventStream(chain(response, responses))

        self.add_picture_route(app)
        if self.streaming is not None:
            self.streaming.add_routes(app)

    async def _responses(self, request: Request) -> AsyncGenerator[Response | dict[str, Any], None]:
        """Yields the response, or the events of an `EventStream`, all while the request counts as in progress."""
        body = Body(request)
        async with self.requests.admitted(body):
            upload = await self.upload_of(request)
            wish = Wish(upload)
            if wish.stream:
                async with contextlib.aclosing(self.events(body, upload)) as events:
                    async for event in events:
                        yield event
            else:
                transcriber, work = self._chosen(upload)
                result = await self.run(body, lambda caller: self.transcribe(upload, transcriber, caller), work)
                yield wish.answer(self.transcriber, *result)

    def _chosen(self, upload: Upload) -> tuple[Transcriber, Caller]:
        """Returns the model that a form names, by default the run itself, with its prompt, and the access to it.

        Raises `ApiError` for an adapter that is not there. Other names, such as whisper-1, are the run's too.
        """
        model = (upload.fields.get("model") or [self.name])[-1]
        if model not in self._transcribers:
            if model.startswith(f"{self.name}:"):
                there = ", ".join(self._transcribers)
                raise ApiError(404, f"the models here are {there}", param="model", code="model_not_found")
            model = self.name
        transcriber, encode = self._prompted(model, (upload.fields.get("prompt") or [""])[-1])
        return transcriber, Caller(self.batcher, encode)

    def _with_prompt(self, model: str, prompt: str) -> tuple[Transcriber, Encode]:
        transcriber = self._transcribers[model].with_prompt(prompt)
        is_plain = transcriber is self._transcribers[model]
        return transcriber, self._encoders[model] if is_plain else self._encoder(transcriber)

    def _encoder(self, transcriber: Transcriber) -> Encode:
        return functools.partial(transcriber.encode_audio, seconds_per_batch=self.seconds_per_batch)

    def transcribe(
        self,
        upload: Upload,
        transcriber: Transcriber,
        caller: Caller,
        on_segment: Callable[[Segment], Any] | None = None,
    ) -> tuple[list[Segment], float]:
        """Transcribes an upload.

        Args:
          transcriber: the model that `caller` has access to.
          on_segment: called with each segment as soon as it is decoded.

        Returns:
          The segments, and the duration of the audio in seconds.
        """
        num_samples, segments = 0, []

        def counted() -> Iterator[Samples]:
            nonlocal num_samples
            for block in self.blocks(upload, caller):
                num_samples += len(block)
                yield block

        at_once = {"at_once": 1} if on_segment else {}
        for segment in transcriber.segments(counted(), caller.encode, max_seconds=self.max_seconds, **at_once):
            segments.append(segment)
            if on_segment:
                on_segment(segment)
        return segments, num_samples / self.sample_rate

    async def events(self, client: Client, upload: Upload) -> AsyncGenerator[dict[str, Any], None]:
        """Transcribes an upload as events: text as it is decoded, then the complete text. Raises as `run`."""
        loop, segments, text = asyncio.get_running_loop(), [], ""
        queue: asyncio.Queue[Segment | None] = asyncio.Queue()

        def on_segment(segment: Segment) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, segment)

        transcriber, work = self._chosen(upload)
        working = asyncio.ensure_future(
            self.run(client, lambda caller: self.transcribe(upload, transcriber, caller, on_segment), work)
        )
        working.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (segment := await queue.get()) is not None:
                segments.append(segment)
                before, text = text, self.transcriber.text_of(segments)
                if text != before:
                    yield {"type": "transcript.text.delta", "delta": text.removeprefix(before)}
            await working
            yield {"type": "transcript.text.done", "text": text}
        finally:
            working.cancel()
