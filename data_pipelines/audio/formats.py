"""Decoding of open files of many formats into blocks of float32 samples. Runs in the decoding process only.

libsndfile decodes formats whose headers state their length; FFmpeg (through PyAV) decodes the others, and files at
which libsndfile stops. Both receive one open file: formats that refer to other files (playlists, session descriptions)
are not on the list, and FFmpeg may open no file.
"""

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.audio.decode import AudioError

Block = tuple[int, NDArray[np.float32]]
"""A sample rate in Hz, and float32 [samples, channels]."""

BLOCK_SAMPLES = 2**18  # per block, over all channels: 1 MiB of float32, up to 16 MiB once resampled from 1 kHz
_SHORT_BYTES = 2**18  # of an Ogg file that may be its headers and a single page of audio (at most 64 KiB)

# Without OGG and MP3: they may consist of several joined streams, and libsndfile decodes only the first.
_LIBSNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "NIST", "VOC", "IRCAM"}
_HEADERLESS = {".g722": "g722", ".gsm": "gsm"}  # recognised by suffix only
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
_PAGE = re.compile(rb"OggS\0[\0-\7]")  # the beginning of an Ogg page, up to its flags
_TIMED_FORMATS = {"matroska", "mov", "ogg", "asf", "flv", "mpegts", "mpeg", "flac"}  # packets carry timestamps
_ABSOLUTE_FORMATS = {"matroska", "mov"}  # playback starts at time 0, whatever the first timestamp
_DISCONTINUOUS_FORMATS = {"mpegts", "mpeg", "ogg"}  # a long jump is a new timeline, not a gap
_CONTIGUOUS_FORMATS = {"ogg", "flac"}  # a gap is a lost packet
_MIN_GAP, _MAX_GAP, _MAX_DISCONTINUOUS_GAP, _MAX_ABSOLUTE_START = 0.1, 3600.0, 10.0, 60.0  # seconds
_MAX_STATED = 86_400.0  # seconds; a longer stated length that the file does not reach is a wrong header
_MAX_READ_ERRORS = 10  # in succession, after which the rest is unreadable


@dataclass
class Damage:
    """Audio that could not be decoded.

    Attributes:
      lost: seconds; replaced by silence where the length of the gap is known.
      first_error: message of the decoder.
    """

    lost: float = 0.0
    first_error: str = ""

    def add(self, seconds: float, error: object) -> None:
        self.lost += seconds
        self.first_error = self.first_error or str(error)


def blocks(fd: int, suffix: str, damage: Damage, *, block_samples: int = BLOCK_SAMPLES) -> Iterator[Block]:
    """Decodes the first audio stream of an open file.

    Args:
      fd: file descriptor of a regular file at its beginning.
      suffix: of the file's name; identifies formats without a header.
      block_samples: about the number of samples per block, over all channels.

    Yields:
      Pairs of a rate in Hz and float32 [samples, channels].

    Raises:
      AudioError: no audio stream, or a codec that is not supported.
      soundfile.LibsndfileError, av.FFmpegError, ValueError: the file cannot be decoded.
    """
    suffix = suffix.lower()
    if suffix in _HEADERLESS:
        yield from _ffmpeg_blocks(fd, suffix, damage, block_samples, _HEADERLESS[suffix])
        return
    done = stated = rate = 0
    # FFmpeg drops the last 128 samples of Vorbis that fits into a single page.
    is_short = os.fstat(fd).st_size <= _SHORT_BYTES and len(_links(fd)) == 1
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with soundfile.SoundFile(fd, closefd=False) as file:
            whole = is_short and file.subtype == "VORBIS" and file.frames * file.channels <= block_samples
            if whole or file.format in _LIBSNDFILE_FORMATS:
                stated, rate = file.frames, file.samplerate
                while done < stated:
                    block = file.read(block_samples // file.channels or 1, dtype="float32", always_2d=True)
                    if not len(block) or (whole and len(block) < stated):  # damaged: FFmpeg keeps the times
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
        for ffmpeg_rate, block in _ffmpeg_blocks(fd, suffix, damage, block_samples):
            if num_samples + len(block) > done:
                yield ffmpeg_rate, block[max(done - num_samples, 0) :]
            num_samples += len(block)
    except (av.FFmpegError, ValueError):
        if not done and (stated or not rate):
            raise
    missing = stated - max(done, num_samples)
    if missing > 0 and stated / rate <= _MAX_STATED:
        damage.add(missing / rate, "the file ends before the length in its header")


def length(fd: int, suffix: str) -> float:
    """Returns the length that a file states, in seconds; 0 if it states none."""
    if suffix.lower() not in _HEADERLESS:
        try:
            with soundfile.SoundFile(fd, closefd=False) as file:
                if file.format in _LIBSNDFILE_FORMATS and file.frames:
                    return file.frames / file.samplerate
        except soundfile.LibsndfileError:
            pass
        os.lseek(fd, 0, os.SEEK_SET)
    with _open(_Part(fd, suffix), _HEADERLESS.get(suffix.lower())) as container:
        return (container.duration or 0) / av.time_base


class _Part(io.FileIO):
    """A part of an open file, under a name of which FFmpeg receives only the suffix."""

    def __init__(self, fd: int, suffix: str, start: int = 0, end: int | None = None):
        super().__init__(fd, closefd=False)
        self.name, self._start = f"audio{suffix}", start
        self._end = os.fstat(fd).st_size if end is None else end
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: super().tell(), os.SEEK_END: self._end}[whence]
        return super().seek(max(base + offset, self._start)) - self._start

    def tell(self) -> int:
        return super().tell() - self._start

    def read(self, size: int = -1) -> bytes:
        left = max(self._end - super().tell(), 0)
        return super().read(left if size < 0 else min(size, left))


