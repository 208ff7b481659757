"""The plan's promises: each item once an epoch, a pure function of (seed, step), the least padding of its shapes."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batching.plan import FILLER, bucket_edges, make_eval_plan, make_plan
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE as SAMPLE_RATE
from data_pipelines.core.shuffle import derive_key, permute, uniform

quick = settings(max_examples=25)


def durations(seed: int, items: int, median: float = 2.3, longest: float = 9.7) -> np.ndarray:
    """int64 [items] samples, spread like the clips of queen-en (median 2.3 s, 90 % within 0.9 to 4.9 s)."""
    seconds = np.random.default_rng(seed).lognormal(np.log(median), 0.52, items)
    return (np.clip(seconds, 0.2, longest) * SAMPLE_RATE).astype(np.int64)


def epoch_rows(plan, epoch=0):
    first = epoch * plan.steps_per_epoch
    return [plan.batch(step) for step in range(first, first + plan.steps_per_epoch)]


plans = st.builds(
    lambda seed, items, buckets, seconds, multiple: make_plan(
        durations(seed, items),
        durations(seed, items) // 1600,
        seconds_per_batch=seconds,
        seed=seed,
        num_buckets=buckets,
        batch_multiple=multiple,
        max_seconds=8.0,
        max_tokens=70,
    ),
    seed=st.integers(0, 2**31),
    items=st.integers(5, 300),
    buckets=st.integers(1, 9),
    seconds=st.floats(1, 200),
    multiple=st.sampled_from([1, 2, 8]),
)


@given(plan=plans, epoch=st.integers(0, 5))
@quick
def test_every_kept_item_stands_once_in_an_epoch(plan, epoch):
    rows = np.concatenate([batch.rows for batch in epoch_rows(plan, epoch)])
    np.testing.assert_array_equal(np.sort(rows[rows != FILLER]), np.sort(plan.items))
    assert len(plan.items) + sum(plan.dropped.values()) == plan.num_items


@given(seed=st.integers(0, 2**31), step=st.integers(0, 10_000))
@quick
def test_a_batch_is_a_pure_function_of_seed_and_step(seed, step):
    def make():
        return make_plan(durations(1, 200), seconds_per_batch=20, seed=seed)

    used, fresh = make(), make()
    for earlier in range(0, step, max(step // 5, 1)):  # a history, which must leave no trace
        used.batch(earlier)
    np.testing.assert_array_equal(used.batch(step).rows, fresh.batch(step).rows)
    np.testing.assert_array_equal(used.batch(step).crop_at, fresh.batch(step).crop_at)
    assert used.fingerprint == fresh.fingerprint


def test_seeds_and_epochs_shuffle_rows_and_batches():
    one, other = (make_plan(durations(1, 500), seconds_per_batch=20, seed=seed) for seed in (1, 2))
    orders = [[tuple(b.rows) for b in epoch_rows(plan, epoch)] for plan in (one, other) for epoch in (0, 1)]
    for first, second in itertools.combinations(orders, 2):
        assert set(first) != set(second), "the rows within batches must differ"
        assert first != sorted(first)
    shapes = [[b.bucket for b in epoch_rows(one, epoch)] for epoch in (0, 1)]
    assert shapes[0] != shapes[1], "the order of the shapes must differ"
    assert one.fingerprint != other.fingerprint


@given(plan=plans, step=st.integers(0, 500))
@quick
def test_shapes_hold_what_stands_in_them(plan, step):
    batch = plan.batch(step)
    bucket = plan.buckets[batch.bucket]
    assert len(batch.rows) == bucket.batch_size
    assert bucket.num_samples % 640 == 0
    assert bucket.num_tokens % 8 == 0
    real = np.isin(np.arange(plan.num_items), batch.rows)
    lengths = _lengths_of(plan)
    assert lengths[real].max() <= bucket.num_samples
    assert (lengths[real] // 1600).max() <= bucket.num_tokens


def _lengths_of(plan):
    """The durations that the `plans` strategy made this plan from."""
    return durations(plan.seed, plan.num_items)


@given(plan=plans, hosts=st.sampled_from([1, 2, 8]), step=st.integers(0, 200))
@quick
def test_host_slices_join_to_the_global_batch(plan, hosts, step):
    batch = plan.batch(step)
    if len(batch.rows) % hosts:
        with pytest.raises(ValueError, match="batch_multiple"):
            batch.host_slice(0, hosts)
    else:
        slices = [batch.rows[batch.host_slice(host, hosts)] for host in range(hosts)]
        assert len({len(part) for part in slices}) == 1
        np.testing.assert_array_equal(np.concatenate(slices), batch.rows)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9, unique=True).map(sorted),
    counts=st.lists(st.integers(1, 30), min_size=9, max_size=9),
    num_buckets=st.integers(1, 4),
    budget=st.integers(1, 200),
    multiple=st.sampled_from([1, 4]),
)
@settings(max_examples=100)
def test_edges_are_as_good_as_brute_force(lengths, counts, num_buckets, budget, multiple):
    lengths, counts = np.array(lengths), np.array(counts[: len(lengths)])
    sizes = np.maximum(budget // (lengths * multiple), 1) * multiple

    def frames(edges):
        total, start = 0, 0
        for edge in edges:
            total += -(-counts[start : edge + 1].sum() // sizes[edge]) * sizes[edge] * lengths[edge]
            start = edge + 1
        return total

    last = len(lengths) - 1
    choices = (
        (*inner, last) for size in range(num_buckets) for inner in itertools.combinations(range(last), min(size, last))
    )
    edges = bucket_edges(lengths, counts, sizes, num_buckets)
    assert edges[-1] == last
    assert len(edges) <= num_buckets
    assert frames(edges) == min(map(frames, choices))


def test_batch_sizes_keep_to_the_budget_and_the_multiple():
    plan = make_plan(durations(0, 3000), seconds_per_batch=100, seed=0, batch_multiple=4)
    for bucket in plan.buckets:
        seconds = bucket.num_samples / SAMPLE_RATE
        assert bucket.batch_size % 4 == 0
        assert 100 - 4 * seconds < bucket.batch_size * seconds <= 100
    long_rows = make_plan(durations(0, 300), seconds_per_batch=1, seed=0, batch_multiple=8)
    assert {bucket.batch_size for bucket in long_rows.buckets} == {8}


def test_drops_are_counted_once_by_the_first_reason():
    lengths = np.array([0, 100, 16_000, 16_000, 16_000, 64_000, 16_000])
    tokens = np.array([0, 5, 5, 0, 30, 99, 5])
    plan = make_plan(
        lengths, tokens, seconds_per_batch=8, seed=0, min_seconds=0.1, max_seconds=3, max_tokens=20, batch_multiple=1
    )
    expected = {"empty": 1, "too_short": 1, "too_long": 1, "no_tokens": 1, "too_many_tokens": 1}
    assert plan.dropped == expected
    assert plan.dropped_seconds == {
        "empty": 0,
        "too_short": 100 / 16_000,
        "too_long": 4,
        "no_tokens": 1,
        "too_many_tokens": 1,
    }
    assert plan.dropped_share == (100 + 6 * 16_000) / (100 + 8 * 16_000)
    assert sorted(plan.items) == [2, 6]


def test_the_curriculum_takes_short_batches_first():
    plan = make_plan(durations(0, 500), seconds_per_batch=20, seed=3, shortest_first_epochs=2)
    order = [[batch.bucket for batch in epoch_rows(plan, epoch)] for epoch in range(3)]
    assert order[0] == sorted(order[0])
    assert order[1] == sorted(order[1])
    assert order[2] != sorted(order[2])
    assert [tuple(b.rows) for b in epoch_rows(plan, 0)] != [tuple(b.rows) for b in epoch_rows(plan, 1)]


def test_an_evaluation_plan_keeps_all_in_order_of_length(caplog):
    lengths = durations(0, 203)
    lengths[:2] = 0  # silence that a recogniser may still get wrong
    plan = make_eval_plan(lengths, np.zeros(203, int), seconds_per_batch=30)
    rows = np.concatenate([batch.rows for batch in epoch_rows(plan)])
    rows = rows[rows != FILLER]
    assert len(rows) == 203
    assert (np.diff(-(-lengths[rows] // 640)) >= 0).all()
    limited = make_eval_plan(lengths, seconds_per_batch=30, max_seconds=4)
    count = int((lengths > 64_000).sum())
    assert limited.dropped == {"too_long": count}
    assert f"{count} of 203 items are longer than 4 s and will not be evaluated" in caplog.text


def test_padding_share_counts_what_the_device_computes():
    lengths = durations(0, 777)
    plan = make_plan(lengths, seconds_per_batch=60, seed=0)
    computed = sum(len(b.rows) * plan.buckets[b.bucket].num_samples for b in epoch_rows(plan))
    assert plan.padding_share == pytest.approx(1 - lengths.sum() / computed)
    assert plan.cropped_share == 0


def test_padding_on_short_clips_stays_within_five_per_cent():
    """With tokens it takes some 28 static shapes; 8 suffice where up to 15 % of a clip may be left out of a pass."""
    lengths = durations(0, 6000)
    padded = make_plan(lengths, lengths // 1600, seconds_per_batch=100, seed=0)
    more_shapes = make_plan(lengths, lengths // 1600, seconds_per_batch=100, seed=0, num_buckets=28)
    cropped = make_plan(lengths, seconds_per_batch=100, seed=0, max_crop=0.15)
    assert padded.padding_share < 0.15
    assert more_shapes.padding_share < 0.06
    assert cropped.padding_share < 0.05
    assert cropped.cropped_share < 0.06
    assert len(cropped.buckets) <= 8


def test_no_item_loses_more_than_it_may():
    lengths = durations(0, 2000)
    plan = make_plan(lengths, seconds_per_batch=100, seed=0, max_crop=0.1)
    for batch in epoch_rows(plan):
        rows = batch.rows[batch.rows != FILLER]
        assert (plan.buckets[batch.bucket].num_samples >= 0.9 * lengths[rows]).all()
        assert ((batch.crop_at >= 0) & (batch.crop_at < 1)).all()
    with pytest.raises(ValueError, match="max_crop"):
        make_plan(lengths, lengths // 1600, seconds_per_batch=100, seed=0, max_crop=0.1)


def test_impossible_plans_say_why():
    lengths = durations(0, 10)
    with pytest.raises(ValueError, match=r"no item of 10 .*too_long.*10"):
        make_plan(lengths, seconds_per_batch=10, seed=0, max_seconds=0.15)
    with pytest.raises(ValueError, match="do not match"):
        make_plan(lengths, np.ones(9, int), seconds_per_batch=10, seed=0)
    with pytest.raises(ValueError, match="num_buckets must be positive"):
        make_plan(lengths, seconds_per_batch=10, seed=0, num_buckets=0)
    with pytest.raises(ValueError, match="negative"):
        make_plan(lengths, seconds_per_batch=10, seed=0).batch(-1)


def test_memory_grows_by_few_bytes_an_item():
    """10 million items must plan under 2 GB, 200 bytes each: half of that, on half a million."""
    lengths = durations(0, 500_000, median=8.0, longest=30.0)
    tokens = lengths // 1600
    tracemalloc.start()
    plan = make_plan(lengths, tokens, seconds_per_batch=1000, seed=0)
    plan.batch(12_345)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * len(lengths)


@given(size=st.integers(1, 500), key=st.integers(0, 2**64 - 1))
@quick
def test_permute_is_a_bijection(size, key):
    np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_permute_is_uniform_over_keys():
    """Over 5,000 keys each of 5 places gets each value about a fifth of the times (5 sigma); all 120 orders occur."""
    images = np.array([permute(np.arange(5), 5, derive_key(0, key)) for key in range(5000)])
    counts = np.array([[(images[:, place] == value).sum() for value in range(5)] for place in range(5)])
    assert abs(counts - 1000).max() < 5 * np.sqrt(5000 * 0.2 * 0.8)
    assert len({tuple(image) for image in images}) == 120


def test_uniform_covers_the_unit_interval():
    drawn = uniform(np.arange(20_000), derive_key(1, 2))
    assert 0 <= drawn.min() < 0.001
    assert 0.999 < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03
