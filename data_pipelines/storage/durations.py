"""Durations of the tokens of prepared utterances, stored next to their index by `jax-speechlm align` with a voice.

The file `<split>.durations-<index>.npz` next to `index/<split>.parquet` contains the end of each row's tokens among all
tokens, the frames of every token, and the settings of the aligner. The first and the last token of a row are the
boundaries of its text, which take the silence there; the others are the transcript's, by the voice's tokenizer. A
row's frames sum to those of its mel spectrogram. A row that could not be aligned has no tokens.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.core.errors import DataError
from data_pipelines.storage.beside_index import array_path, array_writer, read_arrays
from data_pipelines.storage.index import Part
from data_pipelines.storage.units import FrameGrid


@dataclasses.dataclass(frozen=True)
class DurationSettings:
    """What durations were computed by.

    Attributes:
      sample_rate: of the audio, in Hz.
      hop: samples from one frame to the next; frames are centred, the first at the first sample.
      tokenizer: fingerprint of the tokenizer of the transcripts.
      aligner: fingerprint of the parameters that aligned them.
    """

    sample_rate: int
    hop: int
    tokenizer: str
    aligner: str

    @property
    def grid(self) -> FrameGrid:
        """Position of the frames, that of mel spectrograms for synthesis."""
        return FrameGrid(self.hop, -self.hop)


@dataclasses.dataclass(frozen=True, eq=False)
class PartDurations:
    """Durations of the tokens of all rows of a part.

    Attributes:
      ends: int64 [rows], end of each row's tokens among all tokens.
      frames: int32 [tokens].
    """

    ends: np.ndarray
    frames: np.ndarray
    settings: DurationSettings

    def of(self, row: int) -> np.ndarray:
        """Returns the frames of each token of a row, int32 [tokens]; none if it could not be aligned."""
        return self.frames[self.ends[row - 1] if row else 0 : self.ends[row]]


def find_durations(part: Part) -> PartDurations | None:
    """Reads the durations next to a part's index. Returns None if they are absent or incomplete."""
    names = "ends", "frames", *(field.name for field in dataclasses.fields(DurationSettings))
    if (arrays := read_arrays(array_path(part, "durations"), *names)) is None:
        return None
    ends, frames, rate, hop, tokenizer, aligner = arrays
    durations = PartDurations(ends, frames, DurationSettings(int(rate), int(hop), str(tokenizer), str(aligner)))
    is_whole = ends.shape == (part.num_rows,) and len(frames) == (ends[-1] if part.num_rows else 0)
    return durations if is_whole else None


def read_durations(part: Part, settings: DurationSettings, run: str = "RUN") -> PartDurations:
    """Reads the durations next to a part's index that were computed with some settings.

    Args:
      run: the run with these settings, for the error.

    Raises:
      DataError: there are none, or others; the message has the command that computes them.
    """
    command = f"jax-speechlm align {run} --sets {part.set_dir.name}:{part.split} --data-dir {part.set_dir.parent}"
    if (durations := find_durations(part)) is None:
        raise DataError(f"{part}: its tokens have no durations. Run: {command}")
    other = durations.settings
    if other == settings:
        return durations
    if (other.sample_rate, other.hop) != (settings.sample_rate, settings.hop):
        why = (
            f"in frames of {other.hop} samples at {other.sample_rate} Hz, not of {settings.hop} at "
            f"{settings.sample_rate} Hz"
        )
    elif other.tokenizer != settings.tokenizer:
        why = "of the tokens of another tokenizer"
    else:
        why = "by another run, or by another of its checkpoints"
    raise DataError(f"{part} has durations {why}. Run: {command}")


def write_durations(part: Part, rows: Sequence[np.ndarray | None], settings: DurationSettings) -> Path:
    """Writes the durations of every row of a part, completely or not at all.

    Args:
      rows: for every row integers [tokens], or None if it could not be aligned.

    Raises:
      DataError: the disk is full, or the folder of the index cannot be written.
      ValueError: the frames of a row are not those of its audio.
    """
    num_frames = settings.grid.num_frames(part.lengths("num_samples"))
    path, empty = array_path(part, "durations"), np.zeros(0, np.int32)
    for row, (frames, expected) in enumerate(zip(rows, num_frames, strict=True)):
        if frames is not None and frames.sum() != expected:
            raise ValueError(f"row {row} of {part} has {expected} frames, and its durations sum to {frames.sum()}")
    kept = [empty if frames is None else np.asarray(frames, np.int32) for frames in rows]
    ends = np.cumsum([len(frames) for frames in kept], dtype=np.int64)
    with array_writer(path, "durations are", lambda: sum(frames.nbytes for frames in kept)) as file:
        np.savez(file, ends=ends, frames=np.concatenate([empty, *kept]), **dataclasses.asdict(settings))
    return path