def _links(fd: int) -> list[int]:
    """Returns the positions where joined streams begin in an Ogg file (RFC 3533, "chaining"); [0] for other files."""
    starts, was_first, position, tail = [0], True, 0, b""
    with io.FileIO(fd, closefd=False) as file:
        file.seek(0)
        if file.read(4) != b"OggS":
            return starts
        file.seek(0)
        while chunk := file.read(2**20):
            content = tail + chunk
            for page in _PAGE.finditer(content):
                is_first = bool(content[page.end() - 1] & 2)
                if is_first and not was_first:
                    starts.append(position - len(tail) + page.start())
                was_first = is_first
            position += len(chunk)
            tail = content[-5:]
    return starts


def _open(part: _Part, container_format: str | None) -> av.container.InputContainer:
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": _FFMPEG_FORMATS,
        "codec_whitelist": _CODECS,
    }
    return av.open(part, format=container_format, container_options=options, metadata_errors="replace")


class _Pending:
    """Decoded frames of one rate and layout that do not fill a block yet."""

    def __init__(self, block_samples: int):
        self._block_samples = block_samples
        self._fifo: av.AudioFifo | None = None
        self._kind: tuple | None = None
        self.rate = self.num_channels = 0

    def fits(self, frame: av.AudioFrame) -> bool:
        """Whether a frame has the rate and layout of the pending frames."""
        return self._kind in (None, (frame.sample_rate, frame.format.name, frame.layout.name))

    def write(self, frame: av.AudioFrame) -> None:
        if self._fifo is None:
            self._kind = frame.sample_rate, frame.format.name, frame.layout.name
            self._fifo, self.rate, self.num_channels = av.AudioFifo(), frame.sample_rate, frame.layout.nb_channels
        frame.pts = None  # otherwise it has to equal the end of the last frame
        self._fifo.write(frame)

    @property
    def is_full(self) -> bool:
        return self._fifo is not None and self._fifo.samples * self.num_channels >= self._block_samples

    def read(self) -> Iterator[Block]:
        """Yields the pending frames, if any, as one block."""
        frame, rate = (self._fifo.read() if self._fifo is not None else None), self.rate
        self._fifo = self._kind = None
        if frame is not None:  # made interleaved first: PyAV crashes on planar frames of 8 channels
            parts = av.AudioResampler(format="flt").resample(frame)
            yield rate, np.concatenate([part.to_ndarray().reshape(-1, self.num_channels) for part in parts])


