"""Packed rows of speech: each item once an epoch, a pure function of (seed, step), hardly any padding, no overlap."""

import collections
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batching.fields import text_segment
from data_pipelines.batching.histogram_packing import Classes, pack_ascending, pack_histogram
from data_pipelines.batching.packing import make_text_plan
from data_pipelines.batching.plan import FILLER, make_plan
from data_pipelines.batching.rows import choose_row_frames, make_row_plan
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE as SAMPLE_RATE
from tests.data_pipelines.batching.test_plan import durations

quick = settings(max_examples=40)
FRAME = 640


def of_rows(made, step):
    """The utterances of each row of a batch: lists of (item, first sample)."""
    planned = made.plan.batch(step)
    return [
        [(int(item), int(start)) for item, start in zip(*row, strict=True) if item != FILLER]
        for row in zip(planned.rows, planned.start, strict=True)
    ]


Made = collections.namedtuple("Made", "plan lengths gap")


@st.composite
def bounded_options(draw):
    return {
        "seconds_per_batch": draw(st.floats(1, 60)),
        "row_seconds": draw(st.sampled_from([(), (12.0,), (3.0, 9.0)])),
        "max_utterances": draw(st.sampled_from([2, 32])),
        "batch_multiple": draw(st.sampled_from([1, 2])),
        "shortest_first_epochs": draw(st.sampled_from([0, 1])),
        "seed": draw(st.integers(0, 99)),
    }


