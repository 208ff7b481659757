"""Intervals against scipy's bootstrap and closed forms: the resample of a share is binomial, that of a quantile too."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.evaluation import resampling


def rows_of(seed: int, count: int = 60):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 9, count)
    return rng.binomial(tokens, 0.3), tokens


def test_the_interval_of_a_ratio_is_scipys():
    errors, tokens = rows_of(0)
    result = scipy.stats.bootstrap(
        (errors, tokens),
        lambda x, y, axis: x.sum(axis) / y.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resampling.RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    expected = result.confidence_interval
    # A bound of 10,000 resamples deviates by 0.027 of the resamples' deviation, a quarter of the width; four of these.
    error = 4 * 2**0.5 * 0.027 * (expected.high - expected.low) / 3.92
    np.testing.assert_allclose(resampling.bootstrap([errors, tokens]), expected, rtol=0, atol=error)


@settings(max_examples=5, deadline=None)
@given(count=st.integers(30, 200), share=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_the_interval_of_a_share_is_binomial(count, share, seed):
    is_right = np.random.default_rng(seed).random(count) < share
    expected = scipy.stats.binom.ppf([0.025, 0.975], count, is_right.mean()) / count
    bounds = resampling.bootstrap_mean(is_right)
    np.testing.assert_allclose(bounds, expected, rtol=0, atol=1.01 / count)  # the resamples' own deviation: one step
    assert bounds[0] <= is_right.mean() <= bounds[1]
    low, high = resampling.share_interval(is_right)
    assert low <= is_right.mean() <= high
    reference = scipy.stats.binomtest(int(is_right.sum()), count).proportion_ci(method="wilson")
    np.testing.assert_allclose((low, high), reference, rtol=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_interval_of_a_quantile_is_of_binomial_ranks(share):
    values, count = np.random.default_rng(0).permutation(101).astype(float), 101
    need = np.ceil(share * count)  # a resample's quantile is at most the k-th value if this many draws are
    at_most = 1 - scipy.stats.binom.cdf(need - 1, count, np.arange(1, count + 1) / count)
    expected = [np.argmax(at_most >= level) for level in (0.025, 0.975)]
    bounds = resampling.bootstrap_quantile(values, np.arange(count), share)
    np.testing.assert_allclose(bounds, expected, rtol=0, atol=1)
    assert bounds[0] <= np.quantile(values, share) <= bounds[1]


def test_rows_of_a_unit_are_drawn_together():
    errors, tokens = rows_of(1)
    alone = resampling.bootstrap([errors, tokens])
    unit = np.repeat(np.arange(60), 3)
    split = [np.stack([row, 0 * row, 0 * row], axis=1).ravel() for row in (errors, tokens)]
    assert resampling.bootstrap(split, unit_of_row=unit) == alone
    order = np.random.default_rng(2).permutation(180)
    assert resampling.bootstrap([row[order] for row in split], unit_of_row=unit[order]) == alone
    copies = resampling.bootstrap([np.tile(row, 3) for row in (errors, tokens)], unit_of_row=np.tile(np.arange(60), 3))
    np.testing.assert_allclose(copies, alone)  # three times the same utterance is no more evidence
    assert resampling.bootstrap([errors, tokens]) == alone
    assert resampling.bootstrap([errors[:29], tokens[:29]]) is None


def test_speakers_are_units_where_they_are_many_and_known():
    many = [f"s{n % 30}" for n in range(90)]
    assert len(set(resampling.units_of(many).tolist())) == 30
    for speakers in (many[:29], ["a", "b"] * 40, [*many, ""], [*many, None]):
        assert resampling.units_of(speakers).tolist() == list(range(len(speakers)))


def test_holm():
    assert resampling.holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert resampling.holm([0.6, 0.9]) == [1.0, 1.0]
    assert resampling.holm([]) == []
