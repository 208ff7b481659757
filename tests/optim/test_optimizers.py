"""Schedules against their formulas, groups and masks against single steps of arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from data_pipelines.tokenizers.words import WordTokenizer
from jax_speechlm.core.tree import is_below, overlay, paths, select
from jax_speechlm.models.adapter import Convolutional, QFormer
from jax_speechlm.models.transformer_config import FORMS, LearnedPositions
from jax_speechlm.models.word_vectors import WordVectorsConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.lm.span_corruption import SpanCorruption
from jax_speechlm.optim.optimizers import WSD, Group, Noam, Optimizer, UpdateRule, WarmupCosine
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment
from tests.training import tiny

PARAMS = {
    "encoder": {"layers": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 3))}},
    "encoder_norm": {"scale": jnp.ones(3)},
    "head": {"kernel": jnp.ones((3, 5))},
}
DECAYS = {
    "encoder": {"layers": {"kernel": True, "bias": False}},
    "encoder_norm": {"scale": False},
    "head": {"kernel": True},
}
UNDECAYED = {"bias", "content_bias", "position_bias", "scale", "offset", "mask", "mean", "shift", "mix"}
UNDECAYED |= {"word_bias", "context_bias"}
UNDECAYED |= {"vectors", "count", "total"}  # moving averages
"""Names of biases, of scales of norms and of single learnt vectors; every other parameter is a weight."""
FIXED = {"encoder/position"}
"""Sinusoids of Whisper's encoder, which no gradient reaches."""


def experiments() -> dict[str, Experiment]:
    """Every kind of model under every objective: one shipped experiment of each pair, and small ones in other forms."""
    names = (name for name in registry.names() if name != "demo/distill")  # its teachers are unknown here
    shipped = {name: registry.load(name) for name in names}
    pairs = {(each.model.kind, each.objective.kind): name for name, each in shipped.items()}
    found = {name: shipped[name] for name in pairs.values()} | {name: tiny.experiment(name) for name in tiny.OBJECTIVES}
    text = shipped["text_en/mlm"]
    bert = text.model.replace(**FORMS["bert"], tied=False, positions=LearnedPositions(token_types=2))
    found["bert"] = text.replace(model=bert)
    spans = shipped["text_en/lm"]
    found["spans"] = spans.replace(objective=SpanCorruption(), model=spans.model.replace(bias=True, norm="layer"))
    spoken = tiny.experiment("speech_lm")
    for adapter in (Convolutional(), QFormer()):
        found[adapter.kind] = spoken.replace(model=spoken.model.replace(adapter=adapter, lora=LoRA(rank=2)))
    return found


EXPERIMENTS = experiments()


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


def test_only_weights_decay():
    transform = Optimizer(kind="sgd", b1=0.0, weight_decay=0.1, schedule=WSD(peak=1.0, warmup_steps=0)).build(
        100, DECAYS
    )
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = transform.update(zeros, transform.init(PARAMS), PARAMS)
    assert np.allclose(updates["encoder"]["layers"]["kernel"], -0.1)
    assert np.allclose(updates["head"]["kernel"], -0.1)
    assert np.allclose(updates["encoder"]["layers"]["bias"], 0)
    assert np.allclose(updates["encoder_norm"]["scale"], 0)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_weight_decay_reaches_no_bias_norm_or_vector_of_any_model(name):
    experiment = EXPERIMENTS[name]
    words = WordTokenizer(tuple(tiny.LETTERS), (1,) * len(tiny.LETTERS))
    tokenizer = words if isinstance(experiment.model, WordVectorsConfig) else CharTokenizer(tiny.LETTERS)
    made = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
    declared = functional.declare(made.make)
    params = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim), declared.shapes)  # the update is elementwise
    transform = Optimizer(weight_decay=0.1, schedule=WSD(peak=1.0, warmup_steps=0)).build(100, declared.decays)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zeros, transform.init(params), params)
    for path, update in zip(paths(updates), jax.tree.leaves(updates), strict=True):
        expected = 0.0 if path.rpartition("/")[2] in UNDECAYED or path in FIXED else -0.1
        assert float(update.sum()) == pytest.approx(expected), path