@st.composite
def plans(draw, **fixed):
    items, seed = draw(st.integers(5, 150)), draw(st.integers(0, 2**31))
    lengths = durations(seed, items)
    options = {
        "seconds_per_batch": draw(st.floats(1, 120)),
        "row_seconds": draw(st.sampled_from([(), (8.0,), (12.0,), (3.0, 9.0), (2.5, 5.0, 8.0)])),
        "max_utterances": draw(st.sampled_from([1, 2, 5, 32])),
        "batch_multiple": draw(st.sampled_from([1, 2, 4])),
        "gap_samples": draw(st.sampled_from([0, 200, 242, 900])),
        "shortest_first_epochs": draw(st.sampled_from([0, 1, 2])),
    }
    options |= fixed
    plan = make_row_plan(lengths, lengths // 1600, seed=seed, max_seconds=8.0, frame_samples=FRAME, **options)
    return Made(plan, lengths, options["gap_samples"])


EITHER = st.one_of(plans(), plans(added_tokens=3))
"""Plans with and without a bound on the tokens of a row."""


@given(made=EITHER, epochs=st.integers(1, 3))
@quick
def test_every_kept_item_stands_once_in_an_epoch(made, epochs):
    """Over as many batches as make whole epochs; batches of a curriculum are whole epochs by themselves."""
    plan = made.plan
    curriculum = plan.curriculum_steps // max(plan.shortest_first_epochs, 1)
    for epoch in range(plan.shortest_first_epochs):
        rows = [plan.batch(epoch * curriculum + step).rows for step in range(curriculum)]
        items = np.concatenate([each.ravel() for each in rows])
        np.testing.assert_array_equal(np.sort(items[items != FILLER]), np.sort(plan.items))
    # epochs follow one another within a bucket, so count the rows of each
    counts, seen = [0] * len(plan.buckets), collections.Counter()
    step = plan.curriculum_steps
    while min(count / bucket.num_rows for count, bucket in zip(counts, plan.buckets, strict=True)) < epochs:
        bucket = plan.batch(step).bucket
        for row in of_rows(made, step):
            if counts[bucket] < epochs * plan.buckets[bucket].num_rows:
                seen.update(item for item, _ in row)
                assert row, "filler row"
            counts[bucket] += 1
        step += 1
    assert seen == dict.fromkeys(plan.items.tolist(), epochs)
    if len(plan.buckets) == 1:
        first = plan.curriculum_steps
        assert first + epochs * (plan.steps_per_epoch - 1) <= step <= first + epochs * plan.steps_per_epoch


@given(made=EITHER, step=st.integers(0, 300))
@quick
def test_utterances_take_whole_frames_and_keep_the_gap(made, step):
    plan = made.plan
    bucket = plan.buckets[plan.batch(step).bucket]
    rows = of_rows(made, step)
    assert bucket.num_samples % FRAME == 0
    assert bucket.num_tokens % 8 == 0
    assert len(rows) == bucket.batch_size
    assert plan.batch(step).rows.shape == (bucket.batch_size, bucket.num_utterances)
    for row in rows:
        end = 0
        for item, start in row:
            length = made.lengths[item]
            assert start == end  # of whole frames, and no frame between
            assert start + length <= bucket.num_samples
            assert length // 1600 <= bucket.num_tokens
            end = start + -(-(length + made.gap) // FRAME) * FRAME


@given(made=plans())
@quick
def test_arrays_are_no_larger_than_the_fullest_row(made):
    plan = made.plan
    fullest = collections.Counter()
    for step in range(plan.curriculum_steps + 2 * plan.steps_per_epoch + 2):
        bucket = plan.batch(step).bucket
        fullest[bucket] = max(fullest[bucket], *map(len, of_rows(made, step)))
    assert [bucket.num_utterances for bucket in plan.buckets] == [fullest[b] for b in range(len(plan.buckets))]


@given(made=plans(), tokens=st.integers(0, 2**31), added=st.sampled_from([0, 1, 14]), options=bounded_options())
@quick
def test_the_text_of_a_row_is_bounded_whatever_shares_it(made, tokens, added, options):
    """Numbers of tokens that durations say nothing about; rows of the curriculum and of several epochs."""
    tokens = np.random.default_rng(tokens).integers(1, 70, len(made.lengths))
    plan = make_row_plan(made.lengths, tokens, max_seconds=8.0, added_tokens=added, **options)
    assert all(bucket.num_text % 8 == 0 < bucket.num_text for bucket in plan.buckets)
    fullest = collections.Counter()
    for step in range(plan.curriculum_steps + 2 * plan.steps_per_epoch + 2):
        bucket = plan.batch(step).bucket
        for row in of_rows(Made(plan, made.lengths, 0), step):
            text = sum(tokens[item] + added for item, _ in row)
            assert text <= plan.buckets[bucket].num_text
            fullest[bucket] = max(fullest[bucket], text)
            assert all(tokens[item] <= plan.buckets[bucket].num_tokens for item, _ in row)
    for number, bucket in enumerate(plan.buckets):  # but for the rounding, of each number and to a multiple of 8
        assert bucket.num_text <= 1.04 * fullest[number] + bucket.num_utterances + 8


def test_a_bound_on_text_leaves_less_unused_than_room_for_any_row():
    lengths = durations(2, 4000)
    tokens = (1 + lengths * np.random.default_rng(0).lognormal(0, 0.3, 4000) / 1100).astype(int)
    options = {"row_seconds": (24.0,), "seconds_per_batch": 96, "seed": 0}
    free, plan = (make_row_plan(lengths, tokens, added_tokens=added, **options) for added in (None, 5))
    rows = [row for step in range(2 * free.steps_per_epoch) for row in of_rows(Made(free, lengths, 0), step)]
    most = max(sum(tokens[item] + 5 for item, _ in row) for row in rows)

    def used(made, places):
        return (tokens + 5).sum() / (made.buckets[0].num_rows * places)

    assert plan.text_padding_share == pytest.approx(1 - used(plan, plan.buckets[0].num_text))
    assert plan.text_padding_share < 0.1 < 0.25 < 1 - used(free, most)
    assert plan.padding_share < free.padding_share + 0.05
    assert free.text_padding_share == free.buckets[0].num_text == 0
    assert "of text" not in free.describe()
    assert f"{plan.text_padding_share:.1%} of text" in plan.describe()
    assert str(plan.buckets[0].num_text) in plan.describe()
    assert plan.fingerprint != free.fingerprint


def test_one_dense_utterance_sets_the_bound():
    tokens = np.full(50, 10)
    tokens[7] = 500
    plan = make_row_plan(durations(3, 50), tokens, seconds_per_batch=50, seed=0, row_seconds=(8.0,), added_tokens=2)
    assert plan.buckets[0].num_text == 504


def test_text_segments_follow_one_another():
    weight = np.array([[1, 0, 1], [0, 0, 0]])
    segment = text_segment(weight, np.array([[2, 0, 1], [0, 0, 0]]), 1, 6)
    assert segment.tolist() == [[1, 1, 1, 3, 3, 0], [0] * 6]
    assert segment.dtype == np.int32
    with pytest.raises(ValueError, match="a row has 5 tokens, more than the 4 of its plan"):
        text_segment(weight, np.array([[2, 0, 1], [0, 0, 0]]), 1, 4)


@given(seed=st.integers(0, 2**31), step=st.integers(0, 10_000), first=st.integers(0, 2))
@quick
def test_a_batch_is_a_pure_function_of_seed_and_step(seed, step, first):
    def make():
        return make_row_plan(
            durations(1, 200), seconds_per_batch=20, seed=seed, row_seconds=(4, 10), shortest_first_epochs=first
        )

    used, fresh = make(), make()
    for earlier in range(0, step, max(step // 5, 1)):  # a history, which must leave no trace
        used.batch(earlier)
    for name in ("rows", "start"):
        np.testing.assert_array_equal(getattr(used.batch(step), name), getattr(fresh.batch(step), name))
    assert used.fingerprint == fresh.fingerprint


@given(made=plans(), hosts=st.sampled_from([2, 4]), step=st.integers(0, 200))
@quick
def test_host_slices_join_to_the_global_batch(made, hosts, step):
    batch = made.plan.batch(step)
    if len(batch.rows) % hosts:
        with pytest.raises(ValueError, match="batch_multiple"):
            batch.host_slice(0, hosts)
    else:
        slices = [batch.rows[batch.host_slice(host, hosts)] for host in range(hosts)]
        np.testing.assert_array_equal(np.concatenate(slices), batch.rows)


def test_epochs_shuffle_rows_and_what_shares_a_row():
    lengths = durations(1, 500)
    one, other = (
        Made(make_row_plan(lengths, seconds_per_batch=20, seed=seed, batch_multiple=1), lengths, 0) for seed in (1, 2)
    )
    assert one.plan.fingerprint != other.plan.fingerprint

    def epoch(made, number):
        num_rows, size = made.plan.buckets[0].num_rows, made.plan.buckets[0].batch_size
        rows = [row for step in range((number + 1) * num_rows // size + 1) for row in of_rows(made, step)]
        return [frozenset(item for item, _ in row) for row in rows[number * num_rows : (number + 1) * num_rows]]

    orders = [epoch(made, number) for made in (one, other) for number in (0, 1)]
    for first, second in itertools.combinations(orders, 2):
        assert set().union(*first) == set().union(*second)
        assert len(set(first) & set(second)) < 0.2 * len(first), "other utterances must share a row"
        sizes = [
            [-(-lengths[max(row, key=lambda item: lengths[item])] // FRAME) for row in rows] for rows in (first, second)
        ]
        assert sizes[0] != sizes[1]
        assert sorted(sizes[0]) == sorted(sizes[1])


@given(made=plans(shortest_first_epochs=2))
@quick
def test_the_curriculum_is_in_ascending_order_and_then_ends(made):
    plan = made.plan
    steps = plan.curriculum_steps // 2
    epochs = [
        [item for step in range(epoch * steps, (epoch + 1) * steps) for row in of_rows(made, step) for item, _ in row]
        for epoch in range(2)
    ]
    for order in epochs:
        frames = np.minimum(-(-(made.lengths[order] + made.gap) // FRAME), plan.buckets[-1].num_samples // FRAME)
        assert (np.diff(frames) >= 0).all()


def test_the_curriculum_shuffles_what_is_of_equal_length():
    lengths = durations(0, 300)
    made = Made(make_row_plan(lengths, seconds_per_batch=20, seed=3, shortest_first_epochs=2), lengths, 0)
    steps = made.plan.curriculum_steps // 2
    first, second, third = ([of_rows(made, epoch * steps + step) for step in range(steps)] for epoch in range(3))
    assert first != second
    means = [np.mean([lengths[item] for row in batch for item, _ in row]) for batch in third]
    assert means != sorted(means)
    assert "by ascending length at first: 2 epochs" in made.plan.describe()
    computed = real = 0
    for step in range(steps):
        planned = made.plan.batch(step)
        computed += len(planned.rows) * made.plan.buckets[planned.bucket].num_samples
        real += lengths[planned.rows[planned.rows != FILLER]].sum()
    assert made.plan.curriculum_padding_share == pytest.approx(1 - real / computed)


def test_padding_share_counts_what_the_device_computes():
    lengths = durations(0, 777)
    made = Made(make_row_plan(lengths, seconds_per_batch=60, seed=0, row_seconds=(4, 10)), lengths, 0)
    plan = made.plan
    computed = sum(bucket.num_rows * bucket.num_samples for bucket in plan.buckets)
    assert plan.padding_share == pytest.approx(1 - lengths.sum() / computed)
    many = 40 * plan.steps_per_epoch
    taken, heard = np.zeros(2), 0
    for step in range(many):
        planned = plan.batch(step)
        taken[planned.bucket] += 1
        heard += lengths[planned.rows[planned.rows != FILLER]].sum()
    np.testing.assert_allclose(taken / many, plan.step_shares, atol=1 / many)
    padded = sum(taken * [bucket.batch_size * bucket.num_samples for bucket in plan.buckets])
    assert 1 - heard / padded == pytest.approx(plan.padding_share, abs=2e-3)


@pytest.mark.parametrize("row_seconds", [(), (5, 10)])
def test_padding_on_short_clips_is_within_two_per_cent(row_seconds):
    lengths = durations(0, 6000)
    plan = make_row_plan(lengths, lengths // 1600, seconds_per_batch=100, seed=0, row_seconds=row_seconds)
    assert plan.padding_share < 0.02
    assert len(plan.buckets) == max(len(row_seconds), 1)
    assert max(bucket.num_utterances for bucket in plan.buckets) < 32


def test_an_utterance_that_fits_without_its_gap_only_is_alone():
    lengths = np.array(
        [10 * FRAME, 10 * FRAME - 100, 10 * FRAME - 200, 10 * FRAME + 1, 5 * FRAME - 200, 5 * FRAME - 200]
    )
    plan = make_row_plan(
        lengths, seconds_per_batch=1, seed=0, row_seconds=(10 * FRAME / 16_000,), gap_samples=200, batch_multiple=1
    )
    assert plan.dropped["too_long"] == 1
    assert (plan.buckets[0].num_rows, plan.buckets[0].batch_size) == (4, 2)
    rows = [row for step in range(2) for row in of_rows(Made(plan, lengths, 200), step)]
    assert sorted(sorted(item for item, _ in row) for row in rows) == [[0], [1], [2], [4, 5]]


def test_long_rows_are_filled_by_short_utterances_before_short_rows_are():
    lengths = np.array([20 * FRAME] * 2 + [5 * FRAME] * 5 + [4 * FRAME])
    seconds = FRAME / SAMPLE_RATE
    plan = make_row_plan(
        lengths, seconds_per_batch=1, seed=0, row_seconds=(10 * seconds, 25 * seconds), batch_multiple=1
    )
    assert [(bucket.num_samples // FRAME, bucket.num_rows) for bucket in plan.buckets] == [(10, 2), (25, 2)]
    assert [bucket.num_utterances for bucket in plan.buckets] == [2, 2]
    unused = make_row_plan(lengths, seconds_per_batch=1, seed=0, row_seconds=(24 * seconds, 3 * seconds))
    assert [bucket.num_samples for bucket in unused.buckets] == [24 * FRAME]


def test_drops_are_those_of_buckets_and_of_rows_that_are_too_short():
    lengths = np.array([0, 100, 16_000, 16_000, 32_000, 64_000])
    tokens = np.array([0, 5, 5, 0, 9, 9])
    options = {"seconds_per_batch": 8, "seed": 0, "min_seconds": 0.1, "batch_multiple": 1}
    plan = make_row_plan(lengths, tokens, max_seconds=3, **options)
    buckets = make_plan(lengths, tokens, max_seconds=3, **options)
    for name in ("dropped", "dropped_seconds", "dropped_share", "num_items"):
        assert getattr(plan, name) == getattr(buckets, name)
    short = make_row_plan(lengths, tokens, max_seconds=3, row_seconds=(1.5,), **options)
    assert short.dropped["too_long"] == 2
    assert short.items.tolist() == [2]
    exact = make_row_plan(np.array([347_520] * 3), seconds_per_batch=8, seed=0, row_seconds=(21.72,))
    assert len(exact.items) == 3


def test_few_utterances_may_share_a_row():
    lengths = np.full(100, 1000)
    plan = make_row_plan(lengths, seconds_per_batch=20, seed=0, row_seconds=(10,), max_utterances=7, min_seconds=0)
    assert plan.buckets[0].num_utterances == 7
    assert plan.buckets[0].num_rows == 15


def test_impossible_plans_say_why():
    lengths = durations(0, 10)
    options = {"seconds_per_batch": 10, "seed": 0}
    with pytest.raises(ValueError, match=r"no item of 10 .*too_long.*10"):
        make_row_plan(lengths, row_seconds=(0.15,), **options)
    with pytest.raises(ValueError, match="row_seconds must be positive"):
        make_row_plan(lengths, row_seconds=(1, 0), **options)
    with pytest.raises(ValueError, match="max_utterances must be positive"):
        make_row_plan(lengths, max_utterances=0, **options)
    with pytest.raises(ValueError, match="gap_samples must not be negative"):
        make_row_plan(lengths, gap_samples=-1, **options)
    with pytest.raises(ValueError, match="step must not be negative"):
        make_row_plan(lengths, **options).batch(-1)


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any),
    more=st.lists(st.integers(1, 60), max_size=2),
    most=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=100)
def test_patterns_hold_every_piece_and_fit_their_rows(counts, more, most):
    histogram = [0, *counts]
    row_lengths = sorted({len(counts), *(length for length in more if length < len(counts))})
    for pack in (pack_histogram, pack_ascending):
        patterns = pack(histogram, row_lengths, most)
        held = np.zeros(len(histogram), int)
        for pattern, copies in patterns:
            np.add.at(held, list(pattern), copies)
            assert copies > 0
            assert sum(pattern) <= min(length for length in row_lengths if length >= max(pattern))
            assert len(pattern) <= (most or len(counts))
        assert held.tolist() == histogram
    order = [length for pattern, copies in patterns for length in pattern * copies]
    assert order == sorted(order)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=20),
    more=st.integers(1, 20),
    room=st.integers(9, 40),
    most=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=100)
def test_patterns_of_classes_fit_both_capacities(sizes, more, room, most):
    length, text, histogram = np.array(sorted(sizes)).T
    row_lengths = sorted({more, int(length.max())} - {n for n in (more,) if n > length.max()})
    classes = Classes(length, text, [room + 3 * number for number in range(len(row_lengths))])
    for pack in (pack_histogram, pack_ascending):
        held = np.zeros(len(histogram), int)
        for pattern, copies in pack(histogram, row_lengths, most, classes):
            np.add.at(held, list(pattern), copies)
            row = next(i for i, n in enumerate(row_lengths) if n >= length[list(pattern)].max())
            assert length[list(pattern)].sum() <= row_lengths[row]
            assert text[list(pattern)].sum() <= classes.row_text[row]
            assert copies > 0
            assert len(pattern) <= (most or len(pattern))
        assert held.tolist() == histogram.tolist()


def test_rows_of_text_and_buckets_of_speech_are_those_of_earlier_versions():
    """A run that was started before packing of speech continues: fingerprints and batches are unchanged."""
    lengths = np.arange(500) ** 2 * 7919 % 700
    text = make_text_plan(lengths, context=128, sequences_per_batch=8, seed=3)
    weighed = {"source_rows": [200, 300], "weights": [1, 2]}
    mixed = make_text_plan(lengths, context=128, sequences_per_batch=8, seed=3, **weighed)
    samples = 3000 + np.arange(500) ** 2 * 104_729 % 140_000
    buckets = make_plan(samples, samples // 1600, seconds_per_batch=50, seed=3, shortest_first_epochs=1)
    assert (text.fingerprint, mixed.fingerprint) == ("f14724643e7d66d1", "6e8a8bcd1b6c6b66")
    assert buckets.fingerprint == "0d85a3209d46b7a2"
    segments = ("place", "row", "start", "length", "example_id")
    assert _digest(text, segments) == "43e4eb08025382da"
    assert _digest(mixed, segments) == "9f8e67c2f9427c51"
    assert _digest(buckets, ("rows",)) == "b3d0bc70ef6bae78"


def _digest(plan, names) -> str:
    digest = hashlib.sha256(plan.fingerprint.encode())
    for step in range(60):
        planned = plan.batch(step)
        for name in names:
            digest.update(np.ascontiguousarray(getattr(planned, name)).astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def test_rows_are_long_enough_for_two_utterances_of_the_usual_length():
    lengths = np.concatenate(
        [np.full(900, 14 * SAMPLE_RATE), np.full(100, 24 * SAMPLE_RATE), np.full(1500, SAMPLE_RATE)]
    )
    options = {"seconds_per_batch": 240, "seed": 0, "batch_multiple": 1}
    plan = make_row_plan(lengths, **options)
    assert [bucket.num_samples / SAMPLE_RATE for bucket in plan.buckets] == [30]  # of 24, 24, 26.67, 30, ... 48
    assert plan.buckets[0].batch_size == 8
    assert plan.padding_share < 0.02 < make_row_plan(lengths, row_seconds=(24,), **options).padding_share


def test_rows_are_a_little_longer_if_that_saves_a_row_that_is_nearly_empty():
    lengths = np.array([100 * FRAME] + [50 * FRAME] * 9 + [51 * FRAME])
    options = {"seed": 0, "batch_multiple": 1}
    for batch_frames, expected in (
        (220, (101, 6)),
        (201, (100, 7)),
    ):  # with 101 frames, 201 hold one row instead of two
        plan = make_row_plan(lengths, seconds_per_batch=batch_frames * FRAME / SAMPLE_RATE, **options)
        assert [(bucket.num_samples // FRAME, bucket.num_rows) for bucket in plan.buckets] == [expected]
        assert plan.buckets[0].batch_size == 2


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(lambda counts: counts[-1] > 0),
    batch_frames=st.integers(1, 500),
)
@quick
def test_a_longer_row_fills_the_batch_or_takes_no_row_from_it(counts, batch_frames):
    longest = len(counts)
    frames = choose_row_frames(np.array([0, *counts]), batch_frames, 32)
    assert longest <= frames <= 2 * longest
    num_rows = batch_frames // frames
    assert frames == longest or batch_frames // num_rows == frames or num_rows == batch_frames // longest
