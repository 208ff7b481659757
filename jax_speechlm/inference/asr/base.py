"""Base class of models that transcribe recordings.

Recordings are streamed, so memory does not grow with their length: audio is decoded block by block and cut into windows
(`segmentation.windows`), windows of one or several recordings are encoded as a batch, and the outputs are cut into
utterances, which are decoded to text.
"""

import abc
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from data_pipelines.audio.decode import AudioError
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.paths import AnyPath
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.text.scripts import join
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.decoding.automaton import Accepted, TokenAutomaton
from jax_speechlm.decoding.lm.ngram import SPACE
from jax_speechlm.inference.segmentation import (
    AudioWindow,
    Recording,
    Samples,
    blocks_of,
    in_batches,
    name_of,
    samples_in,
    shape_of,
    windows,
)
from jax_speechlm.inference.transcript import Segment, Transcript
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training.runs import LoadedRun

_DECODED_AT_ONCE = 16  # utterances, whose beam searches run in lockstep
_CONTEXT_SECONDS = 2.0  # context on either side of a window, for models that join windows

Encode = Callable[[list[Samples]], list[Any]]
"""Returns the model's output for each window, of a type that depends on the transcriber."""

T = TypeVar("T")


class Transcription(NamedTuple):
    """The text of one utterance, and the log-probability per token of its best CTC path, or of the text, in nats."""

    text: str
    avg_logprob: float


class _Piece(NamedTuple):
    """A window of one of several recordings and its encoding, or the error that ended the recording."""

    recording: int
    window: AudioWindow | AudioError
    output: Any = None


class Transcriber(abc.ABC):
    """A trained model that transcribes audio; `run` is its checkpoint."""

    run: LoadedRun
    joins_windows: ClassVar[bool] = False
    """Whether the outputs of overlapping windows can be joined; else each window is an utterance."""
    can_be_held: ClassVar[bool] = False
    """Whether the decoding can be held to an automaton (`within`)."""
    task: str = "transcribe"
    """Task that the model was trained for (`objectives.speech_text.speech_lm.Task`)."""
    separator: str = " "
    """String between the texts of segments."""

    @property
    def checkpoint(self) -> AnyPath:
        return self.run.checkpoint

    @property
    def experiment(self) -> Experiment:
        return self.run.experiment

    @property
    def tokenizer(self) -> Tokenizer:
        return self.run.tokenizer

    @property
    def params(self) -> Any:
        return self.run.params

    @abc.abstractmethod
    def transcribe_batches(self, batches: Iterable[Batch]) -> dict[int, Transcription]:
        """Transcribes batches; returns texts and log-probabilities by `example_id`, without filler rows."""

    def recognize(self, batches: Iterable[Batch]) -> dict[int, str]:
        """Transcribes batches; returns texts by `example_id`, without filler rows."""
        return {row: result.text for row, result in self.transcribe_batches(batches).items()}

    def within(self, batches: Iterable[Batch], automaton: TokenAutomaton) -> dict[int, Accepted]:
        """Finds the best transcript of every row among those that an automaton over the tokens accepts.

        Returns:
          Transcripts by `example_id`, without filler rows.

        Raises:
          CheckpointError: the decoding of such runs cannot be held to an automaton.
        """
        del automaton
        raise CheckpointError(
            f"{self.checkpoint}: the decoding of runs that were trained by {self.experiment.objective.kind} cannot be "
            "held to a grammar, only that of CTC and transducers"
        )

    def with_adapter(self, adapter: str | os.PathLike) -> "Transcriber":
        """Returns the transcriber with an adapter (`inference.adapters`) of its run; both share the base's arrays.

        Raises:
          ExportError: the adapter cannot be read, or is of another model.
          ValueError: there is an adapter already, or such runs take none.
        """
        raise ValueError(
            f"{self.checkpoint} takes no adapter {adapter}: only runs that were trained by ctc, transducer or aed do"
        )

    def with_prompt(self, text: str) -> "Transcriber":
        """Returns the transcriber with other text that it reads before each window; itself if its model reads none."""
        del text
        return self

    @property
    def _adapter_description(self) -> str:
        return "" if self.run.adapter is None else f", adapter {self.run.adapter}"

    @abc.abstractmethod
    def encode(self, batches: Iterable[Batch]) -> dict[int, Any]:
        """Runs the model on batches; returns the inputs of `utterances` by `example_id`, without filler rows."""

    @abc.abstractmethod
    def utterances(self, windows: Iterable[tuple[AudioWindow, Any]]) -> Iterator[Any]:
        """Cuts a recording's windows, with outputs of `encode` or None for silence, into the inputs of `decode`."""

    @abc.abstractmethod
    def decode(self, utterances: Sequence[Any]) -> list[Segment]:
        """Decodes each utterance to text."""

    @property
    @abc.abstractmethod
    def decoding_description(self) -> str:
        """Description of the decoding method, for reports."""

    def transcribe(
        self,
        recordings: Iterable[Recording],
        *,
        max_seconds: float = 30.0,
        seconds_per_batch: float = 60.0,
        progress: Callable[[float], None] | None = None,
    ) -> Iterator[Transcript]:
        """Transcribes audio of any format, rate, length and number of channels.

        Args:
          max_seconds: longer recordings are cut at quiet places into windows of at most this length.
          seconds_per_batch: padded audio per batch; affects memory and speed, not the result.
          progress: called with the seconds of audio processed so far.

        Yields:
          The transcripts in order, each independent of other recordings. If a recording cannot be read, its transcript
          has an error.
        """
        recordings = list(recordings)
        encode = functools.partial(self.encode_audio, seconds_per_batch=seconds_per_batch)
        pieces = (
            piece
            for number, recording in enumerate(recordings)
            for piece in self._pieces(number, recording, max_seconds)
        )

        def on_samples(num_samples: int) -> None:
            if progress is not None:
                progress(num_samples / self.experiment.sample_rate)

        segments: list[Segment] = []
        utterances = self._utterances(_encoded(pieces, encode, seconds_per_batch, on_samples))
        for group in _in_groups(utterances, _DECODED_AT_ONCE):
            decoded = iter(self.decode([each for each in group if not isinstance(each, _Piece)]))
            for each in group:
                if isinstance(each, _Piece):
                    yield self._transcript(recordings[each.recording], each.window, segments)
                    segments = []
                else:
                    segments.append(next(decoded))

    def segments(
        self,
        blocks: Iterable[Samples],
        encode: Encode,
        *,
        max_seconds: float = 30.0,
        seconds_per_batch: float = 60.0,
        at_once: int = _DECODED_AT_ONCE,
    ) -> Iterator[Segment]:
        """Transcribes one recording and yields its segments as they are decoded.

        Args:
          blocks: its samples at the front end's rate, which may raise `AudioError`.
          encode: encodes windows, as `encode_audio` does.
          at_once: utterances decoded together; affects speed and latency, not the result.
        """
        pieces = (_Piece(0, window) for window in self._windows(blocks, max_seconds))
        encoded = ((piece.window, piece.output) for piece in _encoded(pieces, encode, seconds_per_batch))
        for group in _in_groups(self.utterances(encoded), at_once):
            yield from self.decode(group)

    def encode_audio(self, parts: Sequence[Samples], seconds_per_batch: float = 60.0) -> list[Any]:
        """Encodes windows of audio; returns one output per window."""
        outputs = self.encode(in_batches(parts, seconds_per_batch))
        return [outputs[number] for number in range(len(parts))]

    def text_of(self, segments: Sequence[Segment]) -> str:
        """Returns the joined text of a recording's segments."""
        return join((" ".join(segment.text.split()) for segment in segments), self.separator)

    @property
    def _longest(self) -> int | None:
        """Samples of a window, or None where the front end takes recordings as long as they are."""
        seconds = getattr(self.experiment.frontend.mel, "window_seconds", None)
        return None if seconds is None else seconds * self.experiment.sample_rate

    def _windows(self, blocks: Iterable[Samples], max_seconds: float) -> Iterator[AudioWindow]:
        rate = self.experiment.sample_rate
        max_seconds = max_seconds if self._longest is None else min(max_seconds, self._longest / rate)
        overlap = min(_CONTEXT_SECONDS, max_seconds / 8)
        return windows(
            blocks,
            samples_in(max_seconds, rate),
            sample_rate=rate,
            overlap=int(overlap * rate) if self.joins_windows else 0,
            multiple=self.experiment.frame_samples if self.joins_windows else 1,
            skip_silence=True,
        )

    def _pieces(self, number: int, recording: Recording, max_seconds: float) -> Iterator[_Piece]:
        try:
            for window in self._windows(blocks_of(recording, self.experiment.sample_rate), max_seconds):
                yield _Piece(number, window)
        except AudioError as error:
            yield _Piece(number, error)

    def _utterances(self, pieces: Iterable[_Piece]) -> Iterator[Any]:
        """Yields the utterances of a recording, then its last piece, for each recording."""
        for _, group in itertools.groupby(pieces, key=lambda piece: piece.recording):
            end: list[_Piece] = []
            yield from self.utterances(_windows_of(group, end))
            yield end[0]

    def _transcript(self, recording: Recording, end: AudioWindow | AudioError, segments: list[Segment]) -> Transcript:
        name = name_of(recording)
        if isinstance(end, AudioError):
            return Transcript(name, "", 0.0, str(end))
        return Transcript(name, self.text_of(segments), end.end / self.experiment.sample_rate, None, tuple(segments))


