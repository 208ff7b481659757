"""The command `jax-speechlm serve`."""

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines.core.paths import AnyPath
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.serving.admission import Limits, Requests
from jax_speechlm.serving.app import make_app
from jax_speechlm.serving.live import LiveStreams, StreamLimits
from jax_speechlm.serving.server import make_server
from jax_speechlm.serving.service import Service
from jax_speechlm.serving.settings import Address
from jax_speechlm.serving.speech import Synthesis
from jax_speechlm.serving.streaming import REALTIME, Streaming
from jax_speechlm.serving.transcription import ROUTES, Transcription
from jax_speechlm.serving.wyoming import Wyoming
from jax_speechlm.tasks import resolve
from jax_speechlm.training.runs import task_of_run


def serve_run(
    checkpoints: Positional[tuple[Path, ...]],
    address: OmitArgPrefixes[Address] = Address(),  # noqa: B008  frozen
    decoding: OmitArgPrefixes[Decoding] = Decoding(),  # noqa: B008  frozen
    ensemble: tuple[Path, ...] = (),
    vocoder: str | None = None,
    limits: OmitArgPrefixes[Limits] = Limits(),  # noqa: B008  frozen
    max_seconds: float = 30.0,
    seconds_per_batch: float = 60.0,
    warm_up: bool = True,
    chunk_ms: int | None = None,
    streams: OmitArgPrefixes[StreamLimits] = StreamLimits(),  # noqa: B008  frozen
    languages: tuple[str, ...] = ("en",),
    adapter: tuple[str, ...] = (),
) -> None:
    """Serves trained runs over HTTP in OpenAI's form, and a page to try them on at /.

    A run that transcribes or translates answers POST /v1/audio/transcriptions or /v1/audio/translations, one that
    synthesises /v1/audio/speech; one server takes a run of each. Concurrent requests for transcripts share batches; a
    response does not depend on the others and equals the output of `jax-speechlm transcribe` or `synthesize`. Ctrl-C or
    SIGTERM lets requests in progress finish, for 20 s.

    Args:
      checkpoints: directories of finetuned runs, or their checkpoints/<step> folders, at most one for each route.
      address: where the service is reached.
      decoding: how text is decoded; the report of `eval` has the weights that it tuned.
      ensemble: further runs with the same tokenizer and frame rate; the mean of all probabilities is decoded.
      vocoder: the vocoder of a run that synthesises: a run, or griffin-lim.
      limits: limits of uploads and requests.
      max_seconds: longer recordings are encoded in overlapping windows of at most this length, cut at quiet places.
      seconds_per_batch: padded audio of a batch; affects memory and speed only.
      warm_up: compile the programs of all shapes before the first request; otherwise each when it is first needed.
      chunk_ms: length of the chunks of live streams, one that the run was trained on; by default the longest.
      streams: limits of live streams, which a run that was trained to stream answers at /v1/realtime and /.
      languages: of the runs, for Wyoming: Home Assistant offers a run for these languages only.
      adapter: NAME=FOLDER of LoRA in peft's format, trained on the run that transcribes; a request chooses it by the
        model RUN:NAME. Live streams are of the run itself.
    """
    requests = Requests(limits)
    services = [
        _voice(checkpoint, vocoder, requests)
        if "synthesize" in task_of_run(checkpoint).abilities
        else _transcription(
            checkpoint, decoding, ensemble, requests, max_seconds, seconds_per_batch, streams, chunk_ms, adapter
        )
        for checkpoint in checkpoints
    ]
    run_services(services, requests, address, languages, warm_up)


def run_services(
    services: Sequence[Service], requests: Requests, address: Address, languages: Sequence[str], warm_up: bool = True
) -> None:
    """Serves until Ctrl-C or SIGTERM; the arguments are as of `serve_run`."""
    host, listener, beside = address.host, _listen(address.host, address.port, "--port"), []
    if address.wyoming_port is not None:
        other = _listen(host, address.wyoming_port, "--wyoming-port")
        beside.append(lambda: Wyoming(services, requests, languages).run(other))
    app = make_app(requests, services, address.names, beside)
    if warm_up:
        console, programs = Console(stderr=True), [each for service in services for each in service.programs()]
        for run in track(programs, "compiling", console=console, transient=True, disable=not console.is_terminal):
            run()
    server = make_server(app)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    for service in services:
        print(f"{service.name} at {url}{service.page} (a page), {url}{service.route}; Ctrl-C stops", flush=True)
        if isinstance(service, Transcription) and service.streams_live:
            socket_url = url.replace("http", "ws", 1)
            print(f"live streams at {socket_url}{REALTIME} (OpenAI's form) and {socket_url} (Vosk's)", flush=True)
    if address.wyoming_port is not None:
        print(f"Wyoming (Home Assistant) at tcp://{host}:{other.getsockname()[1]}", flush=True)
    if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        print("warning: no password protects this address: anyone who can reach this machine can use it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # the server raises it again once it has stopped
        server.run(sockets=[listener])


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"cannot listen at {host}:{port} ({error.strerror}): choose another {option}") from error


def _transcription(
    checkpoint: Path,
    decoding: Decoding,
    ensemble: Sequence[Path],
    requests: Requests,
    max_seconds: float,
    seconds_per_batch: float,
    streams: StreamLimits,
    chunk_ms: int | None,
    adapters: Sequence[str],
) -> Transcription:
    transcriber = open_transcriber(checkpoint, decoding, ensemble)
    if transcriber.task not in ROUTES:
        raise CheckpointError(
            f"{checkpoint}: was trained to {transcriber.task}; only runs that transcribe, translate or synthesise can "
            "be served"
        )
    name = name_of(transcriber.checkpoint)
    streaming = _streaming(transcriber, name, streams, chunk_ms)
    by_name = dict(_adapter(transcriber, each) for each in adapters)
    return Transcription(transcriber, name, requests, max_seconds, seconds_per_batch, streaming, by_name)


def _adapter(transcriber: Transcriber, named: str) -> tuple[str, Transcriber]:
    """Returns the name and the transcriber of an adapter NAME=FOLDER."""
    name, _, folder = named.partition("=")
    if not (name and folder):
        raise ValueError(f"--adapter {named}: write NAME=FOLDER, as in jane=adapters/jane")
    return name, transcriber.with_adapter(folder)


def _streaming(transcriber: Transcriber, name: str, limits: StreamLimits, chunk_ms: int | None) -> Streaming:
    """Returns the live streams of a run, or why it has none; an error only if they were asked for."""
    if "stream" not in transcriber.abilities:
        return Streaming(None, name, limits, f"{name} cannot transcribe streams")
    try:
        batch = transcriber.streams(limits.max_streams, chunk_ms, Endpointing())
    except (CheckpointError, ValueError) as error:
        if chunk_ms is not None:
            raise
        return Streaming(None, name, limits, str(error))
    return Streaming(LiveStreams(batch), name, limits)


def _voice(checkpoint: Path, vocoder: str | None, requests: Requests) -> Synthesis:
    voice = resolve(task_of_run(checkpoint).predictor).load(checkpoint, vocoder=vocoder)
    return Synthesis(voice, name_of(voice.checkpoint), requests)


def name_of(checkpoint: AnyPath) -> str:
    """Returns the name in the API of the run of a checkpoint."""
    return checkpoint.parent.parent.name or "model"  # of RUN/checkpoints/STEP
