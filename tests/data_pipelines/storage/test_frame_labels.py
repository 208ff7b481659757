"""Which frames hold a word: sample by sample, from the times of words."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.core.errors import DataError
from data_pipelines.storage import frame_labels
from data_pipelines.storage.index import read_index
from data_pipelines.storage.units import FrameGrid
from data_pipelines.storage.word_times import write_word_times
from tests.data_pipelines.spoken_sets import align_evenly, write_spoken_set

GRID = FrameGrid(frame_samples=320, context_samples=240)
ROWS = [("one two", 9_000), ("", 5_000), ("three", 4_000), ("four five six", 30_000)]


def labels_of(tmp_path, spans, min_pause=0.0, **options):
    index = read_index(write_spoken_set(tmp_path / "set", {"train": ROWS}), "train")
    write_word_times(index.parts[0], spans, "test")
    store = frame_labels.speech_frames(index, GRID, min_pause, **options)
    return store, [store.read(row, 0, int(store.lengths[row])) for row in range(len(ROWS))]


@settings(max_examples=50, deadline=None)
@given(
    bounds=st.lists(st.integers(0, 8_900), min_size=2, max_size=8, unique=True), pause=st.sampled_from([0, 500, 2000])
)
def test_a_frame_is_speech_if_its_middle_is(bounds, pause):
    spans = np.sort(np.array(bounds[: len(bounds) // 2 * 2])).reshape(-1, 2)
    is_speech = np.zeros(9_000, bool)
    for start, stop in spans:
        is_speech[start:stop] = True
    for (_, stop), (start, _) in itertools.pairwise(spans):
        is_speech[stop:start] |= start - stop < pause
    frames = int(GRID.num_frames(9_000))
    expected = is_speech[np.arange(frames) * 320 + 160]
    np.testing.assert_array_equal(frame_labels._labels(spans, frames, 320, pause), expected)


def test_of_rows_without_times_nothing_is_known_unless_they_are_said_to_be_silent(tmp_path, caplog):
    spans = [np.array([[1000, 3000], [3200, 6000]]), None, None, np.array([[0, 100], [9_000, 9_500], [20_000, 21_000]])]
    store, found = labels_of(tmp_path, spans, min_pause=0.3)
    assert (store.not_aligned, store.without_transcript) == (1, 1)
    assert "1 of 4 rows are without a transcript: their frames have no labels" in caplog.text
    assert len(found[1]) == 0
    silent, found = labels_of(tmp_path, spans, min_pause=0.3, empty_is_silence=True)
    assert (silent.not_aligned, silent.without_transcript) == (1, 0)
    assert silent.fingerprint != store.fingerprint
    assert found[0].tolist() == [3 <= frame < 19 for frame in range(27)]
    assert found[1].tolist() == [0] * 14
    assert len(found[2]) == 0
    assert 0 < found[3].sum() < 10
    assert len(found[3]) == GRID.num_frames(30_000)


def test_parts_lie_end_to_end(tmp_path):
    dirs = [write_spoken_set(tmp_path / name, {"train": rows}) for name, rows in (("a", ROWS[:1]), ("b", ROWS[2:]))]
    index = read_index(dirs, "train")
    for part in index.parts:
        align_evenly(part)
    store = frame_labels.speech_frames(index, GRID, 0.0)
    np.testing.assert_array_equal(store.lengths, GRID.num_frames(np.array([9_000, 4_000, 30_000])))
    assert store.read(1, 0, 99).sum() == np.count_nonzero(np.arange(11) * 320 + 160 >= 100)


def test_a_set_of_which_nothing_is_known_is_an_error(tmp_path):
    with pytest.raises(DataError, match="set/train: no row has words with times"):
        labels_of(tmp_path, [None] * 4)


def test_without_times_the_command_is_named(tmp_path):
    index = read_index(write_spoken_set(tmp_path / "set", {"train": ROWS}), "train")
    with pytest.raises(DataError, match="jax-speechlm align RUN --sets set --split train --format index"):
        frame_labels.speech_frames(index, GRID, 0.0)
