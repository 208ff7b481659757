"""Whether a word is said in each frame of prepared utterances, from the times that `word_times` keeps."""

import dataclasses

import numpy as np

from data_pipelines.audio import SAMPLE_RATE
from data_pipelines.code_store import FrameGrid
from data_pipelines.index import Index
from data_pipelines.token_store import TokenStore
from data_pipelines.word_times import read_word_times


@dataclasses.dataclass(frozen=True, eq=False)
class FrameLabels(TokenStore):
    """A class for each frame of all rows of an index, uint16: 1 in a word or a short pause, else 0; threads may share.

    A row with a transcript whose alignment failed has none; one without words is silence.

    Attributes:
      lengths: int64 [rows], frames of each utterance.
      grid: where the frames lie.
    """

    grid: FrameGrid


def speech_frames(index: Index, grid: FrameGrid, min_pause: float) -> FrameLabels:
    """The labels of an index.

    Args:
      min_pause: seconds; a shorter pause between two words is speech.

    Raises:
      DataError: of a part no word times are known; the message names the command that finds them.
    """
    shortest = round(min_pause * SAMPLE_RATE)
    ids, ends = [], []
    for part in index.parts:
        times, num_frames = read_word_times(part), grid.num_frames(part.lengths("num_samples"))
        rows = [np.zeros(0, np.uint16)] * part.num_rows
        for row, text in enumerate(part.texts()):
            if times.counts[row] or not text.strip():
                rows[row] = _labels(times.of(row), int(num_frames[row]), grid.frame_samples, shortest)
        ids.append(np.concatenate([np.zeros(0, np.uint16), *rows]))
        ends.append(np.cumsum([len(row) for row in rows], dtype=np.int64))
    lengths = np.concatenate([np.diff(part_ends, prepend=0) for part_ends in ends])
    return FrameLabels(lengths, index.first_row, tuple(ids), tuple(ends), grid)


def _labels(spans: np.ndarray, num_frames: int, frame_samples: int, shortest_pause: int) -> np.ndarray:
    """uint16 [frames]: 1 where the middle of a frame's hop lies in one of [words, 2] samples, or in a short pause."""
    middle = np.arange(num_frames) * frame_samples + frame_samples // 2
    starts, stops = spans.astype(np.int64).T
    if len(spans):
        is_long = starts[1:] - stops[:-1] >= shortest_pause
        starts, stops = starts[np.r_[True, is_long]], stops[np.r_[is_long, True]]
    return (np.searchsorted(starts, middle, "right") > np.searchsorted(stops, middle, "right")).astype(np.uint16)
