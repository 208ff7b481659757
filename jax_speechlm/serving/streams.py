"""Responses that are sent while they are computed: server-sent events, and audio."""

import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jax_speechlm.serving.forms import ApiError, internal_error

log = logging.getLogger(__name__)

_HEADERS = {"Cache-Control": "no-store"}


class EventStream(StreamingResponse):
    """Server-sent events. A failure is sent as an event; the generator of events is closed in every case."""

    def __init__(self, events: AsyncGenerator[dict[str, Any], None], end: str | None = "[DONE]"):
        """Streams events; `end` is sent after the last one."""
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self.body_iterator) as events:
            try:
                async for event in events:
                    await send(_part(_event(json.dumps(event))))
                if self._end is not None:
                    await send(_part(_event(self._end)))
            except ApiError as error:
                await send(_part(_event(error.response().body.decode())))
            except Exception:
                log.exception("a stream failed")
                await send(_part(_event(internal_error().response().body.decode())))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class AudioStream(StreamingResponse):
    """Bytes of audio. After a failure the connection is closed without the end of the response, as HTTP has it."""

    def __init__(self, parts: AsyncGenerator[bytes, None], media_type: str):
        super().__init__(parts, media_type=media_type, headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self.body_iterator) as parts:
            try:
                async for part in parts:
                    await send(_part(part))
            except ApiError as error:
                log.warning("a stream of audio ended early: %s", error.message)
                return
            except Exception:
                log.exception("a stream of audio failed")
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
