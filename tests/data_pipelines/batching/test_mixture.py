"""Shares of a mixture are exact over any prefix, each stream's steps come in order, and nothing is replayed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batching.mixture import make_mixture_plan
from data_pipelines.batching.packing import PERIOD, make_text_plan

WEIGHTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


def mixture(weights, seed=0):
    return make_mixture_plan([f"stream{n}" for n in range(len(weights))], [None] * len(weights), weights, seed)


@settings(max_examples=60)
@given(weights=WEIGHTS, seed=st.integers(0, 2**63), first=st.integers(0, 3 * PERIOD))
def test_every_step_is_the_next_of_one_stream(weights, seed, first):
    plan = mixture(weights, seed)
    counts = list(plan.taken(first))
    assert sum(counts) == first
    for step in range(first, first + 200):
        stream, own = plan.place(step)
        assert own == counts[stream]
        counts[stream] += 1
    assert plan.taken(first + 200) == tuple(counts)


@settings(max_examples=60)
@given(weights=WEIGHTS, seed=st.integers(0, 2**63))
def test_shares_are_exact_over_any_prefix(weights, seed):
    plan = mixture(weights, seed)
    shares = np.array(plan.quotas) / PERIOD
    np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=len(weights) / PERIOD)
    bound = max(len(weights) - 1, 1)
    for steps in [*range(300), PERIOD - 1, PERIOD, 10**12 + 1]:
        assert (abs(np.array(plan.taken(steps)) - steps * shares) < bound).all()


def test_two_streams_keep_within_one_step_and_are_never_far_apart():
    plan = mixture([3, 1])
    streams = [plan.place(step)[0] for step in range(400)]
    assert Counter(streams) == {0: 300, 1: 100}
    assert {len(run) for run in "".join(map(str, streams)).strip("0").split("1")[1:-1]} == {3}


def test_the_seed_moves_the_pattern():
    orders = {tuple(mixture([2, 1, 1], seed).place(step)[0] for step in range(40)) for seed in range(30)}
    assert len(orders) == 4  # one for each place in the pattern


def test_fingerprints_tell_what_changes_a_batch():
    def text(seed):
        return make_text_plan(np.arange(1, 9), context=8, sequences_per_batch=2, seed=seed)

    def made(names=("a", "b"), weights=(1, 1), seed=0, text_seed=0):
        return make_mixture_plan(names, [text(text_seed), text(1)], weights, seed)

    same = {made().fingerprint, made(weights=(2, 2)).fingerprint}
    assert len(same) == 1
    others = [made(names=("a", "c")), made(weights=(2, 1)), made(seed=1), made(text_seed=2)]
    assert len({plan.fingerprint for plan in others} | same) == 5
    assert "a: 50.00% of the steps" in made().describe()


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="2 streams need as many plans and weights; got 2 and 1"):
        make_mixture_plan(["a", "b"], [None, None], [1], 0)
    with pytest.raises(ValueError, match="weights must be positive"):
        mixture([1, 0])
    with pytest.raises(ValueError, match="must not be negative"):
        mixture([1, 1]).place(-1)
