"""Schedules against their formulas, groups and masks against single steps of arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_speechlm.training.optimizers import WSD, Group, Noam, Optimizer, WarmupCosine, is_below, overlay, select

PARAMS = {
    "encoder": {"layers": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 3))}},
    "encoder_norm": {"scale": jnp.ones(3)},
    "head": {"kernel": jnp.ones((3, 5))},
}
AXES = {
    "encoder": {"layers": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "embed")}},
    "encoder_norm": {"scale": ("embed",)},
    "head": {"kernel": ("embed", "vocab")},
}


@pytest.mark.parametrize("schedule", [WarmupCosine(warmup_steps=10), Noam(warmup_steps=10), WSD(warmup_steps=10)])
def test_schedules_warm_up_linearly_to_the_peak(schedule):
    rate = schedule.build(100)
    for step in range(10):
        assert float(rate(step)) == pytest.approx(schedule.peak * (step + 1) / 10, rel=1e-5)


def test_schedules_end_as_their_papers_say():
    cosine = WarmupCosine(peak=1.0, warmup_steps=20, final_share=0.1).build(100)
    assert float(cosine(60)) == pytest.approx(0.55, rel=1e-5)  # half-way down, between 1 and 0.1
    assert float(cosine(100)) == pytest.approx(0.1, rel=1e-5)
    noam = Noam(peak=1.0, warmup_steps=100).build(1000)
    assert float(noam(400)) == pytest.approx(0.5, rel=1e-5)  # sqrt(100 / 400)
    stable = WSD(peak=1.0, warmup_steps=10, decay_share=0.2).build(100)
    assert float(stable(79)) == pytest.approx(1.0, rel=1e-5)
    assert float(stable(90)) == pytest.approx(0.5, rel=1e-5)
    assert float(stable(100)) == pytest.approx(0.0, abs=1e-6)


def test_no_warmup_starts_at_the_peak():
    assert float(WarmupCosine(peak=1.0, warmup_steps=0).build(10)(0)) == pytest.approx(1.0)


def test_only_matrices_decay():
    transform = Optimizer(kind="sgd", b1=0.0, weight_decay=0.1, schedule=WSD(peak=1.0, warmup_steps=0)).build(100, AXES)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = transform.update(zeros, transform.init(PARAMS), PARAMS)
    assert np.allclose(updates["encoder"]["layers"]["kernel"], -0.1)
    assert np.allclose(updates["head"]["kernel"], -0.1)
    assert np.allclose(updates["encoder"]["layers"]["bias"], 0)  # one dimension of its own besides "layers"
    assert np.allclose(updates["encoder_norm"]["scale"], 0)


def test_adam_never_decays():
    transform = Optimizer(kind="adam", weight_decay=0.1).build(100, AXES)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = transform.update(zeros, transform.init(PARAMS), PARAMS)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_groups_scale_the_rate_and_start_late():
    optimizer = Optimizer(
        kind="sgd",
        b1=0.0,
        weight_decay=0.0,
        clip_norm=1e9,
        schedule=WSD(peak=1.0, warmup_steps=0),
        groups=(Group(prefix="encoder", learning_rate_scale=0.5, start_step=1),),
    )
    transform = optimizer.build(100, AXES)
    ones, state, params = jax.tree.map(jnp.ones_like, PARAMS), transform.init(PARAMS), PARAMS
    for expected in (0.0, -0.5):
        updates, state = transform.update(ones, state, params)
        params = optax.apply_updates(params, updates)
        assert np.allclose(updates["encoder"]["layers"]["kernel"], expected)
        assert np.allclose(updates["encoder_norm"]["scale"], -1)  # "encoder" is not a prefix of "encoder_norm"
        assert np.allclose(updates["head"]["kernel"], -1)


def test_a_group_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match="no parameter lies below 'encodr'"):
        Optimizer(groups=(Group(prefix="encodr"),)).build(100, AXES)


def test_select_and_overlay_take_apart_and_put_together():
    part, rest = select(PARAMS, ("encoder",)), select(PARAMS, ("encoder",), complement=True)
    assert set(part) == {"encoder"}
    assert set(rest) == {"encoder_norm", "head"}
    changed = overlay(PARAMS, jax.tree.map(jnp.zeros_like, part))
    assert not np.any(changed["encoder"]["layers"]["kernel"])
    assert np.all(changed["head"]["kernel"] == 1)
    assert is_below("encoder/layers/bias", "encoder/layers")
