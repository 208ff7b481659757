"""Training against a head for domains: its gradients against those of both losses, computed one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import read_index
from jax_speechlm.models.encoders import make_encoder
from jax_speechlm.nn import functional
from jax_speechlm.objectives.domain import GROUP, DomainAdversary, against_domains, reversal
from jax_speechlm.objectives.heads.base import encode
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Speech
from jax_speechlm.tasks.inputs import row_domains
from tests.contracts.objectives import TOYS, check_gradients, check_metrics
from tests.data_pipelines.spoken_sets import write_spoken_set

TOY = TOYS["classification conformer"]
SETTINGS = DomainAdversary(classes=("anna", "ben", "cleo"), weight=0.7, ramp_steps=8, hidden_dim=5)
OBJECTIVE = against_domains(TOY.objective, SETTINGS, TOY.model, TOY.frontend)
KEY = jax.random.key(3)
STEP = 3
ROWS = [0, 2, 3, 4, 6, 7]
"""Rows with data and a known domain."""


def of_step(batch):
    """A toy's batch with domains, of which one is unknown, as the train step passes it on."""
    domain = np.where(batch["example_id"] >= 0, batch["example_id"] % 4 - 1, 0).astype(np.int32)
    return jax.tree.map(jnp.asarray, {**batch, "domain": domain, "step": np.int32(STEP)})


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    params = jax.device_get(functional.init(OBJECTIVE.make, jax.random.key(0)))
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)


def domain_loss(params, batch):
    """The head's loss, row by row, with no gradient reversed."""
    graphdef = functional.declare(lambda rngs: make_encoder(TOY.model, rngs=rngs)).graphdef
    hidden, frames = encode(functional.bind(graphdef, params["encoder"]), batch, TOY.frontend, KEY)
    head = params[GROUP]
    total = 0.0
    for row in ROWS:
        inside = jnp.arange(hidden.shape[1]) < frames[row]
        pooled = jnp.sum(hidden[row], axis=0, where=inside[:, None]) / jnp.maximum(frames[row], 1)
        inner = jnp.maximum(pooled @ head["hidden"]["kernel"] + head["hidden"]["bias"], 0)
        total -= jax.nn.log_softmax(inner @ head["out"]["kernel"] + head["out"]["bias"])[batch["domain"][row]]
    return total / len(ROWS)


def test_the_encoder_climbs_the_loss_that_the_head_descends(params):
    batch = of_step(TOY.batch)
    own = {name: part for name, part in params.items() if name != GROUP}
    (loss, metrics), gradients = jax.jit(jax.value_and_grad(OBJECTIVE.loss, has_aux=True))(params, batch, KEY)
    (task_loss, _), of_task = jax.jit(jax.value_and_grad(TOY.objective.loss, has_aux=True))(own, batch, KEY)
    head_loss, of_head = jax.jit(jax.value_and_grad(domain_loss))(params, batch)
    factor = 0.7 * np.tanh(5 * STEP / 8)  # the same as 2 / (1 + exp(-10 p)) - 1
    expected = {
        GROUP: of_head[GROUP],
        "encoder": jax.tree.map(lambda task, head: task - factor * head, of_task["encoder"], of_head["encoder"]),
        "head": of_task["head"],
    }
    np.testing.assert_allclose(loss, task_loss + head_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], loss, rtol=1e-6)
    assert metrics["domain"][1] == len(ROWS)
    assert gradients.keys() == expected.keys()
    check_gradients(jax.device_get(gradients), jax.device_get(expected), 1e-5)


def test_padding_order_and_packing_change_nothing(params):
    loss = jax.jit(lambda batch: OBJECTIVE.loss(params, batch, KEY)[1])
    metrics = jax.device_get(loss(of_step(TOY.batch)))
    for other in (
        TOY.rows([4, 2, 5, 0, 7, 3, 6, 1], TOY.sizes(12, more=4)),
        TOY.packed([[0, 6, 3], [1, 5, 2], [4, 7]]),
    ):
        for name, pair in jax.device_get(loss(of_step(other))).items():
            np.testing.assert_allclose(pair, metrics[name], rtol=2e-5, err_msg=name)


def test_a_mesh_gives_the_gradients_of_one_device(params):
    training = jax.jit(jax.value_and_grad(OBJECTIVE.loss, has_aux=True))
    (loss, metrics), gradients = jax.device_get(training(params, of_step(TOY.batch), KEY))
    batch = jax.device_get(of_step(TOY.packed([[0, 6], [1, 3], [2], [4, 5], [7], [], [], []])))
    step = batch.pop("step")
    mesh = meshes.make_mesh(MeshShape(data=1, fsdp=2, sequence=2, tensor=2), jax.devices()[:8])
    declaration = functional.declare(OBJECTIVE.make)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, meshes.param_shardings(mesh, declaration.axes, declaration.shapes))
        on_mesh = training(placed, meshes.shard_batch(mesh, batch) | {"step": step}, KEY)
    (mesh_loss, mesh_metrics), mesh_gradients = jax.device_get(on_mesh)
    np.testing.assert_allclose(mesh_loss, loss, rtol=1e-5)
    check_metrics(mesh_metrics, metrics)
    check_gradients(mesh_gradients, gradients, 2e-5)


def test_domains_are_read_from_their_column_and_unknown_ones_in_validation_alone(tmp_path):
    index = read_index(write_spoken_set(tmp_path / "set", {"dev": [("ben", 9), ("dora", 9), ("anna", 9)]}), "dev")
    read = row_domains(SETTINGS.replace(column="text")).read
    settings = TOY.config, Speech(sets=("set",)), TOY.frontend.mel, TOY.grid, index
    np.testing.assert_array_equal(read(*settings, False), [1, -1, 0])
    with pytest.raises(DataError, match=r"'dora' is none of the classes.*adversary\.classes"):
        read(*settings, True)


def test_evaluation_is_as_it_was(params):
    batch = jax.tree.map(jnp.asarray, TOY.batch)
    own = {name: part for name, part in params.items() if name != GROUP}
    assert jax.tree.all(
        jax.tree.map(jnp.array_equal, OBJECTIVE.loss(params, batch, None), TOY.objective.loss(own, batch, None))
    )
    assert OBJECTIVE.training_only == (GROUP,)


def test_the_factor_rises_to_its_weight():
    steps = jnp.array([0, 2, 4, 8, 80])
    np.testing.assert_allclose(reversal(SETTINGS, steps), 0.7 * np.tanh(5 * np.minimum(steps / 8, 1)), atol=1e-6)


def test_models_without_a_speech_encoder_are_refused():
    toy = TOYS["causal_lm transformer"]
    with pytest.raises(ValueError, match=r"adversary\.classes are for objectives of a speech encoder, not of a trans"):
        against_domains(toy.objective, SETTINGS, toy.model, None)
