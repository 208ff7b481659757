"""Stretches and channels of long recordings; any number of them are read in one pass over a recording."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.audio.clips import StoredFile, check_path, file_stamp, tolerance, wrong_length
from data_pipelines.audio.decode import AudioError, AudioTooLongError, stream
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a sound file.

    Attributes:
      source: path of the file, or a file stored elsewhere.
      start: seconds from the beginning of the file.
      end: seconds from the beginning; None for the rest of the file.
      channels: to average, counted from 0; empty for all.
      seconds: stated length of the file; another length is an error. None where no length is stated.
    """

    source: str | StoredFile
    start: float = 0.0
    end: float | None = None
    channels: tuple[int, ...] = ()
    seconds: float | None = None

    def decode(self, max_seconds: float, rate: int = DEFAULT_SAMPLE_RATE) -> NDArray[np.int16]:
        ((_, outcome),) = decode_stretches([self], max_seconds, rate)
        if isinstance(outcome, AudioError):
            raise outcome
        return outcome

    def fingerprint(self) -> str:
        stamp = file_stamp(self.source) if isinstance(self.source, str) else self.source.fingerprint()
        return f"{stamp} {self.start} {self.end} {self.channels} {self.seconds}"

    @property
    def container(self) -> Hashable:
        return self.source

    @staticmethod
    def decode_together(
        audio: Sequence["Stretch"], max_seconds: float, rate: int
    ) -> Iterator[tuple[int, NDArray[np.int16] | AudioError]]:
        return decode_stretches(audio, max_seconds, rate)

    @property
    def span(self) -> str:
        """Times and channels, for ids and messages: `1.5:4 ch0`."""
        end = "" if self.end is None else f"{self.end:.10g}"
        return f"{self.start:.10g}:{end}{''.join(f' ch{channel}' for channel in self.channels)}"

    def __str__(self) -> str:
        return f"{self.source}[{self.span}]"


def decode_stretches(
    stretches: Sequence[Stretch], max_seconds: float, rate: int = DEFAULT_SAMPLE_RATE
) -> Iterator[tuple[int, NDArray[np.int16] | AudioError]]:
    """Decodes stretches of one recording in one pass, up to the end of the last.

    Memory use is one block of the recording and the stretches that are being read.

    Yields:
      Pairs of an index into `stretches` and its int16 [samples], mono, or its error, in the order of their
      ends.
    """
    readers: list[_Reader] = []
    for index, stretch in enumerate(stretches):
        if stretch.end is not None and stretch.end - stretch.start > max_seconds:
            yield index, AudioTooLongError(str(stretch), max_seconds)
        else:
            readers.append(_Reader(index, stretch, max_seconds, rate))
    if not readers:
        return
    position = 0
    try:
        source = readers[0].stretch.source
        if isinstance(source, str):
            check_path(source)
        content = source if isinstance(source, str) else source.content()
        for block in stream(content, name=str(source), rate=rate, mix=False):
            for reader in readers:
                reader.read(block, position)
            position += len(block)
            yield from ((reader.index, reader.outcome) for reader in readers if reader.outcome is not None)
            readers = [reader for reader in readers if reader.outcome is None]
            if not readers:
                return
    except AudioError as error:
        yield from ((reader.index, error) for reader in readers)
        return
    yield from ((reader.index, reader.close(position)) for reader in readers)


class _Reader:
    """Collects the samples of one stretch; `outcome` is set when it is complete."""

    def __init__(self, index: int, stretch: Stretch, max_seconds: float, rate: int):
        self.index, self.stretch = index, stretch
        self.outcome: NDArray[np.int16] | AudioError | None = None
        self._rate = rate
        self._start = round(stretch.start * rate)
        self._end = None if stretch.end is None else round(stretch.end * rate)
        self._max_seconds = max_seconds
        self._parts: list[NDArray[np.int16]] = []
        self._num_samples = 0

    def read(self, block: NDArray[np.int16], position: int) -> None:
        """Takes the samples of the stretch from int16 [samples, channels] that begin at sample `position`."""
        first, last = max(self._start - position, 0), len(block) if self._end is None else self._end - position
        if missing := [channel for channel in self.stretch.channels if channel >= block.shape[1]]:
            remedy = f"the file has {block.shape[1]}, counted from 0: correct the channel"
            self.outcome = AudioError(str(self.stretch), f"no channel {missing[0]}", remedy)
            return
        if first < min(last, len(block)):
            self._parts.append(_mono(block[first:last], self.stretch.channels))
            self._num_samples += len(self._parts[-1])
        if self._num_samples > self._max_seconds * self._rate:
            self.outcome = AudioTooLongError(str(self.stretch), self._max_seconds)
        elif self._end is not None and last <= len(block):
            self.outcome = np.concatenate(self._parts)

    def close(self, num_samples: int) -> NDArray[np.int16] | AudioError:
        """Returns the stretch if the recording ended, after `num_samples`, before the stretch did."""
        length = num_samples / self._rate
        end = self.stretch.start if self.stretch.end is None else self.stretch.end
        if not self._num_samples or end - length > tolerance(end - self.stretch.start):
            remedy = f"the recording lasts {length:.2f} s: correct the times, which are in seconds"
            return AudioError(str(self.stretch), "stretch outside the recording", remedy)
        if (wrong := wrong_length(str(self.stretch.source), length, self.stretch.seconds)) is not None:
            return wrong
        return np.concatenate(self._parts)


def _mono(block: NDArray[np.int16], channels: Sequence[int]) -> NDArray[np.int16]:
    chosen = block[:, list(channels)] if channels else block
    return chosen[:, 0].copy() if chosen.shape[1] == 1 else np.rint(chosen.mean(axis=1)).astype(np.int16)