class _Timeline:
    """Finds gaps between the number of decoded samples and the time of the next timestamp.

    Args:
      container: opened; its format decides whether timestamps are used and which one is time 0.
    """

    def __init__(self, container: av.container.InputContainer):
        names = set(container.format.name.split(","))
        self.is_contiguous = bool(names & _CONTIGUOUS_FORMATS)
        self._is_timed = bool(names & _TIMED_FORMATS)
        start = (container.start_time or 0) / av.time_base
        is_absolute = names & _ABSOLUTE_FORMATS and start <= _MAX_ABSOLUTE_START
        self._origin = 0.0 if is_absolute else start
        self._max_gap = _MAX_DISCONTINUOUS_GAP if names & _DISCONTINUOUS_FORMATS else _MAX_GAP
        self._last, self._time_base = -np.inf, 0.0

    def gap(self, frame: av.AudioFrame, seconds: float) -> float:
        """Returns the seconds of silence between `seconds` of audio so far and a frame."""
        if not self._is_timed or frame.pts is None:
            return 0.0
        self._time_base = self._time_base or float(frame.time_base)  # arithmetic of fractions is slow
        time = frame.pts * self._time_base
        missing = time - self._origin - seconds
        if time < self._last - _MIN_GAP or missing > self._max_gap:  # a new timeline begins here
            self._origin, missing = time - seconds, 0.0
        self._last = time
        return missing if missing > _MIN_GAP else 0.0


def _ffmpeg_blocks(
    fd: int, suffix: str, damage: Damage, block_samples: int, container_format: str | None = None
) -> Iterator[Block]:
    starts = _links(fd)
    any_decoded, failure = False, None
    for start, end in zip(starts, [*starts[1:], None], strict=True):  # FFmpeg refuses streams of another rate
        try:
            for block in _part_blocks(_Part(fd, suffix, start, end), damage, block_samples, container_format):
                any_decoded = True
                yield block
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError) as error:
            damage.add(0.0, error)
            failure = error
    if failure is not None and not any_decoded:
        raise failure


def _part_blocks(part: _Part, damage: Damage, block_samples: int, container_format: str | None) -> Iterator[Block]:
    with _open(part, container_format) as container:
        if not container.streams.audio:
            raise AudioError("audio", "no audio stream", "the file holds no sound: remove its entry")
        stream = container.streams.audio[0]
        codec = stream.codec_context
        if codec is None or codec.codec.name not in _CODECS.split(","):
            name = "unknown" if codec is None else codec.codec.name
            raise AudioError("audio", f"codec {name} is not supported", "convert it to FLAC, Opus or MP3")
        codec.thread_count = 1
        if codec.codec.name == "flac":  # otherwise damaged frames are decoded to noise
            codec.options = {"err_detect": "crccheck+explode"}
        timeline, pending = _Timeline(container), _Pending(block_samples)
        seconds, lost, error = 0.0, 0.0, None
        for decoded in _frames(container, stream):
            if isinstance(decoded, _Lost):
                damage.add(decoded.seconds, decoded.error)
                lost, error = lost + decoded.seconds, decoded.error
                continue
            gap = timeline.gap(decoded, seconds + lost)
            if gap and timeline.is_contiguous:
                damage.add(gap, "packets are missing")
            gap, lost = gap + lost, 0.0
            if gap or not pending.fits(decoded):
                yield from pending.read()
            if gap:
                yield from _silence(gap, decoded.sample_rate, decoded.layout.nb_channels, block_samples)
            pending.write(decoded)
            seconds += gap + decoded.samples / max(decoded.sample_rate, 1)
            if pending.is_full:
                yield from pending.read()
        yield from pending.read()
        if lost and pending.rate:
            yield from _silence(lost, pending.rate, pending.num_channels, block_samples)
        if error is not None and not pending.rate:
            raise error


def _silence(seconds: float, rate: int, channels: int, block_samples: int) -> Iterator[Block]:
    left, most = round(seconds * rate), max(block_samples // channels, 1)
    while left > 0:
        yield rate, np.zeros((min(left, most), channels), np.float32)
        left -= most


@dataclass(frozen=True)
class _Lost:
    """A packet that could not be decoded."""

    seconds: float
    error: Exception


def _frames(container: av.container.InputContainer, stream: av.audio.AudioStream) -> Iterator[av.AudioFrame | _Lost]:
    """Decodes the packets of one stream and continues after damaged ones.

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
