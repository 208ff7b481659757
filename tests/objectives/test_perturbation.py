"""Perturbed losses against worst cases that are known, and whatever the padding, order and packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_speechlm.objectives.base import Objective
from jax_speechlm.objectives.perturbation import Perturbation, perturbed
from tests.contracts.objectives import TOYS

RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(RNG.normal(size=12), jnp.float32)
BATCH = {
    "audio": jnp.asarray(RNG.integers(-1000, 1000, (2, 12)), jnp.int16),
    "audio_start": jnp.asarray([[0, 6], [0, 0]], jnp.int32),
    "audio_length": jnp.asarray([[4, 5], [10, 0]], jnp.int32),
    "example_id": jnp.asarray([[3, 4], [5, -1]], jnp.int32),
}
UTTERANCES = [(0, slice(0, 4)), (0, slice(6, 11)), (1, slice(0, 10))]
KEY = jax.random.key(0)


def of_step(batch):
    """A toy's batch as the train step passes it on."""
    return jax.tree.map(jnp.asarray, {**batch, "step": np.int32(3)})


def linear_loss(params, batch, key):
    """A sum over samples, padding included, times weights: the worst perturbation has their direction."""
    del key
    total = jnp.sum(batch["audio"].astype(jnp.float32) * WEIGHTS * params["scale"])
    return total / 3, {"loss": (total, jnp.asarray(3.0))}


LINEAR = Objective(make=lambda rngs: nnx.Module(), loss=linear_loss)


@pytest.mark.parametrize(
    "settings", [Perturbation(method="fgm", size=0.2), Perturbation(method="pgd", steps=4, size=0.2)]
)
def test_each_utterance_gets_the_worst_perturbation_of_its_bound(settings):
    params = {"scale": jnp.asarray(2.0)}
    clean, _ = linear_loss(params, BATCH, None)
    worst = clean + sum(
        0.2 * np.linalg.norm(np.asarray(BATCH["audio"][row, at], float)) * 2 * np.linalg.norm(WEIGHTS[at]) / 3
        for row, at in UTTERANCES
    )
    loss, metrics = perturbed(LINEAR, settings.replace(share=0.25)).loss(params, BATCH, KEY)
    np.testing.assert_allclose(metrics["adversarial"][0] / 3, worst, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.75 * clean + 0.25 * worst, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], loss, rtol=1e-6)


def test_parameters_are_perturbed_one_by_one_and_the_gradient_takes_that_as_fixed():
    toy, params = TOYS["causal_lm transformer"], jax.tree.map(jnp.asarray, TOYS["causal_lm transformer"].params)
    path = "transformer/embedding"
    objective = perturbed(toy.objective, Perturbation(method="fgm", of=path, size=0.1, share=0.5))
    batch = of_step(toy.batch)

    def at(params, embedding):
        return toy.objective.loss(
            {**params, "transformer": {**params["transformer"], "embedding": embedding}}, batch, KEY
        )

    embedding = params["transformer"]["embedding"]
    gradient = jax.grad(lambda table: at(params, table)[0])(embedding)
    delta = 0.1 * np.linalg.norm(embedding) * gradient / np.linalg.norm(gradient)

    def expected(params):
        table = params["transformer"]["embedding"]
        return 0.5 * at(params, table)[0] + 0.5 * at(params, table + delta)[0]

    loss, gradients = jax.value_and_grad(lambda params: objective.loss(params, batch, KEY)[0])(params)
    expected_loss, expected_gradients = jax.value_and_grad(expected)(params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert at(params, embedding + delta)[0] > at(params, embedding)[0]
    for one, other in zip(*map(jax.tree.leaves, (gradients, expected_gradients)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(other).max())


def test_virtual_perturbations_change_outputs_more_than_any_other_of_their_size():
    """Of a softmax of a linear map, whose worst direction is near the largest eigenvector of its Fisher matrix."""
    matrix = jnp.asarray(RNG.normal(size=(12, 5)), jnp.float32)
    batch = {"audio": BATCH["audio"][1:], "audio_length": jnp.asarray([12]), "example_id": jnp.asarray([1])}

    def logits(params, batch):
        del params
        return (1e-3 * batch["audio"].astype(jnp.float32) @ matrix)[:, None], jnp.asarray([1])

    objective = Objective(make=lambda rngs: nnx.Module(), loss=linear_loss, logits=logits)
    settings = Perturbation(method="vat", size=0.05, steps=8, share=1.0)
    _, metrics = perturbed(objective, settings).loss({"scale": jnp.asarray(1.0)}, batch, KEY)
    value, weight = metrics["adversarial"]
    samples = np.asarray(batch["audio"], np.float32)
    clean = jax.nn.log_softmax(logits({}, batch)[0])
    noise = RNG.normal(size=(2000, 12))
    noise *= 0.05 * np.linalg.norm(samples) / np.linalg.norm(noise, axis=1, keepdims=True)
    others = jax.nn.log_softmax(1e-3 * (samples + noise) @ matrix)
    divergences = np.sum(np.exp(clean[0]) * (clean[0] - others), -1)
    assert weight == 1
    assert value >= 0.999 * divergences.max()


@pytest.mark.parametrize("method", ["fgm", "vat"])
def test_packing_order_and_padding_change_nothing(method):
    toy = TOYS["ctc conformer"]
    loss = jax.jit(perturbed(toy.objective, Perturbation(method=method, size=0.1)).loss)

    def metrics_of(batch):
        return jax.device_get(loss(toy.params, of_step(batch), KEY)[1])

    metrics = metrics_of(toy.batch)
    assert metrics["adversarial"][0] > 0
    assert np.isfinite(jax.tree.leaves(metrics)).all()
    for other in (
        toy.rows([4, 2, 5, 0, 7, 3, 6, 1], toy.sizes(12, more=4)),
        toy.packed([[0, 6, 3], [1, 5, 2], [4, 7]]),
    ):
        for name, (total, weight) in metrics_of(other).items():
            np.testing.assert_allclose((total, weight), metrics[name], rtol=2e-3, atol=1e-4, err_msg=name)


def test_evaluation_is_that_of_the_objective():
    toy = TOYS["ctc conformer"]
    batch = of_step(toy.batch)
    first, second = (
        each.loss(toy.params, batch, None)
        for each in (toy.objective, perturbed(toy.objective, Perturbation(method="fgm")))
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert perturbed(toy.objective, Perturbation()) is toy.objective
    assert perturbed(toy.objective, Perturbation(method="pgd", steps=3)).flops(batch) == 5 * toy.objective.flops(batch)


def test_what_cannot_be_perturbed_says_why():
    with pytest.raises(ValueError, match="choose fgm or pgd"):
        perturbed(LINEAR, Perturbation(method="vat"))
    with pytest.raises(ValueError, match="no parameter lies below 'x'; top level: \\['scale'\\]"):
        perturbed(LINEAR, Perturbation(method="fgm", of="x")).loss({"scale": jnp.asarray(1.0)}, BATCH, KEY)
    toy = TOYS["causal_lm transformer"]
    with pytest.raises(ValueError, match="the batch has none: name parameters"):
        perturbed(toy.objective, Perturbation(method="fgm")).loss(
            jax.tree.map(jnp.asarray, toy.params), of_step(toy.batch), KEY
        )
