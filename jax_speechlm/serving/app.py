"""The endpoint: OpenAI's `/v1/audio/transcriptions` over one trained run, and a page to try it on."""

import asyncio
import base64
import contextlib
import importlib.resources
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import jax
import numpy as np
import pydantic
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from data_pipelines import audio
from jax_speechlm.config import Config
from jax_speechlm.frontend.logmel import log_mel
from jax_speechlm.serving.batcher import Batcher, Caller, GivenUpError
from jax_speechlm.serving.forms import CLOSED, ApiError, Body, Upload, read_upload
from jax_speechlm.transcriber import Transcriber
from jax_speechlm.transcript import SUBTITLES, Segment, phrases
from jax_speechlm.windows import Samples, shape_of

_ROUTES = {"transcribe": "/v1/audio/transcriptions", "translate": "/v1/audio/translations"}
_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_PICTURE_SECONDS = 30.0
_PAGE = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript")}
_PAGE |= {"/recorder.js": ("recorder.js", "text/javascript")}
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "
    "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "model": {"type": "string"},
                        "response_format": {"type": "string", "enum": list(_FORMATS)},
                        "timestamp_granularities[]": {"type": "array", "items": {"enum": ["word", "segment"]}},
                    },
                }
            }
        },
    }
}


class Limits(Config):
    """What a service takes on.

    Attributes:
      max_megabytes: of one upload (2^20 bytes).
      max_minutes: of one upload's audio.
      max_requests: that are read, wait or are heard at a time; more are told to come again.
      timeout: seconds from an upload's end to its transcript.
    """

    max_megabytes: Annotated[float, pydantic.Field(gt=0)] = 25.0
    max_minutes: Annotated[float, pydantic.Field(gt=0)] = 60.0
    max_requests: Annotated[int, pydantic.Field(ge=1)] = 32
    timeout: Annotated[float, pydantic.Field(gt=0)] = 300.0


