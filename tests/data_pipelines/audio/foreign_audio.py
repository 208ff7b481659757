"""Audio files as other programs write them: joined, without a length, starting late, damaged, hostile."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import soundfile


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    """float [samples] of half of full scale."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def written(samples: np.ndarray, rate: int, file_format: str, subtype: str | None = None) -> bytes:
    """The bytes of a file that libsndfile writes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


def muxed(parts: list[tuple[float, np.ndarray]], rate: int, container: str, codec: str) -> bytes:
    """The bytes of a container whose one audio stream has samples at the given seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        for start, samples in parts:
            whole = np.int16(samples * 2**15)[None]
            for first in range(0, whole.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(whole[:, first : first + 1024]), format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts = rate, round(start * rate) + first
                frame.time_base = stream.codec_context.time_base = Fraction(1, rate)
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def claiming(num_samples: int, tracks: int = 1) -> bytes:
    """An .mp4 of some hundred bytes whose tables claim `num_samples` of one byte in each track."""

    def box(kind: bytes, *content: bytes) -> bytes:
        body = b"".join(content)
        return struct.pack(">I", 8 + len(body)) + kind + body

    def numbers(*values: int) -> bytes:
        return struct.pack(f">{len(values)}I", *values)

    entry = box(b"ulaw", bytes(6), struct.pack(">H", 1), bytes(8), struct.pack(">HHI", 1, 8, 0), numbers(8000 << 16))
    table = box(
        b"stbl",
        box(b"stsd", numbers(0, 1), entry),
        box(b"stts", numbers(0, 2, 1, 1, num_samples - 1, 2)),
        box(b"stsc", numbers(0, 1, 1, num_samples, 1)),
        box(b"stsz", numbers(0, 1, num_samples)),
        box(b"stco", numbers(0, 1, 40)),
    )
    media = box(
        b"mdia",
        box(b"mdhd", numbers(0, 0, 0, 8000, 8000, 0)),
        box(b"hdlr", bytes(8), b"soun", bytes(13)),
        box(b"minf", box(b"smhd", bytes(8)), table),
    )
    track = box(b"trak", box(b"tkhd", numbers(7, 0, 0, 1), bytes(68)), media)
    header = box(b"mvhd", numbers(0, 0, 0, 8000, 8000), bytes(80))
    return box(b"ftyp", b"isom", numbers(512), b"isom") + box(b"mdat", bytes(64)) + box(b"moov", header, track * tracks)
