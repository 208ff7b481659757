"""From audio to text, by whatever kind of trained model: what recognizers have in common.

A recording goes through in a stream, so that hours of it take no more memory than minutes: it is decoded block by
block, cut into windows (`windows.py`), windows of one or many recordings are heard together, what was heard is cut into
utterances and these are spelled.
"""

import abc
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data_pipelines.audio.decode import AudioError
from data_pipelines.core.audio_format import SAMPLE_RATE
from data_pipelines.text.scripts import join
from jax_speechlm.core.batch import Batch
from jax_speechlm.inference.segmentation import (
    AudioWindow,
    Recording,
    Samples,
    blocks_of,
    in_batches,
    samples_in,
    shape_of,
    windows,
)
from jax_speechlm.inference.transcript import Segment, Transcript
from jax_speechlm.recipes.experiment import Experiment

_SPELLED_AT_ONCE = 16  # utterances: beam searches go through them in lockstep
_CONTEXT_SECONDS = 2.0  # that a window hears beyond either end of its stretch, where the model can make use of them

Encode = Callable[[list[Samples]], list[Any]]
"""Gives for each window what the model makes of it; its kind is the transcriber's own."""

T = TypeVar("T")


class Transcription(NamedTuple):
    """What was recognised in one utterance.

    Attributes:
      avg_logprob: the model's log-probability of it (of the best CTC path, or of the text), in nats a token.
    """

    text: str
    avg_logprob: float


class _Piece(NamedTuple):
    """A window of one of several recordings, or the error behind its last; and what was made of it."""

    recording: int
    window: AudioWindow | AudioError
    found: Any = None


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
    def transcribe_batches(self, batches: Iterable[Batch]) -> dict[int, Transcription]:
        """The same, with how sure the model is of each text."""

    @abc.abstractmethod
    def encode(self, batches: Iterable[Batch]) -> dict[int, Any]:
        """What `utterances` goes on with of every row, by `example_id`: all that the model itself has to do."""

    @abc.abstractmethod
    def utterances(self, heard: Iterable[tuple[AudioWindow, Any]]) -> Iterator[Any]:
        """What `decode` takes, from the windows of one recording in order and what `encode` found in each.

        Of a window of silence that is None.
        """

    @abc.abstractmethod
    def decode(self, utterances: Sequence[Any]) -> list[Segment]:
        """The text of each utterance."""

    @property
    def task(self) -> str:
        """What it was trained for (`objectives.speech_lm.Task`)."""
        return "transcribe"

    @property
    @abc.abstractmethod
    def decoding_description(self) -> str:
        """How texts are found, for reports."""

    @property
    def joins_windows(self) -> bool:
        """Whether what is heard in overlapping windows can be put together; else each window is an utterance."""
        return False

    @property
    def separator(self) -> str:
        """What stands between the texts of segments."""
        return " "

    def transcribe(
        self,
        recordings: Iterable[Recording],
        *,
        max_seconds: float = 30.0,
        seconds_per_batch: float = 60.0,
        progress: Callable[[float], None] | None = None,
    ) -> Iterator[Transcript]:
        """Transcribes audio of any format, rate, length and number of channels, in order.

        What a recording gives does not depend on the others. One that cannot be read gives a `Transcript` with an error
        and does not stop the others.

        Args:
          max_seconds: a longer recording is heard in windows of at most this length, cut at quiet places.
          seconds_per_batch: padded audio at a time: memory and speed, never the result.
          progress: is told, as it goes, how many seconds of audio have been heard.
        """
        recordings = list(recordings)

        def encode(parts):
            return self.encode_audio(parts, seconds_per_batch)

        pieces = itertools.chain.from_iterable(
            self._pieces(number, recording, max_seconds) for number, recording in enumerate(recordings)
        )
        segments: list[Segment] = []
        said = self._utterances(_heard(pieces, encode, seconds_per_batch, progress))
        for group in _in_groups(said, _SPELLED_AT_ONCE):
            spelled = iter(self.decode([each for each in group if not isinstance(each, _Piece)]))
            for each in group:
                if isinstance(each, _Piece):
                    yield self._transcript(recordings[each.recording], each.window, segments)
                    segments = []
                else:
                    segments.append(next(spelled))

    def segments(
        self,
        blocks: Iterable[Samples],
        encode: Encode | None = None,
        *,
        max_seconds: float = 30.0,
        seconds_per_batch: float = 60.0,
        at_once: int = _SPELLED_AT_ONCE,
    ) -> Iterator[Segment]:
        """The segments of one recording, as soon as they are found.

        Args:
          blocks: its samples at 16 kHz.
          listen: what hears windows; by default this model, here and now.
          at_once: utterances that are decoded together: speed, and how soon the first is there; never the result.

        Raises:
          AudioError: as the blocks raise it.
        """
        encode = encode or (lambda parts: self.encode_audio(parts, seconds_per_batch))
        pieces = (_Piece(0, window) for window in self._windows(blocks, max_seconds))
        heard = ((piece.window, piece.found) for piece in _heard(pieces, encode, seconds_per_batch))
        for group in _in_groups(self.utterances(heard), at_once):
            yield from self.decode(group)

    def encode_audio(self, parts: Sequence[Samples], seconds_per_batch: float = 60.0) -> list[Any]:
        """`encode`, to windows."""
        found = self.encode(in_batches(parts, seconds_per_batch))
        return [found[number] for number in range(len(parts))]

    def text_of(self, segments: Sequence[Segment]) -> str:
        """The whole text of a recording's segments."""
        return join((" ".join(segment.text.split()) for segment in segments), self.separator)

    def _windows(self, blocks: Iterable[Samples], max_seconds: float) -> Iterator[AudioWindow]:
        overlap = min(_CONTEXT_SECONDS, max_seconds / 8) if self.joins_windows else 0.0
        return windows(
            blocks,
            samples_in(max_seconds),
            overlap=int(overlap * SAMPLE_RATE),
            multiple=self.experiment.frame_samples if self.joins_windows else 1,
            skip_silence=True,
        )

    def _pieces(self, number: int, recording: Recording, max_seconds: float) -> Iterator[_Piece]:
        try:
            for window in self._windows(blocks_of(recording), max_seconds):
                yield _Piece(number, window)
        except AudioError as error:
            yield _Piece(number, error)

    def _utterances(self, pieces: Iterable[_Piece]) -> Iterator[Any]:
        """The utterances of each recording, then its last piece."""
        for _, group in itertools.groupby(pieces, key=lambda piece: piece.recording):
            end: list[_Piece] = []
            yield from self.utterances(_windows_of(group, end))
            yield end[0]

    def _transcript(self, recording: Recording, end: AudioWindow | AudioError, segments: list[Segment]) -> Transcript:
        name = str(recording) if isinstance(recording, str | os.PathLike) else "audio"
        if isinstance(end, AudioError):
            return Transcript(name, "", 0.0, str(end))
        return Transcript(name, self.text_of(segments), end.end / SAMPLE_RATE, None, tuple(segments))