def test_adam_never_decays():
    transform = Optimizer(kind="adam", weight_decay=0.1).build(100, DECAYS)
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
    transform = optimizer.build(100, DECAYS)
    ones, state, params = jax.tree.map(jnp.ones_like, PARAMS), transform.init(PARAMS), PARAMS
    for expected in (0.0, -0.5):
        updates, state = transform.update(ones, state, params)
        params = optax.apply_updates(params, updates)
        assert np.allclose(updates["encoder"]["layers"]["kernel"], expected)
        assert np.allclose(updates["encoder_norm"]["scale"], -1)  # "encoder" is not a prefix of "encoder_norm"
        assert np.allclose(updates["head"]["kernel"], -1)


def test_a_group_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match="no parameter below 'encodr'"):
        Optimizer(groups=(Group(prefix="encodr"),)).build(100, DECAYS)


SGD = UpdateRule(kind="sgd", b1=0.0, weight_decay=0.0, clip_norm=1e9, schedule=WSD(peak=1.0, warmup_steps=0))


def test_a_group_with_an_optimizer_of_its_own_is_updated_as_if_it_were_alone():
    """Moments, clipping, decay and schedule of each part are those of Optax run on that part by itself."""
    own = UpdateRule(b1=0.5, b2=0.9, weight_decay=0.3, clip_norm=0.1, schedule=WSD(peak=0.2, warmup_steps=3))
    transform = Optimizer(clip_norm=0.7, groups=(Group(prefix="head", optimizer=own),)).build(20, DECAYS)
    alone = {
        "head": own._chain(20, {"head": DECAYS["head"]}),
        "rest": Optimizer(clip_norm=0.7).build(20, select(DECAYS, ("head",), complement=True)),
    }
    together = PARAMS
    parts = {"head": select(PARAMS, ("head",)), "rest": select(PARAMS, ("head",), complement=True)}
    states, state = {name: alone[name].init(part) for name, part in parts.items()}, transform.init(together)
    for step in range(4):
        grads = jax.tree.map(lambda leaf: jnp.cos(step + jnp.arange(leaf.size)).reshape(leaf.shape), PARAMS)  # noqa: B023
        updates, state = transform.update(grads, state, together)
        together = optax.apply_updates(together, updates)
        for name, part in parts.items():
            own_grads = select(grads, ("head",), complement=name == "rest")
            updates, states[name] = alone[name].update(own_grads, states[name], part)
            parts[name] = optax.apply_updates(part, updates)
    expected = overlay(parts["rest"], parts["head"])
    jax.tree.map(np.testing.assert_array_equal, together, expected)
    assert not np.allclose(together["head"]["kernel"], PARAMS["head"]["kernel"])


def test_groups_with_optimizers_of_their_own_take_turns():
    turns = Optimizer(
        groups=(
            Group(prefix="encoder", every=2, optimizer=SGD),
            Group(prefix="head", every=2, start_step=1, optimizer=SGD.replace(b1=0.5)),
        )
    )
    transform = turns.build(100, DECAYS)
    ones, state = jax.tree.map(jnp.ones_like, PARAMS), transform.init(PARAMS)
    encoder, head = [], []
    for _ in range(4):
        updates, state = transform.update(ones, state, PARAMS)
        encoder.append(float(updates["encoder"]["layers"]["kernel"][0, 0, 0]))
        head.append(float(updates["head"]["kernel"][0, 0]))
    assert encoder == pytest.approx([-1, 0, -1, 0])
    assert head == pytest.approx([0, -1, 0, -1.5])  # the trace of momentum stays as it is in steps without an update


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"every": 2}, "needs an optimizer of its own"),
        ({"optimizer": SGD, "learning_rate_scale": 0.5}, "set its optimizer.schedule.peak"),
    ],
)
def test_settings_of_a_group_that_contradict_each_other_are_errors(group, message):
    with pytest.raises(ValueError, match=message):
        Group(prefix="head", **group)


def test_two_optimizers_for_one_parameter_are_an_error():
    both = (Group(prefix="encoder", optimizer=SGD), Group(prefix="encoder/layers", optimizer=SGD))
    with pytest.raises(ValueError, match="both have an optimizer"):
        Optimizer(groups=both).build(100, DECAYS)


def test_select_and_overlay_take_apart_and_put_together():
    part, rest = select(PARAMS, ("encoder",)), select(PARAMS, ("encoder",), complement=True)
    assert set(part) == {"encoder"}
    assert set(rest) == {"encoder_norm", "head"}
    changed = overlay(PARAMS, jax.tree.map(jnp.zeros_like, part))
    assert not np.any(changed["encoder"]["layers"]["kernel"])
    assert np.all(changed["head"]["kernel"] == 1)
    assert is_below("encoder/layers/bias", "encoder/layers")
