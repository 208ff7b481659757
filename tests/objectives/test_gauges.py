"""Gauges against numpy: counts, entropies by scipy, ranks by singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.objectives import gauges


@settings(max_examples=40)
@given(seed=st.integers(0, 999), num_codes=st.integers(2, 9))
def test_codes_are_counted_as_numpy_and_scipy_count_them(seed, num_codes):
    rng = np.random.default_rng(seed)
    codes, weight = rng.integers(0, num_codes, (3, 7)), rng.integers(0, 2, (3, 7)).astype(np.float32)
    share = jax.jit(gauges.code_shares, static_argnums=2)(codes, weight, num_codes)
    counts = np.bincount(codes[weight > 0], minlength=num_codes)
    np.testing.assert_allclose(share, counts / max(1, counts.sum()), rtol=1e-6)
    if counts.sum():
        np.testing.assert_allclose(gauges.entropy(share), scipy.stats.entropy(counts), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gauges.perplexity(share), np.exp(scipy.stats.entropy(counts)), rtol=1e-5)
    assert gauges.used(share) == pytest.approx((counts > 0).mean())


def test_entropy_of_several_books_and_the_most_there_can_be():
    shares = jnp.array([[0.5, 0.5, 0, 0], [0.25] * 4])
    np.testing.assert_allclose(gauges.entropy(shares), np.log([2, 4]), rtol=1e-6)
    np.testing.assert_allclose(gauges.most_entropy(jnp.float32(3), 4), np.log(3), rtol=1e-6)
    np.testing.assert_allclose(gauges.most_entropy(jnp.float32(900), 4), np.log(4), rtol=1e-6)
    assert gauges.most_entropy(jnp.float32(0), 4) > 0  # something to divide by


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_rank_and_spread_are_those_of_the_singular_values(rank, offset):
    rng = np.random.default_rng(rank)
    length = np.array([13, 20, 4])
    inside = np.arange(20) < length[:, None]
    x = rng.normal(size=(3, 20, rank)) @ rng.normal(size=(rank, 6)) + offset
    frames = x[inside]
    s = np.linalg.svd(frames - frames.mean(0), compute_uv=False) ** 2
    expected = s.sum() ** 2 / (s**2).sum()
    assert expected == pytest.approx(1) if rank == 1 else 1.1 < expected < rank
    junk = np.where(inside[..., None], x, 1e3).astype(np.float32)
    found = jax.jit(gauges.representation)(junk, inside.astype(np.float32))
    np.testing.assert_allclose(found["representation_rank"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["representation_spread"], s.sum() / (frames**2).sum(), rtol=1e-4)


def test_nothing_and_a_constant_give_no_rank():
    nothing = gauges.representation(jnp.ones((2, 5, 3)), jnp.zeros((2, 5)))
    constant = gauges.representation(jnp.full((2, 5, 3), 7.0), jnp.ones((2, 5)))
    assert all(value == 0 for value in (*nothing.values(), *constant.values()))


def test_gauges_send_no_gradient():
    x, weight = jax.random.normal(jax.random.key(0), (2, 5, 3)), jnp.ones((2, 5))
    gradient = jax.grad(lambda x: sum(gauges.representation(x, weight).values()))(x)
    assert not np.asarray(gradient).any()


def test_alarm_when_hidden_states_collapse_to_a_point_or_a_line():
    """From hidden states, not from numbers made up: a line, a point with rounding on it, and healthy noise."""
    rng, weight = np.random.default_rng(0), jnp.ones((4, 50))
    noise = rng.normal(size=(4, 50, 16)).astype(np.float32)
    line = noise[..., :1] * rng.normal(size=16).astype(np.float32)
    point = 1 + 1e-3 * noise

    def measure(x):
        return {name: float(value) for name, value in gauges.representation(jnp.asarray(x), weight).items()}

    assert gauges.check_representation(measure(noise), True) is None
    for collapsed in (line, point, np.ones_like(noise)):
        assert "have collapsed" in gauges.check_representation(measure(collapsed), True)
        assert gauges.check_representation(measure(collapsed), False) is None
