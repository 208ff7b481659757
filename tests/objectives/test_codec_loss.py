"""Pretraining of a codec: the codebook's update by the optimizer, its terms, and settings that do not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
import pytest

from jax_speechlm.core.batch import by_utterance, example_keys
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizer
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import split_keys
from jax_speechlm.objectives.tts.codec import CODEBOOK, Codec, health_check
from jax_speechlm.objectives.tts.vocoder import crops
from jax_speechlm.optim.optimizers import Group, Optimizer, UpdateRule
from tests.contracts.objectives import TOYS
from tests.training import tiny

TOY = TOYS["codec wav_tokenizer"]
CONFIG = tiny.OBJECTIVES["codec"].replace(adversarial=None)
PARAMS = {"autoencoder": TOY.params["autoencoder"]}
KEY = jax.random.key(3)


@functools.cache
def objective():
    return CONFIG.build(TOY.model, TOY.frontend, None)


@functools.cache
def trained():
    """Loss, metrics and gradients of training on the toy's batch."""

    def loss(params, batch):
        return objective().loss(params, batch | {"step": jnp.int32(3)}, KEY)

    return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS, TOY.batch))


def test_the_optimizer_sets_the_codebook_to_its_next_averages():
    optimizer = Optimizer(groups=(Group.assigned(CODEBOOK),))
    transform = optimizer.build(10, functional.declare(objective().make).decays)
    updates, _ = transform.update(trained()[1], transform.init(PARAMS), PARAMS)
    after = optax.apply_updates(PARAMS, updates)["autoencoder"]["quantizer"]

    graphdef = functional.declare(lambda rngs: WavTokenizer(TOY.model, rngs=rngs)).graphdef

    @jax.jit
    def expected(params, batch):
        _, real, lengths = crops(by_utterance(batch), TOY.frontend, CONFIG.crop_frames, KEY)
        module = functional.bind(graphdef, params["autoencoder"])
        made = module.reconstruct(real, lengths)
        valid = jnp.arange(CONFIG.crop_frames) < made.length[:, None]
        weight = jnp.where(valid, batch["weight"][:, None], 0).reshape(-1)
        _, order_keys = split_keys(example_keys(KEY, batch["example_id"]), 2)
        order = jax.vmap(lambda key: jax.random.uniform(key, (CONFIG.crop_frames,)))(order_keys).reshape(-1)
        flat = made.latents.reshape(-1, TOY.model.latent_dim), made.code_ids.reshape(-1), weight, order
        return module.quantizer.updated(*flat, CONFIG.codebook_decay, CONFIG.dead_share)

    averages, placed = expected(PARAMS, TOY.batch)
    for name, value in averages._asdict().items():
        np.testing.assert_allclose(after[name], value, atol=1e-5)
        assert np.abs(after[name] - PARAMS["autoencoder"]["quantizer"][name]).max() > 1e-3
    total, weight = trained()[0][1]["code_placements"]
    np.testing.assert_allclose(total / weight, placed)


def test_the_codebook_adds_nothing_to_the_loss():
    loss, metrics = trained()[0]
    means = {name: total / weight for name, (total, weight) in metrics.items()}
    terms = CONFIG.stft_weight * (means["convergence"] + means["log_magnitude"]) + CONFIG.mel_weight * means["mel"]
    np.testing.assert_allclose(loss, terms + CONFIG.commitment_weight * means["commitment"], rtol=1e-5)


def test_a_few_steps_lower_the_loss_and_use_more_codes():
    settings = tiny.experiment("codec").optimizer
    transform = settings.build(60, functional.declare(objective().make).decays)
    params = jax.device_get(functional.init(objective().make, jax.random.key(0)))

    @jax.jit
    def step(params, state, batch, key):
        (_, metrics), gradients = jax.value_and_grad(objective().loss, has_aux=True)(params, batch, key)
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, metrics

    batch = TOY.batch | {"step": jnp.int32(0)}
    state, losses, used = transform.init(params), [], []
    for number in range(60):
        params, state, metrics = step(params, state, batch, jax.random.key(number))
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
        used.append(float(metrics["codes_used"][0] / metrics["codes_used"][1]))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:3])
    assert np.mean(used[-10:]) > 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": CONFIG.replace(crop_frames=3)}, "crop_frames"),
        ({"frontend": FrontEnd(mel=tiny.SYNTHESIS_MEL.replace(hop=32))}, "--frontend.mel.hop 64"),
        ({"frontend": FrontEnd(mel=tiny.MEL)}, "speecht5"),
        ({"frontend": FrontEnd(mel=tiny.SYNTHESIS_MEL, augment=Augment(crop_seconds=1.0))}, "crop_seconds"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    settings = {"objective": CONFIG, "frontend": TOY.frontend} | changes
    with pytest.raises(ValueError, match=message):
        settings["objective"].build(TOY.model, settings["frontend"], None)


@pytest.mark.parametrize("groups", [(), (Group(prefix=CODEBOOK),), (Group(prefix=CODEBOOK, optimizer=UpdateRule()),)])
def test_the_codebook_needs_its_optimizer(groups):
    with pytest.raises(pydantic.ValidationError, match=r'Group\.assigned\("autoencoder/quantizer"\)'):
        tiny.experiment("codec", optimizer=Optimizer(groups=groups))
    tiny.experiment("codec", optimizer=Optimizer(frozen=(CODEBOOK,)))
    assert Codec().couples_rows


def test_collapse_is_named_after_warm_up():
    assert health_check({"code_entropy_ratio": 0.1}, False) is None
    assert health_check({"code_entropy_ratio": 0.8}, True) is None
    assert "10%" in health_check({"code_entropy_ratio": 0.1}, True)
