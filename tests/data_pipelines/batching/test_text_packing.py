"""The text plan: every piece exactly once an epoch, whatever the hosts, and hardly a position empty."""

import collections
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batching.packing import PERIOD, make_text_eval_plan, make_text_plan, pack_histogram
from data_pipelines.core.shuffle import derive_key, permute

few = settings(max_examples=40)
lengths_of_documents = st.lists(st.integers(0, 70), min_size=1, max_size=60).filter(any)


def realistic(documents: int, median: float = 90, seed: int = 0) -> np.ndarray:
    """Log-normal lengths with a long tail, as those of web pages, messages and articles are."""
    return np.random.default_rng(seed).lognormal(np.log(median), 1.2, documents).astype(np.int64)


def segments(plan, steps, **hosts):
    """(row, start, length) of every segment in some steps."""
    return [
        (int(row), int(start), int(length))
        for step in steps
        for planned in [plan.batch(step, **hosts)]
        for row, start, length in zip(planned.row, planned.start, planned.length, strict=True)
    ]


def expected_pieces(lengths, context):
    """Cuts each document, boundaries included, into pieces that share one position."""
    pieces = []
    for row, length in enumerate(lengths):
        total, start = length + 2, 0
        while length and start < total - 1:
            pieces.append((row, start, min(context, total - start)))
            start += context - 1
    return pieces


@few
@given(lengths_of_documents, st.integers(3, 40), st.integers(1, 5), st.integers(0, 9))
def test_an_epoch_holds_every_piece_once_and_no_row_overflows(lengths, context, batch, seed):
    plan = make_text_plan(np.array(lengths), context=context, sequences_per_batch=batch, seed=seed)
    expected = sorted(expected_pieces(lengths, context))
    steps = range(plan.num_rows)  # so many steps are `batch` whole epochs
    assert plan.epochs(plan.num_rows) == (batch,)
    assert sorted(segments(plan, steps)) == sorted(expected * batch)
    targets = collections.Counter()
    for row, _, length in expected:
        targets[row] += length - 1
    assert targets == {row: length + 1 for row, length in enumerate(lengths) if length}  # each token predicted once
    for step in steps:
        planned = plan.batch(step)
        assert (np.bincount(planned.place, planned.length, minlength=batch) <= context).all()
        assert (planned.example_id >= 0).all()


@few
@given(lengths_of_documents, st.integers(3, 40), st.integers(1, 5))
def test_an_evaluation_meets_every_piece_once_with_filler_at_the_end(lengths, context, batch):
    plan = make_text_eval_plan(np.array(lengths), context=context, sequences_per_batch=batch)
    steps = range(plan.steps_per_epoch)
    assert sorted(segments(plan, steps)) == sorted(expected_pieces(lengths, context))
    ids = np.concatenate([plan.batch(step).example_id for step in steps])
    np.testing.assert_array_equal(ids, [*range(plan.num_rows), *[-1] * (len(ids) - plan.num_rows)])
    assert len(ids) - plan.num_rows < batch


@few
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_hosts_share_the_same_global_batch(step, num_hosts, is_mixed):
    mixture = {"weights": (1, 2), "source_rows": (100, 200)} if is_mixed else {}
    plan = make_text_plan(realistic(300), context=64, sequences_per_batch=8, seed=3, **mixture)
    whole = plan.batch(step)
    size = 8 // num_hosts
    shares = [plan.batch(step, host, num_hosts) for host in range(num_hosts)]
    for name in ("row", "start", "length", "example_id"):
        np.testing.assert_array_equal(np.concatenate([getattr(s, name) for s in shares]), getattr(whole, name))
    places = np.concatenate([s.place + size * host for host, s in enumerate(shares)])
    np.testing.assert_array_equal(places, whole.place)


@pytest.mark.parametrize("context", [128, 512, 2048])
@pytest.mark.parametrize("median", [20, 90, 600])
def test_at_least_97_percent_of_positions_hold_a_token(context, median):
    lengths = realistic(4000, median)
    plan = make_text_plan(lengths, context=context, sequences_per_batch=8, seed=0)
    assert plan.fill_share >= 0.97
    used = sum(length for _, _, length in segments(plan, range(50)))
    assert used / (50 * 8 * context) == pytest.approx(plan.fill_share, abs=0.02)  # what batches hold is what it says


def test_epochs_are_shuffled_differently_and_seeds_too():
    plan = make_text_plan(realistic(500), context=128, sequences_per_batch=1, seed=1)
    other = make_text_plan(realistic(500), context=128, sequences_per_batch=1, seed=2)
    first, second = segments(plan, range(plan.num_rows)), segments(plan, range(plan.num_rows, 2 * plan.num_rows))
    assert sorted(first) == sorted(second)
    assert first != second != segments(other, range(plan.num_rows))
    shared = {frozenset(s.row) for s in map(plan.batch, range(plan.num_rows))} & {
        frozenset(s.row) for s in map(plan.batch, range(plan.num_rows, 2 * plan.num_rows)) if len(s.row) > 1
    }
    assert len(shared) < 0.05 * plan.num_rows  # documents meet others in the next epoch
    assert plan.fingerprint != other.fingerprint


