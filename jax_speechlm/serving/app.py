"""The endpoint: OpenAI's `/v1/audio/transcriptions` over one trained run, and a page to try it on."""

import asyncio
import base64
import contextlib
import importlib.resources
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
import pydantic
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from data_pipelines.audio import decode
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.logmel import log_mel
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.segmentation import Samples, shape_of
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.serving.answers import FORMATS, EventStream, Wish
from jax_speechlm.serving.batcher import Batcher, Caller, GivenUpError
from jax_speechlm.serving.forms import CLOSED, INTERNAL, ApiError, Body, Upload, read_upload
from jax_speechlm.serving.origins import SameOrigin

T = TypeVar("T")

_ROUTES = {"transcribe": "/v1/audio/transcriptions", "translate": "/v1/audio/translations"}
_PICTURE_SECONDS = 30.0
_ANSWER_SECONDS = 2.0
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/recorder.js": ("recorder.js", "text/javascript"),
}
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "
    "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_FIELDS = {
    "file": {"type": "string", "format": "binary"},
    "model": {"type": "string"},
    "response_format": {"type": "string", "enum": list(FORMATS)},
    "stream": {"type": "boolean"},
    "timestamp_granularities[]": {"type": "array", "items": {"enum": ["word", "segment"]}},
}
_SCHEMA = {"type": "object", "required": ["file"], "properties": _FIELDS}
_FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}


class Limits(Config):
    """Limits of a service.

    Attributes:
      max_megabytes: of one upload (2^20 bytes).
      max_minutes: of one upload's audio.
      max_requests: requests in progress at a time; further ones get 503 with Retry-After.
      timeout: seconds from the end of an upload to its transcript.
    """

    max_megabytes: Annotated[float, pydantic.Field(gt=0)] = 25.0
    max_minutes: Annotated[float, pydantic.Field(gt=0)] = 60.0
    max_requests: Annotated[int, pydantic.Field(ge=1)] = 32
    timeout: Annotated[float, pydantic.Field(gt=0)] = 300.0


