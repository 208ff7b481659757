"""Recognition of live streams over WebSockets: OpenAI's Realtime transcription, and the protocol of Vosk's server."""

import contextlib
import json
import logging
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from jax_speechlm.serving.forms import ApiError
from jax_speechlm.serving.live import INTERNAL, POLICY, TRY_AGAIN, LiveAudio, LiveStreams, Socket, StreamLimits
from jax_speechlm.serving.realtime import error_event, failure_event, serve_realtime
from jax_speechlm.serving.vosk import serve_vosk

log = logging.getLogger(__name__)

REALTIME, VOSK = "/v1/realtime", "/"
_SOCKETS_PER_STREAM = 4  # a connection takes a stream when its audio begins


class Streaming:
    """The WebSocket routes of a recognizer.

    Attributes:
      num_sockets: open connections.
    """

    def __init__(self, streams: LiveStreams | None, name: str, limits: StreamLimits, reason: str = ""):
        """Serves streams; without them requests are refused with `reason`."""
        self.streams, self.name, self.limits, self.reason = streams, name, limits, reason
        self.num_sockets = 0

    def close(self) -> None:
        """Ends the thread of the streams."""
        if self.streams is not None:
            self.streams.close()

    def health(self) -> dict[str, dict[str, int]]:
        """Returns counters of what was computed."""
        if self.streams is None:
            return {}
        return {
            "streams": {"connections": self.num_sockets, "steps": self.streams.steps, "pieces": self.streams.pieces}
        }

    def add_routes(self, app: FastAPI) -> None:
        """Adds the routes."""

        @app.websocket(REALTIME)
        async def realtime(websocket: WebSocket) -> None:
            await self._serve(
                websocket, lambda socket, audio: serve_realtime(socket, audio, self.name), sends_errors=True
            )

        @app.websocket(VOSK)
        async def vosk(websocket: WebSocket) -> None:
            await self._serve(websocket, lambda socket, audio: serve_vosk(socket, audio, self.streams.sample_rate))

    async def _serve(
        self,
        websocket: WebSocket,
        protocol: Callable[[Socket, LiveAudio], Awaitable[None]],
        sends_errors: bool = False,
    ) -> None:
        """Serves a connection until it ends.

        Args:
          sends_errors: whether the protocol sends an error before the connection is closed.
        """
        if self.streams is None:
            await websocket.send_denial_response(ApiError(404, self.reason, code="no_streams").response())
            return
        if self.num_sockets >= (most := _SOCKETS_PER_STREAM * self.limits.max_streams):
            response = ApiError(503, f"{most} connections are open", code="queue_full", retry=5).response()
            await websocket.send_denial_response(response)
            return
        self.num_sockets += 1
        await websocket.accept()
        socket, audio = Socket(websocket, self.limits), LiveAudio(self.streams, self.limits)
        code, reason = 1000, ""
        try:
            await protocol(socket, audio)
        except WebSocketDisconnect:
            pass
        except ApiError as error:
            code, reason = TRY_AGAIN if error.status == 503 else POLICY, error.message
            if not sends_errors:
                with contextlib.suppress(WebSocketDisconnect):
                    await socket.send(json.dumps(error_event(error)))
        except Exception:
            log.exception("a stream failed")
            code, reason = INTERNAL, "internal error; the log of the service has the details"
            with contextlib.suppress(WebSocketDisconnect):
                await socket.send(json.dumps(failure_event()))
        finally:
            self.num_sockets -= 1
            with contextlib.suppress(ApiError):  # the service is being stopped
                await audio.clear()
            with contextlib.suppress(TimeoutError, RuntimeError):
                await socket.close(code, reason)