def separator_of(tokenizer: Tokenizer) -> str:
    """Returns the string between the texts of segments: a space, unless the tokenizer's language has none."""
    return " " if any(SPACE in piece for piece in tokenizer.pieces) else ""


def _encoded(
    pieces: Iterable[_Piece],
    encode: Encode,
    seconds_per_batch: float,
    progress: Callable[[int], None] | None = None,
) -> Iterator[_Piece]:
    """Yields the pieces with their encodings, computed a batch of windows at a time."""
    waiting: list[_Piece] = []
    samples = encoded = 0

    def flush() -> Iterator[_Piece]:
        nonlocal encoded
        parts = [part for piece in waiting if (part := _samples(piece)) is not None]
        outputs = iter(encode(parts) if parts else [])
        for piece in waiting:
            if isinstance(piece.window, AudioWindow):
                encoded += piece.window.end - piece.window.start
            yield piece if _samples(piece) is None else piece._replace(output=next(outputs))
        if progress is not None:
            progress(encoded)

    for piece in pieces:
        waiting.append(piece)
        part = _samples(piece)
        samples += 0 if part is None else shape_of(len(part))
        if samples >= seconds_per_batch * DEFAULT_SAMPLE_RATE:
            yield from flush()
            waiting, samples = [], 0
    yield from flush()


def _windows_of(pieces: Iterable[_Piece], end: list[_Piece]) -> Iterator[tuple[AudioWindow, Any]]:
    """Yields a recording's windows and their encodings; stores its last piece in `end`."""
    for piece in pieces:
        end[:] = [piece]
        if isinstance(piece.window, AudioWindow):
            yield piece.window, piece.output


def _samples(piece: _Piece) -> Samples | None:
    return piece.window.samples if isinstance(piece.window, AudioWindow) else None


def _in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
