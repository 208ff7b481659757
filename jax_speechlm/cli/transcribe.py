"""`jax-speechlm transcribe` and `translate`: transcribe audio files to text, JSON or subtitles."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines.audio import decode, microphone
from jax_speechlm.core.config import Config
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.asr.hypothesis import Endpointing, Partial
from jax_speechlm.inference.load import TrainedModel, load, open_transcriber
from jax_speechlm.inference.predictor import print_lines
from jax_speechlm.inference.transcript import SUBTITLES, Format
from jax_speechlm.training.checkpoints import CheckpointError


class Output(Config):
    """Windows of long recordings, and the form of the transcripts.

    Attributes:
      format: "text" prints one line per file; "json" prints JSON lines with file, seconds, text, error, and segments,
        with word times in transcripts; "srt" and "vtt" are subtitles.
      out: folder to write one file per audio file to, talk.srt for talk.mp3, instead of printing.
      max_seconds: longer recordings are cut at quiet places into windows of at most this length, which overlap for
        transcripts.
      seconds_per_batch: padded audio per batch; affects memory and speed, not the result.
    """

    format: Format = "text"
    out: Path | None = None
    max_seconds: float = 30.0
    seconds_per_batch: float = 60.0


class Streaming(Config):
    """Transcription while audio is recorded.

    Attributes:
      stream: print a line of JSON for each partial transcript that changes, as it would come if the files were being
        recorded, and the transcript last; of runs that were trained to stream.
      microphone: record from the microphone until Ctrl-C instead of reading files, and print as with --stream.
      chunk_ms: length of a chunk, one that the run was trained on; None for the longest.
      endpoint_ms: silence after speech that ends a segment; None for no such end.
    """

    stream: bool = False
    microphone: bool = False
    chunk_ms: pydantic.PositiveInt | None = None
    endpoint_ms: pydantic.PositiveFloat | None = None

    @pydantic.model_validator(mode="after")
    def _needs_a_stream(self):
        if not (self.stream or self.microphone) and (self.chunk_ms or self.endpoint_ms):
            raise ValueError("--chunk-ms and --endpoint-ms are for streams: add --stream or --microphone")
        return self


def transcribe_files(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]] = (),
    decoding: OmitArgPrefixes[Decoding] = Decoding(),  # noqa: B008  frozen
    ensemble: tuple[Path, ...] = (),
    output: OmitArgPrefixes[Output] = Output(),  # noqa: B008  frozen
    streaming: OmitArgPrefixes[Streaming] = Streaming(),  # noqa: B008  frozen
    adapter: Path | None = None,
) -> None:
    """Transcribes audio files of any format, sample rate, length and number of channels.

    Args:
      checkpoint: a finetuned run's directory, or one of its checkpoints/<step> folders.
      files: the audio files.
      decoding: decoding settings; weights that `eval` tuned are in its report.
      ensemble: further runs with the same tokenizer and frame rate; the mean of their probabilities is decoded.
      adapter: folder of LoRA in peft's format, trained on this run.
    """
    if bool(files) == streaming.microphone:
        raise ValueError("name audio files, or record with --microphone; one of the two")
    if not (streaming.stream or streaming.microphone):
        _write(open_transcriber(checkpoint, decoding, ensemble, adapter), "transcribe", files, output)
        return
    if ensemble:
        raise ValueError("streams are decoded with one model: leave out --ensemble")
    if output not in (Output(), Output(format="json")):
        raise ValueError("a stream is printed as lines of JSON: leave out the settings of output")
    _print_stream(load(checkpoint, decoding, adapter), files, streaming)


def _print_stream(model: TrainedModel, files: Sequence[Path], streaming: Streaming) -> None:
    """Prints the transcripts of files that arrive chunk by chunk, or of the microphone without files."""
    silence = None if streaming.endpoint_ms is None else streaming.endpoint_ms / 1000
    endpointing = Endpointing(silence_seconds=silence)

    def describe(name: str) -> dict[str, Any]:
        stream, before = model.stream(chunk_ms=streaming.chunk_ms, endpointing=endpointing), Partial()
        for samples in stream.pieces(_blocks(name, streaming.microphone, stream.sample_rate)):
            partial = stream.accept(samples)
            if (partial.text, partial.stable) != (before.text, before.stable):
                print(json.dumps({"file": name, **partial.to_dict()}, ensure_ascii=False), flush=True)
            before = partial
        return json.loads(dataclasses.replace(stream.finalize(), file=name).to_json())

    if streaming.microphone:
        print(json.dumps(describe("microphone"), ensure_ascii=False))
    else:
        print_lines([str(file) for file in files], describe)


def _blocks(name: str, is_microphone: bool, rate: int) -> Iterable[np.ndarray]:
    if not is_microphone:
        return decode.stream(Path(name), rate=rate)
    print("recording; Ctrl-C ends it", file=sys.stderr, flush=True)
    return microphone.blocks(rate)


def translate_files(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]],
    beam_size: int = 1,
    output: OmitArgPrefixes[Output] = Output(),  # noqa: B008  frozen
) -> None:
    """Translates audio files of any format, sample rate, length and number of channels into English text.

    Args:
      checkpoint: directory of a speech_lm run with objective.task translate, or one of its checkpoints/<step> folders.
      files: the audio files.
      beam_size: above 1: beam search with this many hypotheses; else greedy search.
    """
    decoding = Decoding(decoder="beam", beam_size=beam_size) if beam_size > 1 else Decoding()
    _write(open_transcriber(checkpoint, decoding), "translate", files, output)


def _write(transcriber: Transcriber, task: str, files: Sequence[Path], output: Output) -> None:
    """Prints or writes the transcripts of a run that was trained for `task`."""
    format, out = output.format, output.out
    if transcriber.task != task:
        verb = "generate" if transcriber.task in ("extend", "answer") else transcriber.task
        raise CheckpointError(
            f"{transcriber.checkpoint}: was trained to {transcriber.task}, not to {task}: use jax-speechlm {verb}"
        )
    if out is None and format in SUBTITLES and len(files) > 1:
        raise ValueError(f"subtitles of {len(files)} files would run into each other: name a folder with --out")
    if out is not None:
        if len({file.stem for file in files}) < len(files):
            raise ValueError(f"files of one name would overwrite each other in {out}: transcribe them one by one")
        out.mkdir(parents=True, exist_ok=True)
    failed = 0
    options = {"max_seconds": output.max_seconds, "seconds_per_batch": output.seconds_per_batch}
    with _progress(files) as progress:
        for file, transcript in zip(files, transcriber.transcribe(files, progress=progress, **options), strict=True):
            if transcript.error is not None:
                failed += 1
                print(f"error: {transcript.error}", file=sys.stderr)
                if format != "json":
                    continue
            elif not transcript.text:
                print(f"note: no words were recognised in {file}", file=sys.stderr)
            if format in SUBTITLES:
                text = SUBTITLES[format](transcript.segments)
            elif format == "json":
                text = transcript.to_json() + "\n"
            else:
                prefix = "" if out is not None or len(files) == 1 else f"{transcript.file}\t"
                text = f"{prefix}{transcript.text}\n"
            if out is not None:
                (out / f"{file.stem}.{'txt' if format == 'text' else format}").write_text(text, encoding="utf-8")
            else:
                print(text, end="", flush=True)
    if failed:
        raise decode.DataError(f"{failed} of {len(files)} files could not be transcribed")


@contextlib.contextmanager
def _progress(files: Sequence[Path]) -> Iterator[Callable[[float], None]]:
    """Shows a progress bar over the audio of all files on a terminal; yields the function that updates it."""
    console = Console(stderr=True)
    total = sum(decode.length(file) for file in files) if console.is_terminal else 0.0
    columns = (
        TextColumn("transcribed"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[minutes]} of audio"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("transcribed", total=total or None, minutes="0 min")
        yield lambda seconds: bar.update(task, completed=seconds, minutes=f"{seconds / 60:.1f} min")
