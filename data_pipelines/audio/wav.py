"""Writing of WAV files."""

import io
import wave
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data_pipelines.core.files import replacing


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Rounds samples in [-1, 1) to 16 bits; those beyond are clipped."""
    return np.clip(np.rint(samples * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)


def write_wav(path: Path, samples: NDArray[np.float32], rate: int) -> None:
    """Writes mono audio of 16 bits, completely or not at all; folders are made.

    Args:
      samples: in [-1, 1).
      rate: in Hz.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file to write, such as {path / 'out.wav'}")
    with replacing(path) as partial, partial.open("wb") as file:
        _write(file, samples, rate)


def to_wav(samples: NDArray[np.float32], rate: int) -> bytes:
    """Returns the bytes of a WAV file; arguments as of `write_wav`."""
    file = io.BytesIO()
    _write(file, samples, rate)
    return file.getvalue()


def _write(file: IO[bytes], samples: NDArray[np.float32], rate: int) -> None:
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(rate)
        wav.writeframes(to_int16(samples).astype("<i2").tobytes())
