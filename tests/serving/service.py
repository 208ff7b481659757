"""A real server on a real port, in a thread of the test, or as a process of its own."""

import contextlib
import io
import logging
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import soundfile

from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.serving.admission import Limits, Requests
from jax_speechlm.serving.app import make_app
from jax_speechlm.serving.conversations import Conversations, Dialogue
from jax_speechlm.serving.live import LiveStreams, StreamLimits
from jax_speechlm.serving.server import make_server
from jax_speechlm.serving.settings import ConversationLimits
from jax_speechlm.serving.speech import Synthesis, Voice
from jax_speechlm.serving.streaming import Streaming
from jax_speechlm.serving.transcription import Transcription
from jax_speechlm.serving.wyoming import Wyoming

RATE = 16_000


class Server:
    """A service that listens.

    Attributes:
      service: the recognizer that it serves.
      voice: the voice that it serves.
      conversations: the conversations that it serves.
      client: speaks to it over HTTP.
      wyoming_port: of Home Assistant's protocol.
    """

    def __init__(
        self,
        transcriber: Transcriber | None,
        limits: Limits,
        names: tuple[str, ...] = (),
        idle_seconds: float = 15.0,
        voice: Voice | None = None,
        streams: StreamLimits | None = None,
        dialogue: Dialogue | None = None,
        conversations: ConversationLimits = ConversationLimits(),  # noqa: B008
        **options,
    ):
        self.requests, services = Requests(limits), []
        if transcriber is not None:
            options = {"max_seconds": 30.0, "seconds_per_batch": 60.0} | options
            if streams is not None:
                batch = transcriber.streams(streams.max_streams, None, Endpointing())
                options["streaming"] = Streaming(LiveStreams(batch), "tones", streams)
            self.service = Transcription(transcriber, "tones", self.requests, **options)
            services.append(self.service)
        if voice is not None:
            self.voice = Synthesis(voice, "voice", self.requests)
            services.append(self.voice)
        if dialogue is not None:
            self.conversations = Conversations(dialogue, self.requests, conversations)
            services.append(self.conversations)
        listener, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        self.wyoming_port = other.getsockname()[1]
        wyoming = Wyoming(services, self.requests, ("en",))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = make_server(
            make_app(self.requests, services, names, [lambda: wyoming.run(other)]),
            stop_seconds=5,
            idle_seconds=idle_seconds,
            log_level=logging.CRITICAL,
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, name="server")
        self._thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=60)
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join()

    def post(self, content: bytes, filename: str = "a.wav", client: httpx.Client | None = None, **fields):
        """Posts a file, and fields of the form."""
        client = client or self.client
        return client.post("/v1/audio/transcriptions", files={"file": (filename, content)}, data=fields)


@contextlib.contextmanager
def serving(transcriber: Transcriber | None = None, limits: Limits = Limits(), **options) -> Iterator[Server]:  # noqa: B008
    server = Server(transcriber, limits, **options)
    try:
        yield server
    finally:
        server.stop()


def encoded(samples: np.ndarray, format: str = "WAV", rate: int = RATE) -> bytes:
    """The bytes of an audio file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format)
    return buffer.getvalue()
