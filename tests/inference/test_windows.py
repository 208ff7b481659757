"""Windows tile a recording, whatever the blocks; batches have few shapes, and hold each recording once."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.audio.decode import AudioError
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE as SAMPLE_RATE
from jax_speechlm.inference.segmentation import (
    blocks_of,
    cut_at_pauses,
    empty_batch,
    in_batches,
    in_groups,
    row_counts,
    shape_of,
    shapes,
    windows,
)

LIMIT, OVERLAP, MULTIPLE = 20_000, 2_000, 640


def recording(seed: int, num_samples: int, silence: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Noise that swells and fades, with a stretch of silence."""
    rng = np.random.default_rng(seed)
    loudness = 200 + 3000 * np.sin(np.arange(num_samples) / 3000 + rng.uniform(0, 6)) ** 2
    samples = (loudness * rng.normal(size=num_samples) / 3).astype(np.int16)
    samples[slice(*silence)] = 0
    return samples


def in_blocks(samples: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(samples, sorted(cut % (len(samples) + 1) for cut in cuts))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    num_samples=st.integers(1, 200_000),
    silence=st.tuples(st.integers(0, 100_000), st.integers(0, 100_000)),
    cuts=st.lists(st.integers(0, 200_000), max_size=6),
    skip=st.booleans(),
)
def test_stretches_tile_the_recording_whatever_the_blocks(seed, num_samples, silence, cuts, skip):
    samples = recording(seed, num_samples, (min(silence), max(silence)))
    options = {"overlap": OVERLAP, "multiple": MULTIPLE, "skip_silence": skip}
    found = list(windows(in_blocks(samples, cuts), LIMIT, **options))
    assert [window.start for window in found] == [0, *(window.end for window in found[:-1])]
    assert found[-1].end == num_samples
    for window in found:
        assert window.start % MULTIPLE == window.begin % MULTIPLE == 0
        if window.samples is None:
            assert skip
            assert np.abs(samples[window.start : window.end].astype(int)).max(initial=0) < 200
            continue
        assert len(window.samples) <= LIMIT
        np.testing.assert_array_equal(window.samples, samples[window.begin :][: len(window.samples)])
        right = window.begin + len(window.samples) - window.end
        assert right == (0 if window is found[-1] else OVERLAP // MULTIPLE * MULTIPLE)
    whole = list(windows([samples], LIMIT, **options))
    assert [each[1:] for each in whole] == [each[1:] for each in found]


def test_cuts_fall_into_pauses():
    samples = (3000 * np.random.default_rng(3).normal(size=10 * SAMPLE_RATE)).astype(np.int16)
    pause = slice(int(2.6 * SAMPLE_RATE), int(2.9 * SAMPLE_RATE))
    samples[pause] = 0
    first, *_ = windows([samples], 4 * SAMPLE_RATE, overlap=SAMPLE_RATE // 2)
    assert pause.start < first.end < pause.stop


def test_long_silence_is_left_out_but_for_its_edges():
    samples = recording(1, 60 * SAMPLE_RATE, (10 * SAMPLE_RATE, 50 * SAMPLE_RATE))
    found = list(windows([samples], 8 * SAMPLE_RATE, overlap=SAMPLE_RATE, multiple=640, skip_silence=True))
    silent = [window for window in found if window.samples is None]
    skipped = sum(window.end - window.start for window in silent) / SAMPLE_RATE
    assert 30 < skipped < 40
    assert all(samples[window.start : window.end].max(initial=0) == 0 for window in silent)
    after = next(window for window in found if window.samples is not None and window.end > 50 * SAMPLE_RATE)
    assert after.start <= 49.5 * SAMPLE_RATE  # what comes after is heard with some of the silence before it


def test_no_more_than_a_window_and_a_block_are_held():
    block = recording(0, 60 * SAMPLE_RATE)
    blocks = (block.copy() for _ in range(20))  # 38 MB in all
    tracemalloc.start()
    seconds = sum((window.end - window.start) for window in windows(blocks, 30 * SAMPLE_RATE)) / SAMPLE_RATE
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds == 20 * 60
    assert peak < 12e6


def test_windows_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="make --max-seconds 2 or more"):
        list(windows([recording(0, 50_000)], 8_000, overlap=1_000))


def test_arrays_are_checked():
    assert blocks_of(np.ones(3, np.int16))[0].tolist() == [1, 1, 1]
    for wrong in (np.ones(3, np.float32), np.ones((3, 1), np.int16), np.ones(0, np.int16)):
        with pytest.raises(AudioError, match=r"give int16 \[samples\] at 16000 Hz"):
            blocks_of(wrong)
    assert len(cut_at_pauses(recording(0, 100_000), 2.0)) > 3


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40 * SAMPLE_RATE), min_size=1, max_size=12),
    seconds_per_batch=st.sampled_from([1.0, 60.0, 240.0]),
)
def test_batches_hold_each_recording_once_in_known_shapes(lengths, seconds_per_batch):
    parts = [np.full(length, 1 + number, np.int16) for number, length in enumerate(lengths)]
    known, found = set(shapes(40.0, seconds_per_batch)), []
    for batch in in_batches(parts, seconds_per_batch):
        rows, num_samples = batch["audio"].shape
        assert (rows, num_samples) in known
        assert rows == 1 or rows * num_samples <= seconds_per_batch * SAMPLE_RATE
        real = batch["example_id"] >= 0
        assert real.sum() >= 0.75 * rows
        np.testing.assert_array_equal(real, batch["weight"] == 1)
        assert not batch["audio"][~real].any()
        assert not batch["audio_length"][~real].any()
        for row, number in zip(batch["audio"][real], batch["example_id"][real], strict=True):
            assert shape_of(lengths[number]) == num_samples  # by its own length alone
            np.testing.assert_array_equal(row[: lengths[number]], parts[number])
            assert not row[lengths[number] :].any()
            found.append(number)
    assert sorted(found) == list(range(len(parts)))


def test_shapes_are_few_and_pad_little():
    lengths = sorted({samples for _, samples in shapes(30.0, 60.0)})
    assert len(lengths) == 10
    assert lengths[-1] == 30 * SAMPLE_RATE
    assert all(larger <= 1.5 * smaller + 1 for smaller, larger in itertools.pairwise(lengths))
    assert row_counts(SAMPLE_RATE, 60.0) == [1, 4, 16]
    assert row_counts(100 * SAMPLE_RATE, 60.0) == [1]
    assert empty_batch(4, 100)["audio"].shape == (4, 100)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_settings_of_lengths_that_are_none_are_refused(seconds):
    for call in (
        lambda: list(in_groups([np.zeros(16_000, np.int16)], 16_000, seconds, 60.0)),
        lambda: shapes(seconds, 60.0),
    ):
        with pytest.raises(ValueError, match="--max-seconds must be above 0"):
            call()
    with pytest.raises(ValueError, match="--seconds-per-batch must be above 0"):
        list(in_batches([np.zeros(16_000, np.int16)], seconds))
