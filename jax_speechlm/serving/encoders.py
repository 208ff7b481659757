"""Encoders of speech: samples to the bytes of audio files, part by part."""

import abc
import io
import struct
from collections.abc import Iterable
from typing import ClassVar

import av
import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Int16

from data_pipelines.audio.wav import to_int16

PCM_RATE = 24_000
"""Rate of headerless samples in Hz, as OpenAI defines it: clients assume it, for nothing in a response states it."""

_UNKNOWN = 0xFFFFFFFF


class Encoder(abc.ABC):
    """Encodes mono audio as it arrives."""

    media_type: ClassVar[str]

    def __init__(self, rate: int):
        """Prepares to encode samples at `rate` Hz."""
        self.rate = rate

    @abc.abstractmethod
    def encode(self, samples: Float32[np.ndarray, " samples"]) -> bytes:
        """Encodes further samples in [-1, 1]; returns the bytes that are ready, possibly none."""

    @abc.abstractmethod
    def finish(self) -> bytes:
        """Returns the rest of the bytes."""


class _Wav(Encoder):
    """16-bit samples under a header that declares the longest possible file, as the length is not known yet."""

    media_type = "audio/wav"

    def __init__(self, rate: int):
        super().__init__(rate)
        layout = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
        unknown = struct.pack("<I", _UNKNOWN)
        self._header = b"RIFF" + unknown + b"WAVEfmt " + layout + b"data" + unknown

    def encode(self, samples: Float32[np.ndarray, " samples"]) -> bytes:
        header, self._header = self._header, b""
        return header + to_int16(samples).astype("<i2").tobytes()

    def finish(self) -> bytes:
        return self._header


class _Pcm(Encoder):
    """16-bit little-endian samples without a header, at `PCM_RATE`."""

    media_type = "audio/pcm"

    def __init__(self, rate: int):
        super().__init__(rate)
        self._resampler = soxr.ResampleStream(rate, PCM_RATE, 1, dtype="float32") if rate != PCM_RATE else None

    def encode(self, samples: Float32[np.ndarray, " samples"]) -> bytes:
        return self._bytes(samples, last=False)

    def finish(self) -> bytes:
        return self._bytes(np.zeros(0, np.float32), last=True)

    def _bytes(self, samples: Float32[np.ndarray, " samples"], *, last: bool) -> bytes:
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples.astype(np.float32), last=last)
        return to_int16(samples).astype("<i2").tobytes()


class _Flac(Encoder):
    """A FLAC file, made at the end: libsndfile, and so most Python programs, opens none of unknown length."""

    media_type = "audio/flac"

    def __init__(self, rate: int):
        super().__init__(rate)
        self._parts: list[Int16[np.ndarray, " samples"]] = []

    def encode(self, samples: Float32[np.ndarray, " samples"]) -> bytes:
        self._parts.append(to_int16(samples))
        return b""

    def finish(self) -> bytes:
        file = io.BytesIO()
        samples = np.concatenate(self._parts) if self._parts else np.zeros(0, np.int16)
        soundfile.write(file, samples, self.rate, format="FLAC", subtype="PCM_16")
        return file.getvalue()


class _Sink:
    """A file that can only be written; `take` empties it."""

    def __init__(self):
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


class _Compressed(Encoder):
    """A format of FFmpeg's, sent packet by packet."""

    container: ClassVar[str]
    codec: ClassVar[str]
    bit_rate: ClassVar[int]
    options: ClassVar[dict[str, str]] = {}

    def __init__(self, rate: int):
        super().__init__(rate)
        self._sink = _Sink()
        options = {"flush_packets": "1"} | self.options
        self._container = av.open(self._sink, "w", format=self.container, options=options)
        codec = av.Codec(self.codec, "w")
        # The lowest rate that loses nothing, where the format does not have the given one.
        rates = sorted(codec.audio_rates or [rate])
        coded_rate = next((each for each in rates if each >= rate), rates[-1])
        self._stream = self._container.add_stream(self.codec, rate=coded_rate)
        self._stream.layout, self._stream.bit_rate = "mono", self.bit_rate
        self._resampler = av.AudioResampler(codec.audio_formats[0].name, "mono", coded_rate)
        self._num_samples = 0

    def encode(self, samples: Float32[np.ndarray, " samples"]) -> bytes:
        if len(samples):
            clipped = np.clip(samples, -1, 1).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(clipped, format="flt", layout="mono")
            frame.sample_rate, frame.pts = self.rate, self._num_samples
            self._num_samples += len(samples)
            self._mux(self._resampler.resample(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        self._mux(self._resampler.resample(None) if self._num_samples else [])
        self._mux([None])
        self._container.close()
        return self._sink.take()

    def _mux(self, frames: Iterable[av.AudioFrame | None]) -> None:
        for frame in frames:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)


class _Mp3(_Compressed):
    media_type, container, codec, bit_rate = "audio/mpeg", "mp3", "libmp3lame", 64_000
    options: ClassVar[dict[str, str]] = {
        "write_xing": "0",
        "id3v2_version": "0",
    }  # both are written at the start, once the end is known


class _Opus(_Compressed):
    media_type, container, codec, bit_rate = "audio/ogg", "ogg", "libopus", 48_000
    options: ClassVar[dict[str, str]] = {"page_duration": "100000"}  # in microseconds


class _Aac(_Compressed):
    media_type, container, codec, bit_rate = "audio/aac", "adts", "aac", 64_000


ENCODERS: dict[str, type[Encoder]] = {
    "mp3": _Mp3,
    "opus": _Opus,
    "aac": _Aac,
    "flac": _Flac,
    "wav": _Wav,
    "pcm": _Pcm,
}
"""Encoders by OpenAI's names of formats, the default first."""
