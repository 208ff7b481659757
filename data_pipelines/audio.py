"""Any audio file to 16 kHz mono int16, and what its levels say about it.

libsndfile reads wav, flac, aiff, and mp3, ogg and opus unless they are long; FFmpeg (through PyAV) reads the rest.
Both are read block by block through a streaming resampler: `decode` holds the result (115 MB an hour) and one block,
`stream` the block alone.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data_pipelines.errors import DataError

SAMPLE_RATE = 16_000  # Hz, of everything this package stores
_BLOCK_SAMPLES = 2**22  # 16 MiB of float32; most clips are one block
_FULL_SCALE = 32_768
_RATES = 1_000, 1_000_000  # Hz; outside lie damaged headers, whose few bytes would swell to hours or raise in soxr


class AudioError(DataError):
    """Audio that is missing, empty, corrupt or without samples; `reason` is short enough to count by."""

    def __init__(self, name: str, reason: str, remedy: str):
        super().__init__(f"{name}: {reason}; {remedy}")
        self.reason = reason


class AudioTooLongError(AudioError):
    """Audio longer than the caller's limit, noticed without decoding the rest."""

    def __init__(self, name: str, max_seconds: float):
        super().__init__(
            name, "too long", f"it lasts over {max_seconds:g} s: cut it into utterances or raise the limit"
        )


def decode(source: str | Path | bytes, *, name: str = "", max_seconds: float = math.inf) -> NDArray[np.int16]:
    """Decodes a file, or its bytes, of any common format, rate and channel count.

    Channels are averaged. Samples of a 16 kHz mono 16-bit source come back unchanged.

    Args:
      source: a path, or the bytes of a file.
      name: what errors call the audio; its suffix tells headerless formats (`.g722`). Default: the path.
      max_seconds: longer audio raises `AudioTooLongError` as soon as the limit is passed.

    Returns:
      int16 [samples] at 16 kHz, at least one sample.

    Raises:
      AudioError: the file is missing, empty, corrupt, or holds no samples.
    """
    return np.concatenate(list(stream(source, name=name, max_seconds=max_seconds)))


def stream(source: str | Path | bytes, *, name: str = "", max_seconds: float = math.inf) -> Iterator[NDArray[np.int16]]:
    """The same as `decode`, block by block, for recordings that should not lie in memory as a whole.

    An error may come behind blocks that were good.
    """
    yield from _stream(source, name, max_seconds)


def _stream(
    source: str | Path | bytes, name: str, max_seconds: float, *, rate: int = SAMPLE_RATE, mix: bool = True
) -> Iterator[NDArray[np.int16]]:
    name = name or (str(source) if isinstance(source, str | Path) else "audio")
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise AudioError(name, "no such file", "correct the path in the manifest or on the command line")
    if (len(source) if isinstance(source, bytes) else Path(source).stat().st_size) == 0:
        raise AudioError(name, "empty file", "copy or record it again, or remove its entry")
    try:
        yield from _resampled(_blocks(source, name), name, max_seconds, rate=rate, mix=mix)
    except (soundfile.LibsndfileError, av.FFmpegError, ValueError) as error:  # ValueError: rate or channels change
        raise AudioError(name, "cannot be decoded", f"the file may be damaged: try to play it ({error})") from error


def stream_channels(
    source: str | Path | bytes, *, name: str = "", rate: int = SAMPLE_RATE
) -> Iterator[NDArray[np.int16]]:
    """Decodes a file block by block with its channels apart.

    Args:
      source: as in `decode`.
      name: as in `decode`.
      rate: of the blocks, in Hz; audio of another rate is resampled.

    Returns:
      int16 blocks [samples, channels].

    Raises:
      AudioError: as `stream`.
    """
    yield from _stream(source, name, math.inf, rate=rate, mix=False)


def resample(
    blocks: Iterator[tuple[int, NDArray[np.float32]]], *, name: str = "audio", max_seconds: float = math.inf
) -> NDArray[np.int16]:
    """Joins the blocks of one recording into int16 [samples] at 16 kHz, mono.

    Args:
      blocks: pairs of a rate in Hz, the same in all, and float32 [samples] or [samples, channels] in -1..1.

    Raises:
      AudioError: there are no samples, or some are not finite.
      AudioTooLongError: more than `max_seconds` came in.
    """
    return np.concatenate(list(_resampled(blocks, name, max_seconds)))


