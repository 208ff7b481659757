"""Pictures of arrays, such as spectrograms, as PNG files."""

import struct
import zlib

import numpy as np
from jaxtyping import Float

_COLORS = np.array(
    [(68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121),
     (110, 206, 88), (181, 222, 43), (253, 231, 37)]
)  # fmt: skip
"""Matplotlib's viridis at even steps: brighter is more, also for the color-blind and in grey."""


def trimmed(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns values without edges of NaN alone; a single NaN if there is nothing else."""
    places = np.nonzero(~np.isnan(values))
    if not len(places[0]):
        return np.full((1,) * values.ndim, np.nan, values.dtype)
    return values[tuple(slice(along.min(), along.max() + 1) for along in places)]


def to_png(values: Float[np.ndarray, "height width"]) -> bytes:
    """Encodes values as a picture whose darkest color is the smallest value, or NaN."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    share = np.nan_to_num((values - low) / (high - low if high > low else 1), nan=0.0, posinf=1.0, neginf=0.0)
    place = share * (len(_COLORS) - 1)
    steps = np.arange(len(_COLORS))
    colors = np.stack([np.interp(place, steps, channel) for channel in _COLORS.T], axis=-1).round().astype(np.uint8)
    height, width = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in colors)  # each begins with its filter, none
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, *zip(*parts, strict=True)))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
