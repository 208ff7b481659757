"""Frequencies of scaled rotary positions: what their papers say of the slowest and the fastest pairs."""

import numpy as np
import pydantic
import pytest

from jax_speechlm.models.rope import Dynamic, Linear, Llama3, Yarn, frequencies, plain

THETA, HEAD_DIM, LENGTH = 10_000.0, 64, 8192
PLAIN = plain(THETA, HEAD_DIM)
WAVELENGTHS = 2 * np.pi / PLAIN


def test_plain_frequencies_begin_at_one_and_end_near_the_inverse_of_theta():
    assert PLAIN[0] == 1
    np.testing.assert_allclose(PLAIN, [THETA ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)], rtol=1e-6)
    np.testing.assert_array_equal(frequencies(None, THETA, HEAD_DIM)[0], PLAIN)


def test_linear_divides_all_and_dynamic_none():
    np.testing.assert_allclose(Linear(factor=4).frequencies(THETA, HEAD_DIM)[0], PLAIN / 4, rtol=1e-6)
    np.testing.assert_array_equal(Dynamic(factor=4, original=LENGTH).frequencies(THETA, HEAD_DIM)[0], PLAIN)


def test_llama3_keeps_short_wavelengths_and_divides_long_ones():
    found, scale = Llama3(factor=8, low=1, high=4, original=LENGTH).frequencies(THETA, HEAD_DIM)
    short, long = WAVELENGTHS < LENGTH / 4, WAVELENGTHS > LENGTH
    assert short.any()
    assert long.any()
    assert not (short | long).all()
    np.testing.assert_allclose(found[short], PLAIN[short], rtol=1e-6)
    np.testing.assert_allclose(found[long], PLAIN[long] / 8, rtol=1e-6)
    between = ~(short | long)
    assert ((found < PLAIN) & (found > PLAIN / 8))[between].all()
    assert scale == 1


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_keeps_fast_pairs_and_divides_slow_ones(truncate):
    yarn = Yarn(factor=4, original=LENGTH, attention_factor=1.1, truncate=truncate)
    found, scale = yarn.frequencies(THETA, HEAD_DIM)
    turns, slack = LENGTH / WAVELENGTHS, 2.0 if truncate else 1.0  # whole pairs move the ends by less than one pair
    fast, slow = turns > 32 * slack, turns < 1 / slack
    np.testing.assert_allclose(found[fast], PLAIN[fast], rtol=1e-6)
    np.testing.assert_allclose(found[slow], PLAIN[slow] / 4, rtol=1e-6)
    ratio = found / PLAIN
    assert (np.diff(ratio) <= 1e-6).all()
    assert scale == 1.1


def test_impossible_settings_are_refused():
    for settings in ({"factor": 0.5}, {"factor": "a"}, {"factor": float("nan")}):
        with pytest.raises(pydantic.ValidationError):
            Linear(**settings)
    with pytest.raises(pydantic.ValidationError, match="must be below high_freq_factor"):
        Llama3(factor=8, low=4, high=4, original=LENGTH)