class Service:
    """A transcriber, the thread that owns it, and the threads that decode uploads.

    Attributes:
      name: the model's name in the API.
      in_flight: number of requests in progress.
    """

    def __init__(
        self, transcriber: Transcriber, name: str, limits: Limits, max_seconds: float, seconds_per_batch: float
    ):
        self.transcriber, self.name, self.limits, self.max_seconds = transcriber, name, limits, max_seconds
        self.batcher = Batcher(lambda parts: transcriber.encode_audio(parts, seconds_per_batch), seconds_per_batch)
        self.sample_rate = transcriber.experiment.sample_rate
        self.in_flight = 0
        self._callers: set[Caller] = set()
        self._threads = ThreadPoolExecutor(limits.max_requests, "request")
        self._mel = jax.jit(log_mel, static_argnums=2)

    def close(self) -> None:
        """Cancels requests in progress and ends the threads, waiting at most for the batch that is being computed."""
        for caller in tuple(self._callers):
            caller.cancel()
        self.batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[None]:
        """Counts a request as in progress within the context. Raises `ApiError` if `max_requests` already are."""
        if self.in_flight >= self.limits.max_requests:
            await Body(request).drain()
            raise ApiError(503, f"{self.limits.max_requests} requests are in progress", code="queue_full", retry=1)
        self.in_flight += 1
        try:
            yield
        except asyncio.CancelledError:  # by the server, at the end of its grace period
            asyncio.current_task().uncancel()
            raise _stopping() from None
        finally:
            self.in_flight -= 1

    async def run(self, request: Request, work: Callable[[Caller], Any]) -> Any:
        """Runs a request's work in a thread, until it finishes, times out or the client disconnects.

        Raises:
          ApiError: the audio cannot be read or is too long; or the time is up.
        """
        caller = Caller(self.batcher)
        self._callers.add(caller)
        working = asyncio.get_running_loop().run_in_executor(self._threads, work, caller)
        working.add_done_callback(lambda _: self._callers.discard(caller))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            done, _ = await asyncio.wait(
                {working, gone}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if gone in done and working not in done:
                raise ApiError(CLOSED, "the client closed the connection", code="disconnected")
            if working not in done:
                raise ApiError(504, f"not done after {self.limits.timeout:g} s", code="timeout")
            return working.result()
        except decode.AudioTooLongError as error:
            limit = f"the audio is longer than the limit of {self.limits.max_minutes:g} minutes"
            raise ApiError.invalid("file", limit, "audio_too_long") from error
        except decode.AudioError as error:
            message = f"the file cannot be decoded as audio: {error.reason}"
            raise ApiError.invalid("file", message, "bad_audio") from error
        except GivenUpError as error:
            raise _stopping() from error
        finally:
            gone.cancel()
            if not working.done():
                caller.cancel()
                self.in_flight += 1  # its slot stays taken until its thread ends
                working.add_done_callback(self._ended)

    def _ended(self, work: asyncio.Future) -> None:
        self.in_flight -= 1
        if not work.cancelled():
            work.exception()  # retrieves the exception, or asyncio logs it as never retrieved

    def blocks(self, upload: Upload, caller: Caller) -> Iterator[Samples]:
        """Decodes an upload, until the caller is cancelled. Raises `AudioError` if it cannot be decoded."""
        name = "upload.g722" if upload.filename.lower().endswith(".g722") else "upload"  # G.722 has no header
        max_seconds = 60 * self.limits.max_minutes
        yield from decode.stream(
            upload.content, name=name, rate=self.sample_rate, max_seconds=max_seconds, check=caller.check
        )

    def transcribe(
        self, upload: Upload, caller: Caller, on_segment: Callable[[Segment], Any] | None = None
    ) -> tuple[list[Segment], float]:
        """Transcribes an upload.

        Args:
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
        for segment in self.transcriber.segments(counted(), caller.encode, max_seconds=self.max_seconds, **at_once):
            segments.append(segment)
            if on_segment:
                on_segment(segment)
        return segments, num_samples / self.sample_rate

    async def events(self, request: Request, upload: Upload) -> AsyncGenerator[dict[str, Any], None]:
        """Transcribes an upload as events: text as it is decoded, then the complete text. Raises as `run`."""
        loop, segments, text = asyncio.get_running_loop(), [], ""
        queue: asyncio.Queue[Segment | None] = asyncio.Queue()

        def on_segment(segment: Segment) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, segment)

        working = asyncio.ensure_future(self.run(request, lambda caller: self.transcribe(upload, caller, on_segment)))
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

    def picture(self, upload: Upload, caller: Caller) -> dict[str, Any]:
        """Returns log-mel features of the first 30 s as grey levels: a byte a bin, low bins first, frame by frame."""
        most, blocks = int(_PICTURE_SECONDS * self.sample_rate), []
        for block in self.blocks(upload, caller):
            blocks.append(block)
            if sum(map(len, blocks)) >= most:
                break
        samples = np.concatenate(blocks)[:most]
        padded = np.pad(samples, (0, shape_of(len(samples)) - len(samples)))[None]
        mel = self.transcriber.experiment.frontend.mel
        features, length = jax.device_get(self._mel(padded, np.array([len(samples)], np.int32), mel))
        frames = features[0, : length[0]].reshape(-1, mel.num_mel_bins)
        low, high = np.percentile(frames, (1, 99.5)) if len(frames) else (0.0, 1.0)
        shades = np.clip((frames - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        return {
            "frames": len(shades),
            "bins": mel.num_mel_bins,
            "seconds": len(samples) / self.sample_rate,
            "shades": base64.b64encode(shades.tobytes()).decode(),
        }

    def card(self) -> dict[str, Any]:
        """Returns a description of the model for display."""
        experiment = self.transcriber.experiment
        leaves = jax.tree.leaves(self.transcriber.params)
        return {
            "trained by": experiment.objective.kind,
            "to": self.transcriber.task,
            "on": ", ".join(getattr(experiment.data, "sets", ())) or experiment.data.kind,
            "steps": self.transcriber.run.step,
            "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
            "tokens": f"{self.transcriber.tokenizer.vocab_size} ({self.transcriber.tokenizer.kind})",
            "decoding": self.transcriber.decoding_description,
            "checkpoint": "/".join(self.transcriber.checkpoint.parts[-3:]),
        }


def _stopping() -> ApiError:
    return ApiError(503, "the service is being stopped", code="stopping", retry=10)


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.5)


def make_app(service: Service, names: Sequence[str] = ()) -> FastAPI:
    """Builds the app, which closes the service when it shuts down; `names` as in `SameOrigin`."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                while service.in_flight:  # cancelled requests still get an answer
                    await asyncio.sleep(0.05)

    # No documentation page: FastAPI's takes its scripts from elsewhere. /openapi.json is there.
    app = FastAPI(title="jax_speechlm", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(SameOrigin, names=names)
    max_bytes = int(service.limits.max_megabytes * 2**20)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message, code="unknown_url").response()

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> JSONResponse:
        return INTERNAL.response()

    async def transcriptions(request: Request) -> Response:
        responses = _responses(request)
        response = await anext(responses)
        if isinstance(response, Response):
            await responses.aclose()
            return response
        return EventStream(_chain(response, responses))

    async def _responses(request: Request) -> AsyncGenerator[Response | dict[str, Any], None]:
        """Yields the response, or the events of an `EventStream`, all while the request counts as in progress."""
        async with service.admitted(request):
            upload = await read_upload(request, max_bytes)
            wish = Wish(upload)
            if wish.stream:
                async with contextlib.aclosing(service.events(request, upload)) as events:
                    async for event in events:
                        yield event
            else:
                result = await service.run(request, lambda caller: service.transcribe(upload, caller))
                yield wish.answer(service.transcriber, *result)

    async def other_task(request: Request) -> Response:
        await Body(request).drain()
        task = service.transcriber.task
        raise ApiError(404, f"{service.name} was trained to {task}: use {_ROUTES.get(task)}", code="wrong_task")

    for task, route in _ROUTES.items():
        handler = transcriptions if task == service.transcriber.task else other_task
        app.post(route, openapi_extra=_FORM)(handler)

    @app.post("/page/log-mel", include_in_schema=False)
    async def picture(request: Request) -> JSONResponse:
        async with service.admitted(request):
            upload = await read_upload(request, max_bytes)
            return JSONResponse(await service.run(request, lambda caller: service.picture(upload, caller)))

    entry = {"id": service.name, "object": "model", "created": 0, "owned_by": "jax_speechlm"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise ApiError(404, f"the only model here is {service.name}", param="model", code="model_not_found")
        return entry | {"card": service.card()}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        batcher = service.batcher
        encoded = {"windows": batcher.windows, "batches": batcher.batches}
        return {"status": "ok", "model": service.name, "requests": service.in_flight, "heard": encoded}

    files = importlib.resources.files("jax_speechlm.serving") / "page"
    for path, (name, kind) in _PAGE.items():
        page = Response((files / name).read_bytes(), media_type=kind, headers=_SECURITY)
        app.add_route(path, lambda request, page=page: page, include_in_schema=False)
    return app


async def _chain(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    async with contextlib.aclosing(rest):
        yield first
        async for event in rest:
            yield event
