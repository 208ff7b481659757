"""The range test finds the rates at which a loss falls, and says when there are none."""

import math

import numpy as np

from jax_speechlm.optim.optimizers import Ramp
from jax_speechlm.training.lr_range import analyse, describe

RATES = list(np.geomspace(1e-6, 1.0, 60))


def test_a_ramp_rises_by_a_constant_factor_to_its_peak():
    rates = [Ramp(lowest=1e-6, peak=1.0).build(60)(step) for step in range(60)]
    np.testing.assert_allclose(rates, RATES, rtol=1e-5)


def test_the_steepest_fall_and_the_limit_are_found():
    losses = [3 - 2 / (1 + (1e-3 / rate) ** 2) if rate < 0.1 else 3 + 100 * rate for rate in RATES]
    result = analyse(RATES, losses)
    assert 5e-4 < result.steepest < 5e-3  # the smoothing delays the fall by some steps
    assert result.steepest < result.highest < 0.1
    assert len(result.losses) < len(RATES)  # cut where it has diverged
    assert f"--optimizer.schedule.peak {result.steepest:.1e}" in describe(result)


def test_a_test_ends_at_the_first_loss_that_is_not_finite():
    result = analyse(RATES, [*np.linspace(3, 1, 40), math.nan, *[1.0] * 19])
    assert len(result.losses) == 40


def test_rates_at_which_nothing_falls_are_no_advice():
    for losses in ([1.0] * 60, list(np.linspace(1, 2, 60)), [1.0, math.inf], []):
        assert analyse(RATES, losses).steepest is None
        assert "does not fall" in describe(analyse(RATES, losses))