def _heard(
    pieces: Iterable[_Piece],
    encode: Encode,
    seconds_per_batch: float,
    progress: Callable[[float], None] | None = None,
) -> Iterator[_Piece]:
    """The same pieces with what was found in each, heard as many at a time as fill a batch."""
    waiting: list[_Piece] = []
    samples = seconds = 0

    def listened() -> Iterator[_Piece]:
        nonlocal seconds
        audible = [part for each in waiting if (part := _samples(each)) is not None]
        found = iter(encode(audible) if audible else [])
        for each in waiting:
            if isinstance(each.window, AudioWindow):
                seconds += (each.window.end - each.window.start) / SAMPLE_RATE
            yield each if _samples(each) is None else each._replace(found=next(found))
        if progress is not None:
            progress(seconds)

    for piece in pieces:
        waiting.append(piece)
        part = _samples(piece)
        samples += 0 if part is None else shape_of(len(part))
        if samples >= seconds_per_batch * SAMPLE_RATE:
            yield from listened()
            waiting, samples = [], 0
    yield from listened()


def _windows_of(pieces: Iterable[_Piece], end: list[_Piece]) -> Iterator[tuple[AudioWindow, Any]]:
    """A recording's windows and what was found in them; leaves its last piece in `end`."""
    for piece in pieces:
        end[:] = [piece]
        if isinstance(piece.window, AudioWindow):
            yield piece.window, piece.found


def _samples(piece: _Piece) -> Samples | None:
    return piece.window.samples if isinstance(piece.window, AudioWindow) else None


def _in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