class Service:
    """A transcriber, the thread that owns it, and the threads that decode what is sent.

    Attributes:
      name: what the model is called.
      in_flight: requests at present.
    """

    def __init__(
        self, transcriber: Transcriber, name: str, limits: Limits, max_seconds: float, seconds_per_batch: float
    ):
        self.transcriber, self.name, self.limits, self.max_seconds = transcriber, name, limits, max_seconds
        self.batcher = Batcher(lambda parts: transcriber.listen_to(parts, seconds_per_batch), seconds_per_batch)
        self.in_flight = 0
        self._threads = ThreadPoolExecutor(limits.max_requests, "request")
        self._mel = jax.jit(log_mel, static_argnums=2)

    def close(self) -> None:
        """Ends the threads; what waits is given up."""
        self.batcher.close()
        self._threads.shutdown(cancel_futures=True)

    @contextlib.asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[None]:
        """A place among the requests at hand. Raises `ApiError` where there is none."""
        if self.in_flight >= self.limits.max_requests:
            await Body(request).drain()
            raise ApiError(503, f"{self.limits.max_requests} requests wait already", code="queue_full", retry=1)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def run(self, request: Request, work: Callable[[Caller], Any]) -> Any:
        """Does a request's work in a thread of its own, until it takes too long or nobody waits for it.

        Raises:
          ApiError: the audio cannot be read or is too long; or time is up.
        """
        caller = Caller(self.batcher)
        working = asyncio.get_running_loop().run_in_executor(self._threads, work, caller)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            done, _ = await asyncio.wait(
                {working, gone}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if working not in done:
                caller.cancel()
                self.in_flight += 1  # its place is free when its thread is
                working.add_done_callback(self._ended)
                if gone in done:
                    raise ApiError(CLOSED, "the client closed the connection", code="disconnected")
                raise ApiError(504, f"not done after {self.limits.timeout:g} s", code="timeout")
            return working.result()
        except audio.AudioTooLongError as error:
            minutes = f"{self.limits.max_minutes:g} minutes"
            raise ApiError(
                400, f"the audio is longer than {minutes}, the most that is taken", param="file", code="audio_too_long"
            ) from error
        except audio.AudioError as error:
            raise ApiError(
                400, f"the file is no audio that can be read: {error.reason}", param="file", code="bad_audio"
            ) from error
        except GivenUpError as error:
            raise ApiError(503, "the service is being stopped", code="stopping", retry=10) from error
        finally:
            gone.cancel()

    def _ended(self, work: asyncio.Future) -> None:
        self.in_flight -= 1
        if not work.cancelled():
            work.exception()  # of a thread that nobody waits for: not to be reported as overlooked

    def blocks(self, upload: Upload, caller: Caller) -> Iterator[Samples]:
        """An upload's samples, until the caller gives up. Raises `AudioError`."""
        name = "upload.g722" if upload.filename.lower().endswith(".g722") else "upload"  # a format without a header
        max_seconds = 60 * self.limits.max_minutes
        yield from audio.stream(upload.content, name=name, max_seconds=max_seconds, check=caller.check)

    def transcribe(self, upload: Upload, caller: Caller) -> tuple[list[Segment], float]:
        """The segments of an upload, and its seconds."""
        num_samples = 0

        def counted() -> Iterator[Samples]:
            nonlocal num_samples
            for block in self.blocks(upload, caller):
                num_samples += len(block)
                yield block

        segments = list(self.transcriber.segments(counted(), caller.listen, max_seconds=self.max_seconds))
        return segments, num_samples / audio.SAMPLE_RATE

    def picture(self, upload: Upload, caller: Caller) -> dict[str, Any]:
        """The log-mel features of the first half minute, as shades: a byte a bin, low ones first, frame after frame."""
        most, held, parts = int(_PICTURE_SECONDS * audio.SAMPLE_RATE), 0, []
        for block in self.blocks(upload, caller):
            parts.append(block[: most - held])
            held += len(parts[-1])
            if held >= most:
                break
        samples = np.concatenate(parts)
        padded = np.zeros((1, shape_of(held)), np.int16)
        padded[0, :held] = samples
        mel = self.transcriber.experiment.frontend.mel
        features, length = jax.device_get(self._mel(padded, np.array([held], np.int32), mel))
        frames = features[0, : length[0]].reshape(-1, mel.num_mel_bins)
        low, high = np.percentile(frames, (1, 99.5)) if len(frames) else (0.0, 1.0)
        shades = np.clip((frames - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        return {
            "frames": len(shades),
            "bins": mel.num_mel_bins,
            "seconds": held / audio.SAMPLE_RATE,
            "shades": base64.b64encode(shades.tobytes()).decode(),
        }

    def card(self) -> dict[str, Any]:
        """What the model is, for people."""
        experiment = self.transcriber.experiment
        leaves = jax.tree.leaves(self.transcriber.params)
        return {
            "trained by": experiment.objective.kind,
            "to": self.transcriber.task,
            "on": ", ".join(getattr(experiment.data, "sets", ())) or experiment.data.kind,
            "steps": self.transcriber.step,
            "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
            "tokens": f"{self.transcriber.tokenizer.vocab_size} ({self.transcriber.tokenizer.kind})",
            "decoding": self.transcriber.how,
            "checkpoint": "/".join(self.transcriber.checkpoint.parts[-3:]),
        }


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.5)


def make_app(service: Service) -> FastAPI:
    """The app; it closes the service when it is shut down."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    # No documentation page: FastAPI's takes its scripts from elsewhere. /openapi.json is there.
    app = FastAPI(title="jax_speechlm", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    max_bytes = int(service.limits.max_megabytes * 2**20)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        method, path = request.method, request.url.path
        return ApiError(error.status_code, f"{method} {path}: {error.detail}", code="unknown_url").response()

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "an error of the service, which its log has", code="internal_error").response()

    async def transcriptions(request: Request) -> Response:
        async with service.admitted(request):
            upload = await read_upload(request, max_bytes)
            answer = _formatter(service, upload)
            segments, seconds = await service.run(request, lambda caller: service.transcribe(upload, caller))
            return answer(segments, seconds)

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
            raise ApiError(404, f"the one model here is {service.name}", param="model", code="model_not_found")
        return entry | {"card": service.card()}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        batcher = service.batcher
        heard = {"windows": batcher.windows, "batches": batcher.batches}
        return {"status": "ok", "model": service.name, "requests": service.in_flight, "heard": heard}

    files = importlib.resources.files("jax_speechlm.serving") / "page"
    for path, (name, kind) in _PAGE.items():
        content = (files / name).read_bytes()
        app.get(path, include_in_schema=False)(_constant(content, kind))
    return app


def _constant(content: bytes, kind: str) -> Callable[[], Any]:
    async def page() -> Response:
        return Response(content, media_type=kind, headers=_SECURITY)

    return page


def _formatter(service: Service, upload: Upload) -> Callable[[Sequence[Segment], float], Response]:
    """What turns segments into the response that the form asks for. Raises `ApiError` where it asks for another."""
    format = upload.one("response_format", _FORMATS)
    granularities = [
        name for key in ("timestamp_granularities[]", "timestamp_granularities") for name in upload.fields.get(key, [])
    ]
    if unknown := set(granularities) - {"word", "segment"}:
        raise ApiError(
            400,
            f"timestamp_granularities[] may be word and segment; got {min(unknown)[:80]!r}",
            param="timestamp_granularities[]",
            code="invalid_value",
        )
    language = (upload.fields.get("language") or [None])[-1]

    def answer(segments: Sequence[Segment], seconds: float) -> Response:
        text = service.transcriber.text_of(segments)
        if format in SUBTITLES:
            return PlainTextResponse(
                SUBTITLES[format](segments), media_type="text/vtt" if format == "vtt" else "text/plain"
            )
        if format == "text":
            return PlainTextResponse(text + "\n")
        if format == "json":
            return JSONResponse({"text": text})
        parts = [_phrase(number, each) for number, each in enumerate(phrases(segments))]
        body = {
            "task": service.transcriber.task,
            "language": language,
            "duration": seconds,
            "text": text,
            "segments": parts,
        }
        if "word" in granularities:
            words = (word for segment in segments for word in segment.words)
            body["words"] = [
                {"word": each.word, "start": _round(each.start), "end": _round(each.end)} for each in words
            ]
        if alternatives := [_alternatives(each) for each in segments if each.alternatives]:
            body["alternatives"] = alternatives
        return JSONResponse(body)

    return answer


def _phrase(number: int, phrase: Segment) -> dict[str, Any]:
    times = {"start": _round(phrase.start), "end": _round(phrase.end)}
    return {"id": number} | times | {"text": phrase.text, "avg_logprob": round(phrase.confidence, 4)}


def _alternatives(segment: Segment) -> dict[str, Any]:
    return {"start": _round(segment.start), "end": _round(segment.end), "texts": list(segment.alternatives)}


def _round(seconds: float) -> float:
    return round(seconds, 3)
