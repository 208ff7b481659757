"""Decoding of audio files in any format to mono int16 at any rate, and measurement of levels.

Files are decoded and resampled in separate processes (`data_pipelines.audio.process`) with limits on memory and
processor time, because a file from an unknown source may crash or exhaust a decoder. A file is decoded block by block:
`decode` holds the whole result (115 MB per hour), `stream` one block.
"""

import contextlib
import io
import logging
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data_pipelines.audio import process
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.errors import DataError

_FULL_SCALE = 32_768
_RATES = 1_000, 1_000_000  # Hz; other rates come from damaged headers: a few bytes would last hours, or soxr fails
_log = logging.getLogger(__name__)


class AudioError(DataError):
    """Audio that is missing, empty, corrupt or without samples; `reason` is short enough to count by."""

    def __init__(self, name: str, reason: str, remedy: str):
        super().__init__(f"{name}: {reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


class AudioTooLongError(AudioError):
    """Audio longer than the caller's limit, detected without decoding the rest."""

    def __init__(self, name: str, max_seconds: float):
        super().__init__(
            name, "too long", f"it lasts over {max_seconds:g} s: cut it into utterances or raise the limit"
        )


def decode(
    source: str | Path | bytes,
    *,
    name: str = "",
    rate: int = DEFAULT_SAMPLE_RATE,
    max_seconds: float = math.inf,
    check: Callable[[], None] | None = None,
) -> NDArray[np.int16]:
    """Decodes a file, or its bytes, of any common format, rate and channel count.

    Channels are averaged. Samples of a mono 16-bit file of the same rate are returned unchanged. If there are several
    audio streams, the first is decoded. Silence replaces gaps, late starts and damaged packets, whose duration is
    logged as a warning.

    Args:
      source: a path, or the bytes of a file. No other file that it refers to is opened.
      name: of the audio in errors; its suffix identifies headerless formats (`.g722`). Default: the path.
      rate: of the result, in Hz; audio of another rate is resampled.
      max_seconds: longer audio raises `AudioTooLongError` as soon as the limit is passed.
      check: called several times a second while decoding; an exception that it raises ends the decoding.

    Returns:
      int16 [samples], at least one sample.

    Raises:
      AudioError: the file is missing, empty, corrupt, has no samples, or exceeds the decoder's limits.
    """
    return np.concatenate(list(stream(source, name=name, rate=rate, max_seconds=max_seconds, check=check)))


def stream(
    source: str | Path | bytes,
    *,
    name: str = "",
    rate: int = DEFAULT_SAMPLE_RATE,
    mix: bool = True,
    max_seconds: float = math.inf,
    check: Callable[[], None] | None = None,
) -> Iterator[NDArray[np.int16]]:
    """Decodes as `decode` does, block by block, for recordings that should not be in memory as a whole.

    Args:
      mix: whether to average the channels.

    Yields:
      int16 [samples], or [samples, channels] without `mix`.

    Raises:
      AudioError: as `decode`; it may follow valid blocks.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "audio")
    request: dict[str, Any] = {"do": "decode", "suffix": Path(name).suffix, "rate": rate, "mix": mix}
    if math.isfinite(max_seconds):
        request["max_seconds"] = max_seconds
    with contextlib.closing(_answers(request, source, name, check)) as answers:
        for answer in answers:
            if isinstance(answer, np.ndarray):
                yield answer
            elif answer.get("too_long"):
                raise AudioTooLongError(name, max_seconds)
            elif "reason" in answer:
                raise AudioError(name, answer["reason"], answer["remedy"])
            elif answer.get("error"):
                lost, error = answer["lost"], answer["error"]
                _log.warning("%s: %.2f s of audio cannot be decoded and are skipped (%s)", name, lost, error)


def length(path: str | Path) -> float:
    """Returns the length that a file states, in seconds, for progress; 0 if it states none or cannot be read."""
    try:
        request = {"do": "length", "suffix": Path(path).suffix}
        return sum(answer.get("length", 0.0) for answer in _answers(request, path, str(path), None))
    except AudioError:
        return 0.0


def _answers(
    request: dict[str, Any], source: str | Path | bytes, name: str, check: Callable[[], None] | None
) -> Iterator[NDArray[np.int16] | dict[str, Any]]:
    """Opens a file, passes it to a decoding process and yields the answers. Raises `AudioError`."""
    fd = _opened(source, name)
    try:
        yield from process.run(request, fd, check)
    except process.ProcessError as error:
        raise AudioError(name, error.reason, "the file may be damaged: convert it to FLAC or WAV") from error
    finally:
        os.close(fd)


def _opened(source: str | Path | bytes, name: str) -> int:
    """Returns the descriptor of a regular file that is not empty. Raises `AudioError`."""
    if isinstance(source, bytes):
        fd = os.memfd_create("audio")
        with open(fd, "wb", closefd=False) as file:
            file.write(source)
        os.lseek(fd, 0, os.SEEK_SET)
    else:
        try:
            fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe's other end is not waited for
        except (PermissionError, IsADirectoryError) as error:
            raise AudioError(name, "cannot be opened", f"give a file that can be read ({error.strerror})") from error
        except (OSError, ValueError) as error:  # ValueError: a path with a zero character
            raise AudioError(name, "no such file", "correct the path in the manifest or on the command line") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(fd)
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(name, "no such file", "correct the path in the manifest or on the command line")
        raise AudioError(name, "empty file", "copy or record it again, or remove its entry")
    return fd


def resampled(
    blocks: Iterator[tuple[int, NDArray[np.float32]]],
    name: str,
    max_seconds: float,
    *,
    rate: int = DEFAULT_SAMPLE_RATE,
    mix: bool = True,
) -> Iterator[NDArray[np.int16]]:
    """Resamples the blocks of one recording to int16.

    Rate and number of channels may change between blocks, as in a file of several joined streams.

    Args:
      blocks: pairs of a rate in Hz and float32 [samples] or [samples, channels] in -1..1.
      mix: whether to average the channels.

    Yields:
      int16 [samples], or [samples, channels] without `mix`.

    Raises:
      AudioError: the blocks have no samples, or some samples are not finite.
      AudioTooLongError: the blocks last longer than `max_seconds`.
    """
    resampler, last, seconds, num_samples = None, None, 0.0, 0
    for source_rate, block in blocks:
        if not _RATES[0] <= source_rate <= _RATES[1]:
            raise AudioError(
                name, f"a sample rate of {source_rate} Hz", "the header may be damaged: write the file again"
            )
        if mix:
            block = block if block.ndim == 1 else block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        if not np.isfinite(block).all():
            raise AudioError(name, "samples that are not finite", "write the file again as 16-bit or 24-bit PCM")
        seconds += len(block) / source_rate
        if seconds > max_seconds:
            raise AudioTooLongError(name, max_seconds)
        if (source_rate, block.shape[1:]) != last:
            if resampler is not None:
                rest = _flushed(resampler, last[1])
                num_samples += len(rest)
                yield rest
            resampler, last = None, (source_rate, block.shape[1:])
            if source_rate != rate:
                num_channels = 1 if block.ndim == 1 else block.shape[1]
                resampler = soxr.ResampleStream(
                    source_rate, rate, num_channels=num_channels, dtype="float32", quality="HQ"
                )
        if resampler is not None:
            block = resampler.resample_chunk(np.ascontiguousarray(block, np.float32))
        num_samples += len(block)
        yield _to_int16(block)
    if resampler is not None:
        rest = _flushed(resampler, last[1])
        num_samples += len(rest)
        yield rest
    if num_samples == 0:
        raise AudioError(name, "no samples", "the header is intact but nothing follows: record it again or remove it")


def _flushed(resampler: soxr.ResampleStream, channels: tuple[int, ...]) -> NDArray[np.int16]:
    return _to_int16(resampler.resample_chunk(np.zeros((0, *channels), np.float32), last=True))


def _to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def encode_flac(samples: NDArray[np.int16], rate: int = DEFAULT_SAMPLE_RATE) -> bytes:
    """Returns the FLAC bytes (lossless) of int16 [samples]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(flac: bytes) -> NDArray[np.int16]:
    """Decodes the output of `encode_flac` to int16 [samples]."""
    samples, _ = soundfile.read(io.BytesIO(flac), dtype="int16")
    return samples


@dataclass(frozen=True)
class Levels:
    """Signal levels of one clip, as a measure of its quality.

    Attributes:
      peak: largest magnitude, as a share of full scale.
      clipped_share: share of samples within 0.1 % of full scale.
      silence_share: share of 25 ms frames whose RMS is below -50 dB of full scale.
    """

    peak: float
    clipped_share: float
    silence_share: float

    @property
    def is_silent(self) -> bool:
        """Whether the clip is inaudible: its peak is below -60 dB of full scale."""
        return self.peak < 1e-3

    @property
    def is_clipped(self) -> bool:
        """Whether more than one sample in a thousand is at full scale."""
        return self.clipped_share > 1e-3

    @property
    def is_mostly_silence(self) -> bool:
        return self.silence_share > 0.8


def measure(samples: NDArray[np.int16], rate: int = DEFAULT_SAMPLE_RATE) -> Levels:
    """Computes the levels of int16 [samples]."""
    signal = samples.astype(np.float32) / _FULL_SCALE
    magnitude = np.abs(signal)
    frame = rate // 40
    starts = np.arange(0, len(signal), frame)
    power = np.add.reduceat(signal * signal, starts) / np.minimum(frame, len(signal) - starts)
    return Levels(
        peak=float(magnitude.max()),
        clipped_share=float((magnitude >= 0.999).mean()),
        silence_share=float((power < 10**-5).mean()),
    )
