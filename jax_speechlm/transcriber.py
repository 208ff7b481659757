"""From audio files to text, by whatever kind of trained model: what recognizers have in common."""

import abc
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int16
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines import audio, plan
from jax_speechlm.batch import Batch
from jax_speechlm.decoder import Decoding
from jax_speechlm.experiment import Experiment
from jax_speechlm.trained import objective_kind
from jax_speechlm.training.checkpoints import CheckpointError

_PAUSE_SECONDS = 0.2  # what counts as a place to cut a long recording


class Heard(NamedTuple):
    """What was recognised in one utterance.

    Attributes:
      confidence: the model's log-probability of it (of the best CTC path, or of the text), in nats a token.
    """

    text: str
    confidence: float


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was heard in one file; `error` says why nothing could be, and is None otherwise."""

    file: str
    text: str
    seconds: float
    error: str | None = None


class Transcriber(abc.ABC):
    """A trained model that writes what it hears.

    Attributes:
      checkpoint: its folder.
      experiment: the run that it is from.
    """

    checkpoint: Path
    experiment: Experiment

    @abc.abstractmethod
    def recognize(self, batches: Iterable[Batch]) -> dict[int, str]:
        """The text of every row of the batches, by `example_id`; filler rows are left out."""

    @abc.abstractmethod
    def hear(self, batches: Iterable[Batch]) -> dict[int, Heard]:
        """The same, with how sure the model is of each text."""

    @property
    def task(self) -> str:
        """What it was trained for (`objectives.speech_lm.Task`)."""
        return "transcribe"

    @property
    @abc.abstractmethod
    def how(self) -> str:
        """How texts are found, for reports."""

    def transcribe(self, files: Sequence[str | Path], *, max_seconds: float = 30.0) -> Iterator[Transcript]:
        """Transcribes audio files of any format, rate, length and number of channels, in order.

        A recording longer than `max_seconds` is cut at its quietest places and its parts' texts are joined. A file that
        cannot be read gives a `Transcript` with an error and does not stop the others.
        """
        for file in files:
            try:
                samples = audio.decode(file)
            except audio.AudioError as error:
                yield Transcript(str(file), "", 0.0, str(error))
                continue
            parts = list(cut_at_pauses(samples, max_seconds))
            texts = self.recognize(in_batches(parts))
            text = " ".join(texts[number] for number in range(len(parts)))
            yield Transcript(str(file), " ".join(text.split()), len(samples) / audio.SAMPLE_RATE)


def in_batches(parts: Sequence[Int16[np.ndarray, "..."]]) -> Iterator[Batch]:
    """Recordings as batches; `example_id` is the place among them."""
    lengths = np.array([len(part) for part in parts])
    # Coarse shapes, so that many files of like length share one compiled program.
    planned = plan.make_eval_plan(lengths, seconds_per_batch=60.0, batch_multiple=1, frame_samples=2 * 16_000)
    for step in range(planned.steps_per_epoch):
        rows = planned.batch(step).rows
        bucket = planned.buckets[planned.batch(step).bucket]
        batch = {
            "audio": np.zeros((len(rows), bucket.num_samples), np.int16),
            "audio_length": np.where(rows >= 0, lengths[rows], 0).astype(np.int32),
            "example_id": rows.astype(np.int32),
            "weight": (rows >= 0).astype(np.float32),
        }
        for place, row in enumerate(rows):
            if row >= 0:
                batch["audio"][place, : lengths[row]] = parts[row]
        yield batch


def open_transcriber(
    path: str | Path,
    decoding: Decoding = Decoding(),  # noqa: B008  frozen
    ensemble: Sequence[str | Path] = (),
) -> Transcriber:
    """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, of any objective that writes what it hears.

    Args:
      ensemble: further runs that hear with it, where it spells by CTC.

    Raises:
      CheckpointError: there is no readable checkpoint, its model was not trained to spell, or an ensemble's members do
        not fit together.
      DataError, ValueError: `decoding` does not fit it.
    """
    if objective_kind(path) == "speech_lm":
        from jax_speechlm.speech_language_model import SpeechLanguageModel

        if ensemble:
            raise ValueError(f"{path}: was trained by speech_lm; only runs that spell by CTC make an ensemble")
        return SpeechLanguageModel.load(path, decoding)
    from jax_speechlm.recognizer import Recognizer

    return Recognizer.load(path, decoding, ensemble)


def cut_at_pauses(samples: Int16[np.ndarray, " samples"], max_seconds: float) -> Iterator[Int16[np.ndarray, "..."]]:
    """Cuts a recording into parts of at most `max_seconds`, each at the quietest place of its second half."""
    limit, pause = int(max_seconds * audio.SAMPLE_RATE), int(_PAUSE_SECONDS * audio.SAMPLE_RATE)
    while len(samples) > limit:
        energy = np.cumsum(samples[limit // 2 : limit].astype(np.float64) ** 2)
        cut = limit // 2 + int((energy[pause:] - energy[:-pause]).argmin()) + pause // 2
        yield samples[:cut]
        samples = samples[cut:]
    yield samples


def transcribe_files(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]],
    decoding: OmitArgPrefixes[Decoding] = Decoding(),  # noqa: B008  frozen
    ensemble: tuple[Path, ...] = (),
    format: Literal["text", "json"] = "text",
    max_seconds: float = 30.0,
) -> None:
    """Turns audio files into text. Any format, sample rate, length and number of channels.

    Args:
      checkpoint: a finetuned run's directory, or one of its checkpoints/<step> folders.
      files: the audio files.
      decoding: how the text is found; weights that `eval` tuned are in its report.
      ensemble: further runs with its tokenizer and frame rate; the mean of all their probabilities is decoded.
      format: "text" prints a line a file; "json" prints JSON lines with the file, its seconds, text and error.
      max_seconds: longer recordings are cut at pauses into parts of at most this length.
    """
    _write(open_transcriber(checkpoint, decoding, ensemble), files, "transcribe", format, max_seconds)


def translate_files(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]],
    beam_size: int = 1,
    format: Literal["text", "json"] = "text",
    max_seconds: float = 30.0,
) -> None:
    """Turns audio files into English text. Any format, sample rate, length and number of channels.

    Args:
      checkpoint: directory of a speech_lm run with objective.task translate, or one of its checkpoints/<step> folders.
      files: the audio files.
      beam_size: above 1: a beam search that keeps this many texts; else the likeliest token is taken each time.
      format: "text" prints a line a file; "json" prints JSON lines with the file, its seconds, text and error.
      max_seconds: longer recordings are cut at pauses into parts of at most this length.
    """
    decoding = Decoding(decoder="beam", beam_size=beam_size) if beam_size > 1 else Decoding()
    _write(open_transcriber(checkpoint, decoding), files, "translate", format, max_seconds)


def _write(transcriber: Transcriber, files: Sequence[Path], task: str, format: str, max_seconds: float) -> None:
    failed = 0
    if transcriber.task != task:
        verb = "generate" if transcriber.task in ("extend", "answer") else transcriber.task
        raise CheckpointError(
            f"{transcriber.checkpoint}: was trained to {transcriber.task}, not to {task}: use jax-speechlm {verb}"
        )
    for transcript in transcriber.transcribe(files, max_seconds=max_seconds):
        failed += transcript.error is not None
        if format == "json":
            print(json.dumps(dataclasses.asdict(transcript), ensure_ascii=False), flush=True)
        elif transcript.error is None:
            print(f"{transcript.file}\t{transcript.text}" if len(files) > 1 else transcript.text, flush=True)
        else:
            print(f"error: {transcript.error}", file=sys.stderr)
    if failed:
        raise audio.DataError(f"{failed} of {len(files)} files could not be transcribed")
