"""The HTTP server of a service: uvicorn, with limits on idle connections, slow readers and shutdown."""

import asyncio
import logging
import math
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from jax_speechlm.serving.forms import ApiError

STOP_SECONDS = 20
"""Time for requests in progress after SIGTERM, before they are cancelled. Platforms kill after 30 s."""


MESSAGE_BYTES = 4 * 2**20
"""Most bytes of a WebSocket's message."""


class Protocol(H11Protocol):
    """HTTP/1.1 that closes connections whose client sends no request, or does not read the response, in time.

    uvicorn's own limit (`timeout_keep_alive`) starts only after the first response, and ends with the first byte of a
    request's headers.

    Attributes:
      idle_seconds: time for a request's headers, from the start of a connection or from the previous response.
      write_seconds: time that a client may read nothing of a response.
    """

    idle_seconds = 15.0
    write_seconds = 60.0

    _idle: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # asyncio's, or uvloop's, which is no subclass of it
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._idle, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._wait_for_request()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._idle.cancel()  # a WebSocket has limits of its own (`serving.live.Socket`)
        super().handle_websocket_upgrade(event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP, in the form of the service's other errors."""
        response = ApiError(400, msg, code="invalid_http").response()
        headers = [*response.raw_headers, (b"connection", b"close")]
        try:
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=response.body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        except h11.LocalProtocolError:  # a response has already begun
            pass
        self.transport.close()

    def _wait_for_request(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.loop.call_later(self.idle_seconds, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()  # `close` would wait for a client that reads nothing


def make_server(
    app: ASGIApp,
    *,
    stop_seconds: int = STOP_SECONDS,
    idle_seconds: float = Protocol.idle_seconds,
    write_seconds: float = Protocol.write_seconds,
    log_level: int = logging.WARNING,
) -> uvicorn.Server:
    """Builds a server for an app, not yet running; `stop_seconds` is for requests in progress after SIGTERM."""
    limits = {"idle_seconds": idle_seconds, "write_seconds": write_seconds}
    config = uvicorn.Config(
        app,
        http=type("LimitedProtocol", (Protocol,), limits),
        ws="websockets-sansio",
        ws_max_size=MESSAGE_BYTES,
        log_level=log_level,
        server_header=False,
        timeout_keep_alive=math.ceil(idle_seconds),
        timeout_graceful_shutdown=stop_seconds,
    )
    return uvicorn.Server(config)
