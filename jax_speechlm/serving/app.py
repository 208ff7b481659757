"""The endpoint: OpenAI's audio routes over trained runs, and a page to try them on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from jax_speechlm.serving import speech, transcription
from jax_speechlm.serving.admission import Requests
from jax_speechlm.serving.forms import ApiError, Body, internal_error
from jax_speechlm.serving.origins import SameOrigin
from jax_speechlm.serving.pages import add_files
from jax_speechlm.serving.service import Service

_ROUTES = (*transcription.ROUTES.values(), speech.ROUTE)
_ANSWER_SECONDS = 2.0


def make_app(
    requests: Requests,
    services: Sequence[Service],
    names: Sequence[str] = (),
    beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
) -> FastAPI:
    """Builds the app, which closes the services when it shuts down.

    Args:
      names: as in `SameOrigin`.
      beside: servers of other protocols, which run until the app shuts down.

    Raises:
      ValueError: two services have the same name or the same route.
    """
    for kind in ("name", "route"):
        values = [getattr(service, kind) for service in services]
        if twice := {value for value in values if values.count(value) > 1}:
            raise ValueError(f"two runs have the same {kind}, {min(twice)}: serve one of them, or both on their own")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        others = [asyncio.ensure_future(run()) for run in beside]
        yield
        for other in others:
            other.cancel()
        requests.close()
        for service in services:
            await asyncio.to_thread(service.close)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                while requests.in_flight:  # cancelled requests still get an answer
                    await asyncio.sleep(0.05)

    # No documentation page: FastAPI's takes its scripts from elsewhere. /openapi.json is there.
    app = FastAPI(title="jax_speechlm", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(SameOrigin, names=names)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message, code="unknown_url").response()

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> JSONResponse:
        return internal_error().response()

    for service in services:
        service.add_routes(app)

    async def other_task(request: Request) -> Response:
        await Body(request).drain()
        runs = [service for service in services if service.model_names]
        uses = "; ".join(f"{run.name} was trained to {run.task}: use {run.route}" for run in runs)
        raise ApiError(404, uses or "no run is served here", code="wrong_task")

    for route in set(_ROUTES) - {service.route for service in services}:
        app.post(route)(other_task)

    by_name = {name: service for service in services for name in service.model_names}

    def entry(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "jax_speechlm"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry(name) for name in by_name]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name not in by_name:
            there = "the only model here is" if len(by_name) == 1 else "the models here are"
            raise ApiError(404, f"{there} {', '.join(by_name)}", param="model", code="model_not_found")
        return entry(name) | by_name[name].details()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        counters = {key: value for service in services for key, value in service.health().items()}
        return {"status": "ok", "model": ", ".join(by_name), "requests": requests.in_flight} | counters

    scripts = ("common.js", "audio.js", "recorder.js", "page.js", "listen.js", "speak.js")
    add_files(app, *scripts, pages={"/": "index.html"})
    return app
