"""Labels of speech and silence for the frames of prepared utterances, computed from `word_times`."""

import dataclasses
import functools
import hashlib
import logging
from collections import Counter

import numpy as np

from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import Index
from data_pipelines.storage.tokens import TokenStore
from data_pipelines.storage.units import FrameGrid
from data_pipelines.storage.word_times import read_word_times

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class FrameLabels(TokenStore):
    """A label for each frame of all rows of an index, uint16: 1 in a word or a short pause, otherwise 0.

    A row whose words have no times has no labels. Threads may share one.

    Attributes:
      lengths: int64 [rows], frames per utterance.
      not_aligned, without_transcript: numbers of rows without labels, by reason.
    """

    grid: FrameGrid
    not_aligned: int
    without_transcript: int

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the labels of all frames."""
        digest = hashlib.sha256(self.lengths.tobytes())
        for part in self._ids:
            digest.update(part.tobytes())
        return digest.hexdigest()[:16]


def speech_frames(index: Index, grid: FrameGrid, min_pause: float, empty_is_silence: bool = False) -> FrameLabels:
    """Computes the labels of an index; rows without labels are counted and logged.

    Args:
      min_pause: seconds; a shorter pause between two words is speech.
      empty_is_silence: whether a row with an empty transcript is all silence; otherwise it has no labels.

    Raises:
      DataError: a part has no word times, or no row has any; the message has the command that makes them.
    """
    shortest = round(min_pause * index.sample_rate)
    parts, missing = [], Counter()
    for part in index.parts:
        times, num_frames = read_word_times(part), grid.num_frames(part.lengths("num_samples"))
        rows = [np.zeros(0, np.uint16)] * part.num_rows
        for row, text in enumerate(part.texts()):
            if times.counts[row] or (empty_is_silence and not text.strip()):
                rows[row] = _labels(times.of(row), int(num_frames[row]), grid.frame_samples, shortest)
            else:
                missing["not aligned" if text.strip() else "without a transcript"] += 1
        ids = np.concatenate([np.zeros(0, np.uint16), *rows])
        parts.append((ids, np.cumsum([len(row) for row in rows], dtype=np.int64)))
    for why, count in missing.items():
        log.warning("%d of %d rows are %s: their frames have no labels", count, len(index), why)
    counts = missing["not aligned"], missing["without a transcript"]
    labels = FrameLabels.of(index.first_row, parts, grid, *counts)
    if not labels.lengths.any():
        remedy = "align them with a more accurate run"
        if not missing["not aligned"]:
            remedy = "if they contain no speech, add --objective.empty-is-silence"
        raise DataError(f"{', '.join(map(str, index.parts))}: no row has words with times: {remedy}")
    return labels


def _labels(spans: np.ndarray, num_frames: int, frame_samples: int, shortest_pause: int) -> np.ndarray:
    """Returns uint16 [frames]: 1 if the middle of a frame's hop is in one of [words, 2] samples, or in a short
    pause.
    """
    middle = np.arange(num_frames) * frame_samples + frame_samples // 2
    starts, stops = spans.astype(np.int64).T
    if len(spans):
        is_long = starts[1:] - stops[:-1] >= shortest_pause
        starts, stops = starts[np.r_[True, is_long]], stops[np.r_[is_long, True]]
    return (np.searchsorted(starts, middle, "right") > np.searchsorted(stops, middle, "right")).astype(np.uint16)
