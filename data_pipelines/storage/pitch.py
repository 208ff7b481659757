"""Pitch of prepared utterances per mel frame, stored next to their index by `jax-speechlm pitch`.

The file `<split>.pitch-<index>.npz` next to `index/<split>.parquet` contains the end of each row's frames among all
frames, the fundamental frequency of every frame in Hz (0 where it is unvoiced), and how it was measured. A row whose
record cannot be read has no frames.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import short_digest
from data_pipelines.storage.beside_index import array_path, array_writer, read_arrays
from data_pipelines.storage.index import Index, Part
from data_pipelines.storage.tokens import TokenStore
from data_pipelines.storage.units import FrameGrid


@dataclasses.dataclass(frozen=True)
class PitchSettings:
    """Settings of a measurement of pitch.

    Attributes:
      sample_rate: of the audio, in Hz.
      hop: samples from one frame to the next; frames are centred, the first at the first sample.
      low_hertz, high_hertz: range of the fundamental frequency.
    """

    sample_rate: int
    hop: int
    low_hertz: float = 65.0
    high_hertz: float = 500.0

    @property
    def grid(self) -> FrameGrid:
        """Position of the frames, that of mel spectrograms for synthesis."""
        return FrameGrid(self.hop, -self.hop)


@dataclasses.dataclass(frozen=True, eq=False)
class PartPitch:
    """Pitch of all rows of a part.

    Attributes:
      ends: int64 [rows], end of each row's frames among all frames.
      hertz: float32 [frames], 0 where unvoiced.
    """

    ends: np.ndarray
    hertz: np.ndarray
    settings: PitchSettings


@dataclasses.dataclass(frozen=True, eq=False)
class FramePitch(TokenStore):
    """Pitch of each frame of all rows of an index, float32 Hz, 0 where unvoiced. Threads may share one.

    Attributes:
      lengths: int64 [rows], frames per utterance.
    """

    grid: FrameGrid

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the pitch of all frames."""
        return short_digest(self.lengths.tobytes() + b"".join(part.tobytes() for part in self._ids))


def find_pitch(part: Part) -> PartPitch | None:
    """Reads the pitch next to a part's index. Returns None if it is absent or incomplete."""
    names = "ends", "hertz", "sample_rate", "hop", "low_hertz", "high_hertz"
    if (arrays := read_arrays(array_path(part, "pitch"), *names)) is None:
        return None
    ends, hertz, rate, hop, low, high = arrays
    pitch = PartPitch(ends, hertz, PitchSettings(int(rate), int(hop), float(low), float(high)))
    is_whole = pitch.ends.shape == (part.num_rows,) and len(pitch.hertz) == (pitch.ends[-1] if part.num_rows else 0)
    return pitch if is_whole else None


def open_pitch(index: Index, sample_rate: int, hop: int) -> FramePitch:
    """Opens the pitch of an index.

    Args:
      sample_rate: of the front end, in Hz.
      hop: samples between frames of the front end.

    Raises:
      DataError: a part has no pitch, or pitch of other frames; the message has the command that measures it.
    """
    parts = []
    for part in index.parts:
        command = f"jax-speechlm pitch {part.set_dir.name}:{part.split} --hop {hop} --data-dir {part.set_dir.parent}"
        if (pitch := find_pitch(part)) is None:
            raise DataError(f"{part}: its pitch is not measured. Run: {command}")
        if (pitch.settings.sample_rate, pitch.settings.hop) != (sample_rate, hop):
            raise DataError(
                f"{part} has its pitch every {pitch.settings.hop} samples at {pitch.settings.sample_rate} Hz, and the "
                f"front end has a frame every {hop} at {sample_rate} Hz: run {command}"
            )
        parts.append((pitch.hertz, pitch.ends))
    return FramePitch.of(index.first_row, parts, FrameGrid(hop, -hop))


@contextlib.contextmanager
def pitch_writer(part: Part, settings: PitchSettings) -> Iterator[Callable[[Sequence[np.ndarray]], None]]:
    """Yields a function that stores the pitch of every row of a part; the file appears at the end of the block.

    The file is opened first, so that a folder that cannot be written is known before hours of work.

    Raises:
      DataError: the disk is full, or the folder of the index cannot be written.
    """
    total = int(settings.grid.num_frames(part.lengths("num_samples")).sum())

    def write(rows: Sequence[np.ndarray]) -> None:
        if len(rows) != part.num_rows:
            raise ValueError(f"{part} has {part.num_rows} rows, not {len(rows)}")
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        hertz = np.concatenate([np.zeros(0, np.float32), *rows]).astype(np.float32)
        np.savez(file, ends=ends, hertz=hertz, **dataclasses.asdict(settings))

    with array_writer(array_path(part, "pitch"), "pitch is", lambda: 4 * total) as file:
        yield write