def _resampled(
    blocks: Iterator[tuple[int, NDArray[np.float32]]],
    name: str,
    max_seconds: float,
    *,
    rate: int = SAMPLE_RATE,
    mix: bool = True,
) -> Iterator[NDArray[np.int16]]:
    """Blocks at `rate`: [samples], the mean of the channels, or [samples, channels] without `mix`."""
    resampler, seconds, num_samples = None, 0.0, 0
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
        if source_rate != rate:
            num_channels = 1 if block.ndim == 1 else block.shape[1]
            resampler = resampler or soxr.ResampleStream(
                source_rate, rate, num_channels=num_channels, dtype="float32", quality="HQ"
            )
            block = resampler.resample_chunk(np.ascontiguousarray(block, np.float32))
        num_samples += len(block)
        yield _to_int16(block)
    if resampler is not None:
        rest = _to_int16(resampler.resample_chunk(np.zeros((0, *block.shape[1:]), np.float32), last=True))
        num_samples += len(rest)
        yield rest
    if num_samples == 0:
        raise AudioError(name, "no samples", "the header is intact but nothing follows: record it again or remove it")


def _to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _blocks(source: str | Path | bytes, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    if name.lower().endswith(".g722"):  # no header: FFmpeg has to be told
        return _ffmpeg_blocks(source, name, "g722")
    try:
        file = soundfile.SoundFile(_opened(source))
    except soundfile.LibsndfileError:
        return _ffmpeg_blocks(source, name)
    block_frames = _BLOCK_SAMPLES // file.channels
    if file.format in ("MP3", "OGG") and file.frames > block_frames:
        # soundfile seeks after each read, which these decoders do slowly and not always exactly; one read is safe.
        file.close()
        return _ffmpeg_blocks(source, name)
    return _libsndfile_blocks(file, block_frames)


def _opened(source: str | Path | bytes) -> str | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _libsndfile_blocks(file: soundfile.SoundFile, frames: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    with file:
        for _ in range(0, file.frames, frames):
            yield file.samplerate, file.read(frames, dtype="float32", always_2d=True)


def _ffmpeg_blocks(
    source: str | Path | bytes, name: str, container_format: str | None = None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    # Playlists name other files and addresses. What comes as bytes may be a stranger's: nothing it names is opened.
    options = {"protocol_whitelist": "none"} if isinstance(source, bytes) else {}
    with av.open(_opened(source), format=container_format, container_options=options) as container:
        if not container.streams.audio:
            raise AudioError(name, "no audio stream", "the file holds no sound: remove its entry")
        # Interleaved float32 at the file's own rate and channels; PyAV 18 crashes on planar frames of 8 channels.
        interleave = av.AudioResampler(format="flt")
        pending: list[NDArray[np.float32]] = []
        num_pending = 0
        for frame in container.decode(audio=0):
            for part in interleave.resample(frame):
                pending.append(part.to_ndarray().reshape(-1, len(part.layout.channels)))
                num_pending += pending[-1].size
                if num_pending >= _BLOCK_SAMPLES:
                    yield part.sample_rate, np.concatenate(pending)
                    pending, num_pending = [], 0
        if pending:
            yield part.sample_rate, np.concatenate(pending)


def length(path: str | Path) -> float:
    """Seconds that a file says it lasts, for progress: 0 where it does not say, or cannot be read."""
    try:
        return soundfile.info(str(path)).duration
    except soundfile.LibsndfileError:
        pass
    try:
        with av.open(str(path)) as container:
            return (container.duration or 0) / av.time_base
    except (av.FFmpegError, ValueError):
        return 0.0


def encode_flac(samples: NDArray[np.int16]) -> bytes:
    """FLAC bytes of int16 [samples] at 16 kHz; lossless."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(flac: bytes) -> NDArray[np.int16]:
    """int16 [samples] of what `encode_flac` wrote."""
    samples, _ = soundfile.read(io.BytesIO(flac), dtype="int16")
    return samples


@dataclass(frozen=True)
class Levels:
    """What the levels of one clip say about its quality.

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
        """Nothing to hear: the peak stays below -60 dB of full scale."""
        return self.peak < 1e-3

    @property
    def is_clipped(self) -> bool:
        """More than one sample in a thousand sits at the rails."""
        return self.clipped_share > 1e-3

    @property
    def is_mostly_silence(self) -> bool:
        return self.silence_share > 0.8


def measure(samples: NDArray[np.int16]) -> Levels:
    """Levels of int16 [samples] at 16 kHz."""
    signal = samples.astype(np.float32) / _FULL_SCALE
    magnitude = np.abs(signal)
    frame = SAMPLE_RATE // 40
    starts = np.arange(0, len(signal), frame)
    power = np.add.reduceat(signal * signal, starts) / np.minimum(frame, len(signal) - starts)
    return Levels(
        peak=float(magnitude.max()),
        clipped_share=float((magnitude >= 0.999).mean()),
        silence_share=float((power < 10**-5).mean()),
    )
