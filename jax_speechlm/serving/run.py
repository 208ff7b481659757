"""The command `jax-speechlm serve`."""

import contextlib
import ipaddress
import socket
from pathlib import Path

from rich.console import Console
from rich.progress import track
from tyro.conf import OmitArgPrefixes, Positional

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
    """Serves a trained run over HTTP: POST /v1/audio/transcriptions in OpenAI's form, and a page to try it on at /.

    Concurrent requests share batches; a response does not depend on the others and equals the output of
    `jax-speechlm transcribe`. Ctrl-C or SIGTERM lets requests in progress finish, for 20 s.

    Args:
      checkpoint: a finetuned run's directory, or one of its checkpoints/<step> folders.
      host: the address to listen at. The default accepts connections from this machine alone: there is neither a
        password nor encryption, so use a proxy that has both for others.
      port: 0 picks a free one and prints it.
      names: host names (or host:port) under which browsers reach the service by a proxy. Requests from pages of other
        sites are refused; so are, on this machine's own address, requests to other names than localhost.
      decoding: how text is decoded; the report of `eval` has the weights that it tuned.
      ensemble: further runs with the same tokenizer and frame rate; the mean of all probabilities is decoded.
      limits: limits of uploads and requests.
      max_seconds: longer recordings are encoded in overlapping windows of at most this length, cut at quiet places.
      seconds_per_batch: padded audio of a batch; affects memory and speed only.
      warm_up: compile the programs of all shapes before the first request; otherwise each when it is first needed.
    """
    transcriber = open_transcriber(checkpoint, decoding, ensemble)
    if transcriber.task not in ("transcribe", "translate"):
        raise CheckpointError(
            f"{checkpoint}: was trained to {transcriber.task}; only runs that transcribe or translate can be served"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(f"cannot listen at {host}:{port} ({error.strerror}): choose another --port") from error
    if warm_up:
        console, every = Console(stderr=True), shapes(max_seconds, seconds_per_batch)
        for shape in track(every, "compiling", console=console, transient=True, disable=not console.is_terminal):
            transcriber.encode([empty_batch(*shape)])
    name = transcriber.checkpoint.parent.parent.name or "model"  # of RUN/checkpoints/STEP
    service = Service(transcriber, name, limits, max_seconds, seconds_per_batch)
    server = make_server(make_app(service, names))
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    print(f"{name} at {url} (a page), {url}/v1/audio/transcriptions; Ctrl-C stops", flush=True)
    if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        print("warning: no password protects this address: anyone who can reach this machine can use it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # the server raises it again once it has stopped
        server.run(sockets=[listener])