def test_sources_are_mixed_by_weight_with_exact_epochs():
    lengths = realistic(900)
    plan = make_text_plan(lengths, context=64, sequences_per_batch=8, seed=5, source_rows=(100, 800), weights=(3, 1))
    assert plan.quotas == (7500, 2500)
    counts = collections.Counter()
    rows = np.zeros(2, np.int64)
    for step in range(PERIOD // 8):
        if step in (17, 400):
            epochs = plan.epochs(step)
            assert epochs == tuple(Fraction(int(n), p.num_rows) for n, p in zip(rows, plan.packings, strict=True))
        planned = plan.batch(step)
        ids = planned.example_id
        rows += np.bincount((ids >= plan.packings[0].num_rows).astype(int), minlength=2)
        counts.update(zip(planned.row.tolist(), planned.start.tolist(), strict=True))
    np.testing.assert_array_equal(rows, [7500, 2500])
    assert plan.epochs(PERIOD // 8) == tuple(
        Fraction(n, p.num_rows) for n, p in zip((7500, 2500), plan.packings, strict=True)
    )
    for source in (0, 1):  # every piece as often as any other of its source, but for the epoch under way
        seen = [count for (row, _), count in counts.items() if (row >= 100) == bool(source)]
        assert max(seen) - min(seen) <= 1
    shares = [np.mean(plan.batch(step).row < 100) for step in range(5)]
    assert 0 < np.mean(shares) < 1  # within a few steps both sources come up


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6))
@few
def test_quotas_are_whole_and_close_to_the_weights(weights):
    rows = [1] * len(weights)
    plan = make_text_plan(
        np.full(len(rows), 5), context=8, sequences_per_batch=1, seed=0, source_rows=rows, weights=weights
    )
    assert sum(plan.quotas) == PERIOD
    exact = np.array(weights) / sum(weights) * PERIOD
    assert (np.abs(np.array(plan.quotas) - exact) <= len(weights)).all()
    assert min(plan.quotas) >= 1


def test_without_packing_a_row_is_the_beginning_of_one_document():
    lengths = np.array([3, 0, 50, 8])
    plan = make_text_plan(lengths, context=10, sequences_per_batch=3, seed=0, is_packed=False)
    assert sorted(segments(plan, range(1))) == [(0, 0, 5), (2, 0, 10), (3, 0, 10)]
    planned = plan.batch(7)
    np.testing.assert_array_equal(planned.example_id[planned.place], planned.row)
    assert (plan.dropped, plan.num_cut) == ({"empty": 1}, 1)


@few
@given(st.lists(st.integers(0, 30), min_size=2, max_size=40))
def test_histogram_packing_places_every_piece(counts):
    histogram = np.array([0, *counts])
    placed = np.zeros_like(histogram)
    for pattern, copies in pack_histogram(histogram):
        assert sum(pattern) <= len(counts)
        np.add.at(placed, list(pattern), copies)
    np.testing.assert_array_equal(placed, histogram)


def test_a_batch_costs_the_same_at_any_step_and_plans_say_what_they_are():
    plan = make_text_plan(realistic(200), context=64, sequences_per_batch=4, seed=0)
    assert len(plan.batch(10**12).example_id) == 4
    assert "% filled" in plan.describe()
    again = make_text_plan(realistic(200), context=64, sequences_per_batch=4, seed=0)
    assert plan.fingerprint == again.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [0, 0]}, "hold no token"),
        ({"context": 2}, "context of at least 3"),
        ({"weights": (1, 0), "source_rows": (1, 1)}, "weights must be positive"),
        ({"weights": (1, 1)}, "need so many source_rows"),
    ],
)
def test_bad_plans(arguments, message):
    good = {"lengths": [4, 4], "context": 8, "sequences_per_batch": 2, "seed": 0}
    arguments = good | arguments
    with pytest.raises(ValueError, match=message):
        make_text_plan(np.array(arguments.pop("lengths")), **arguments)
    with pytest.raises(ValueError, match="multiple of the number of hosts"):
        make_text_plan(np.array([4, 4]), context=8, sequences_per_batch=2, seed=0).batch(0, 0, 3)


@few
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=30), st.integers(0, 99))
def test_permutations_of_many_sizes_at_once(sizes, seed):
    keys = np.array([derive_key(seed, size) for size in sizes], np.uint64)
    indices = np.array(sizes) - 1
    one_by_one = [permute(np.array([i]), s, int(k))[0] for i, s, k in zip(indices, sizes, keys, strict=True)]
    np.testing.assert_array_equal(permute(indices, np.array(sizes), keys), one_by_one)
