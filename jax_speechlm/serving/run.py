"""What `jax-speechlm serve` runs."""

import contextlib
import ipaddress
import socket
from pathlib import Path

from rich.console import Console
from rich.progress import track
from tyro.conf import OmitArgPrefixes, Positional

from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.inference.segmentation import empty_batch, shapes
from jax_speechlm.serving.app import Limits, Service, make_app
from jax_speechlm.serving.server import make_server
from jax_speechlm.training.checkpoints import CheckpointError


def serve_run(
    checkpoint: Positional[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    names: tuple[str, ...] = (),
    decoding: OmitArgPrefixes[Decoding] = Decoding(),  # noqa: B008  frozen
    ensemble: tuple[Path, ...] = (),
    limits: OmitArgPrefixes[Limits] = Limits(),  # noqa: B008  frozen
    max_seconds: float = 30.0,
    seconds_per_batch: float = 60.0,
    warm_up: bool = True,
) -> None:
    """Serves a trained run over HTTP: POST /v1/audio/transcriptions, as OpenAI has it, and a page to try it on at /.

    Requests are heard together where several wait; what one gets does not depend on the others, and is what
    `jax-speechlm transcribe` gives. Ctrl-C or SIGTERM lets the requests at hand finish, for 20 s.

    Args:
      checkpoint: a finetuned run's directory, or one of its checkpoints/<step> folders.
      host: the address to listen at. The default is this machine alone: there is neither a password nor encryption, so
        put a proxy that has both before it where others are to reach it.
      port: 0 takes any that is free, and says which.
      names: host names (or host:port) under which browsers reach it by a proxy. Requests from pages of other sites are
        refused; so are, on this machine's own address, requests to other names than localhost.
      decoding: how the text is found; weights that `eval` tuned are in its report.
      ensemble: further runs with its tokenizer and frame rate; the mean of all their probabilities is decoded.
      limits: what is taken on.
      max_seconds: longer recordings are heard in overlapping windows of at most this length, cut at quiet places.
      seconds_per_batch: padded audio that is heard at a time: memory and speed, never the result.
      warm_up: compile the programs of all shapes before the first request; else each when it is first needed.
    """
    transcriber = open_transcriber(checkpoint, decoding, ensemble)
    if transcriber.task not in ("transcribe", "translate"):
        raise CheckpointError(
            f"{checkpoint}: was trained to {transcriber.task}; serve runs that transcribe or translate"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be listened at ({error.strerror}): name another --port") from error
    if warm_up:
        compile_all(transcriber, max_seconds, seconds_per_batch)
    name = transcriber.checkpoint.parent.parent.name or "model"  # of RUN/checkpoints/STEP
    service = Service(transcriber, name, limits, max_seconds, seconds_per_batch)
    server = make_server(make_app(service, names))
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    print(f"{name} at {url} (a page), {url}/v1/audio/transcriptions; Ctrl-C stops", flush=True)
    if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        print("whoever reaches this machine can use it: there is no password", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # that the server raises again once it has stopped
        server.run(sockets=[listener])


def compile_all(transcriber: Transcriber, max_seconds: float, seconds_per_batch: float) -> None:
    """Compiles the model for every shape that a window, or a batch of them, may have."""
    console = Console(stderr=True)
    every = shapes(max_seconds, seconds_per_batch)
    for rows, samples in track(every, "compiling", console=console, transient=True, disable=not console.is_terminal):
        transcriber.encode([empty_batch(rows, samples)])
