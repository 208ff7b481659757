"""Decodes containers and codecs of audio to blocks of float32 samples. Runs in the decoding process only.

libsndfile decodes formats whose headers state their length; FFmpeg (through PyAV) decodes the others, and whatever
libsndfile stops at. Both are given one open file: formats that refer to other files (playlists, session descriptions)
are not on the list, and FFmpeg may open nothing.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.audio import AudioError

Block = tuple[int, NDArray[np.float32]]
"""A sample rate in Hz, and float32 [samples, channels]."""

_BLOCK_SAMPLES = 2**18  # 1 MiB of float32; the most that resampling from 1 kHz makes of it is 16 MiB

# OGG and MP3 may be joined from several streams, of which libsndfile decodes the first.
_LIBSNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "NIST", "VOC", "IRCAM"}
_HEADERLESS = {".g722": "g722", ".gsm": "gsm"}  # recognised by suffix alone
_FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,g722,gsm,loas,matroska,webm,mov,mp4,m4a,3gp,"
    "3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,nistsphere,ogg,rm,sox,tak,tta,voc,w64,wav,wv,xwma"
)
_CODECS = (
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_swf,adpcm_yamaha,alac,amrnb,amrwb,"
    "ape,cook,dca,dsd_lsbf,dsd_lsbf_planar,dsd_msbf,dsd_msbf_planar,eac3,flac,g722,g723_1,g726,g726le,g729,gsm,gsm_ms,ilbc,"
    "libopencore_amrnb,libopencore_amrwb,libopus,libspeex,libvorbis,mp1,mp1float,mp2,mp2float,mp3,mp3float,mpc7,mpc8,"
    "nellymoser,opus,speex,tak,truehd,tta,vorbis,wavpack,wmalossless,wmapro,wmav1,wmav2,wmavoice,"
    + ",".join(sorted(name for name in av.codecs_available if name.startswith("pcm_")))
)
_TIMED_FORMATS = {"matroska", "mov", "ogg", "asf", "flv", "mpegts", "mpeg", "flac"}  # packets carry timestamps
_ABSOLUTE_FORMATS = {"matroska", "mov"}  # time 0 is where playback starts, whatever comes first
_DISCONTINUOUS_FORMATS = {"mpegts", "mpeg", "ogg"}  # a long jump is a new timeline, not a gap
_CONTIGUOUS_FORMATS = {"ogg", "flac"}  # a gap is a packet that is lost
_MIN_GAP, _MAX_GAP, _MAX_DISCONTINUOUS_GAP, _MAX_ABSOLUTE_START = 0.1, 3600.0, 10.0, 60.0  # seconds
_MAX_STATED = 86_400.0  # seconds; a longer stated length that the file does not hold is a wrong header
_MAX_READ_ERRORS = 10  # in succession, behind which the rest is taken to be unreadable


@dataclass
class Damage:
    """Audio that could not be decoded.

    Attributes:
      lost: seconds; silence takes their place where the length of the gap is known.
      first_error: of the decoder.
    """

    lost: float = 0.0
    first_error: str = ""

    def add(self, seconds: float, error: object) -> None:
        self.lost += seconds
        self.first_error = self.first_error or str(error)


def blocks(fd: int, suffix: str, damage: Damage) -> Iterator[Block]:
    """Decodes the audio of an open file: of its first audio stream if there are several.

    Args:
      fd: file descriptor of a regular file at its beginning.
      suffix: of the file's name; tells formats without a header.
      damage: what is skipped is added to it.

    Raises:
      AudioError: no audio stream, or a codec that is not supported.
      soundfile.LibsndfileError, av.FFmpegError, ValueError: nothing can be decoded.
    """
    suffix = suffix.lower()
    if suffix in _HEADERLESS:
        yield from _ffmpeg_blocks(fd, suffix, damage, _HEADERLESS[suffix])
        return
    done = stated = rate = 0
    try:
        with soundfile.SoundFile(fd, closefd=False) as file:
            if file.format in _LIBSNDFILE_FORMATS:
                stated, rate = file.frames, file.samplerate
                while done < stated:
                    block = file.read(_BLOCK_SAMPLES // file.channels or 1, dtype="float32", always_2d=True)
                    if not len(block):
                        break
                    yield rate, block
                    done += len(block)
    except soundfile.LibsndfileError:
        pass
    if stated and done == stated:
        return
    os.lseek(fd, 0, os.SEEK_SET)
    num_samples = 0
    try:
        for number, block in _ffmpeg_blocks(fd, suffix, damage):
            if num_samples + len(block) > done:
                yield number, block[max(done - num_samples, 0) :]
            num_samples += len(block)
    except (av.FFmpegError, ValueError):
        if not done and (stated or not rate):
            raise
    missing = stated - max(done, num_samples)
    if missing > 0 and stated / rate <= _MAX_STATED:
        damage.add(missing / rate, "the file ends before the length in its header")


def length(fd: int, suffix: str) -> float:
    """Seconds that a file states it lasts; 0 where it does not state them."""
    if suffix.lower() not in _HEADERLESS:
        try:
            with soundfile.SoundFile(fd, closefd=False) as file:
                if file.format in _LIBSNDFILE_FORMATS and file.frames:
                    return file.frames / file.samplerate
        except soundfile.LibsndfileError:
            pass
        os.lseek(fd, 0, os.SEEK_SET)
    with _open(fd, suffix, _HEADERLESS.get(suffix.lower())) as container:
        return (container.duration or 0) / av.time_base


class _Descriptor(io.FileIO):
    """An open file under a name of which FFmpeg sees the suffix alone."""

    def __init__(self, fd: int, suffix: str):
        super().__init__(fd, closefd=False)
        self.name = f"audio{suffix}"


def _open(fd: int, suffix: str, container_format: str | None) -> av.container.InputContainer:
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": _FFMPEG_FORMATS,
        "codec_whitelist": _CODECS,
    }
    return av.open(
        _Descriptor(fd, suffix), format=container_format, container_options=options, metadata_errors="replace"
    )


@dataclass
class _Interleaver:
    """Converts decoded frames to float32 [samples, channels]; PyAV crashes on planar frames of 8 channels."""

    layout: tuple = ()
    resampler: av.AudioResampler | None = field(default=None, repr=False)

    def __call__(self, frame: av.AudioFrame) -> NDArray[np.float32]:
        layout = frame.format.name, frame.layout.name, frame.sample_rate
        if layout != self.layout:  # joined streams may differ
            self.layout, self.resampler = layout, av.AudioResampler(format="flt")
        channels = len(frame.layout.channels)
        parts = [part.to_ndarray().reshape(-1, channels) for part in self.resampler.resample(frame)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros((0, channels), np.float32), *parts])


class _Timeline:
    """Finds gaps between where decoded samples are and where their timestamps place them.

    Args:
      container: opened; its format decides whether timestamps count and where time 0 is.
    """

    def __init__(self, container: av.container.InputContainer):
        names = set(container.format.name.split(","))
        self.is_contiguous = bool(names & _CONTIGUOUS_FORMATS)
        self._is_timed = bool(names & _TIMED_FORMATS)
        start = (container.start_time or 0) / av.time_base
        is_absolute = names & _ABSOLUTE_FORMATS and start <= _MAX_ABSOLUTE_START
        self._origin = 0.0 if is_absolute else start
        self._max_gap = _MAX_DISCONTINUOUS_GAP if names & _DISCONTINUOUS_FORMATS else _MAX_GAP
        self._last = -np.inf

    def gap(self, frame: av.AudioFrame, seconds: float) -> float:
        """Returns seconds of silence that precede a frame, behind `seconds` of audio."""
        if not self._is_timed or frame.pts is None or frame.time_base is None:
            return 0.0
        time = float(frame.pts * frame.time_base)
        missing = time - self._origin - seconds
        if time < self._last - _MIN_GAP or missing > self._max_gap:  # a new timeline begins here
            self._origin, missing = time - seconds, 0.0
        self._last = time
        return missing if missing > _MIN_GAP else 0.0


def _ffmpeg_blocks(fd: int, suffix: str, damage: Damage, container_format: str | None = None) -> Iterator[Block]:
    with _open(fd, suffix, container_format) as container:
        if not container.streams.audio:
            raise AudioError("audio", "no audio stream", "the file holds no sound: remove its entry")
        stream = container.streams.audio[0]
        codec = stream.codec_context
        if codec is None or codec.codec.name not in _CODECS.split(","):
            name = "unknown" if codec is None else codec.codec.name
            raise AudioError("audio", f"codec {name} is not supported", "convert it to FLAC, Opus or MP3")
        codec.thread_count = 1
        if codec.codec.name == "flac":  # else damaged frames come out as noise
            codec.options = {"err_detect": "crccheck+explode"}
        timeline, interleave = _Timeline(container), _Interleaver()
        pending: list[NDArray[np.float32]] = []
        num_pending, seconds, lost, rate, error = 0, 0.0, 0.0, 0, None
        for decoded in _frames(container, stream):
            if isinstance(decoded, _Lost):
                damage.add(decoded.seconds, decoded.error)
                lost, error = lost + decoded.seconds, decoded.error
                continue
            samples = interleave(decoded)
            if pending and (decoded.sample_rate != rate or samples.shape[1] != pending[0].shape[1]):
                yield rate, np.concatenate(pending)
                pending, num_pending = [], 0
            rate = decoded.sample_rate
            gap = timeline.gap(decoded, seconds + lost)
            if gap and timeline.is_contiguous:
                damage.add(gap, "packets are missing")
            gap, lost = gap + lost, 0.0
            if gap:
                if pending:
                    yield rate, np.concatenate(pending)
                    pending, num_pending = [], 0
                yield from _silence(gap, rate, samples.shape[1])
            pending.append(samples)
            num_pending += samples.size
            seconds += gap + len(samples) / max(rate, 1)
            if num_pending >= _BLOCK_SAMPLES:
                yield rate, np.concatenate(pending)
                pending, num_pending = [], 0
        if pending:
            yield rate, np.concatenate(pending)
        if lost and rate:
            yield from _silence(lost, rate, 1)
        if error is not None and not rate:
            raise error


def _silence(seconds: float, rate: int, channels: int) -> Iterator[Block]:
    left, most = round(seconds * rate), max(_BLOCK_SAMPLES // channels, 1)
    while left > 0:
        yield rate, np.zeros((min(left, most), channels), np.float32)
        left -= most


@dataclass(frozen=True)
class _Lost:
    """A packet that could not be decoded."""

    seconds: float
    error: Exception


def _frames(container: av.container.InputContainer, stream: av.audio.AudioStream) -> Iterator[av.AudioFrame | _Lost]:
    """Decodes the packets of one stream; goes on behind those that are damaged.

    Raises:
      av.FFmpegError: out of memory.
    """
    errors = 0
    while errors < _MAX_READ_ERRORS:
        try:
            for packet in container.demux(stream):
                errors = 0
                try:
                    frames = packet.decode()
                except MemoryError:
                    raise
                except (av.FFmpegError, ValueError) as error:
                    if isinstance(error, av.EOFError):
                        continue
                    yield _Lost(float((packet.duration or 0) * (packet.time_base or 0)), error)
                    continue
                yield from frames
            return
        except MemoryError:
            raise
        except av.FFmpegError as error:
            errors += 1
            if errors == _MAX_READ_ERRORS:
                yield _Lost(0.0, error)
