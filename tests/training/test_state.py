"""A step does not depend on the mesh or on micro-batches, and a step that is not finite leaves no trace."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.tree import name_of
from jax_speechlm.optim.optimizers import Group, UpdateRule
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.training.state import eval_params, make_trainer
from tests.training import tiny

ONE = (MeshShape(data=1), 1)
MESHES = {
    "data": MeshShape(data=8),
    "fsdp": MeshShape(data=1, fsdp=8),
    "mixed": MeshShape(data=2, fsdp=2, tensor=2),
    "sequence": MeshShape(data=1, sequence=8),  # 13 frames: two for a device, so a convolution reaches over three
    "fsdp x sequence": MeshShape(data=1, fsdp=2, sequence=4),
    "all but data": MeshShape(data=1, fsdp=2, sequence=2, tensor=2),
}


def trainer_on(shape: MeshShape, devices: int, experiment):
    source = tiny.source(experiment)
    objective = experiment.objective.build(experiment.model, experiment.frontend, source.tokenizer)
    mesh = meshes.make_mesh(shape, jax.devices()[:devices])
    return make_trainer(objective, experiment.optimizer, experiment.num_steps, experiment.seed, mesh), source, mesh


def run(shape: MeshShape, devices: int, experiment, steps: Sequence[int] = (0, 2), start=None):
    """(state before, state after, metrics of each) of some steps: those of one bucket share one program."""
    trainer, source, mesh = trainer_on(shape, devices, experiment)
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, trainer.shapes)
        state = trainer.init(jax.random.key(0)) if start is None else jax.device_put(start, shardings)
        before, metrics = jax.device_get(state), []
        for step in steps:
            state, figures = trainer.step(state, meshes.shard_batch(mesh, next(source.batches(step, step + 1))))
            metrics.append(jax.device_get(figures))
        return before, state, metrics


# The trainer's step; losses and gradients of all objectives on meshes are in tests/contracts.
CASES = [("ctc", name) for name in ("sequence", "all but data")]
CASES += [pytest.param("ctc", "fsdp x sequence", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def single_device(request):
    experiment = tiny.experiment(request.param)
    if experiment.model == tiny.MODEL:
        experiment = experiment.replace(model=tiny.MODEL.replace(attention_dropout=0.1, chunk_lengths=(4,)))
    return experiment, *run(*ONE, experiment)


@pytest.mark.parametrize(("single_device", "name"), CASES, indirect=["single_device"])
def test_every_mesh_gives_the_single_device_loss_and_gradients(single_device, name):
    check_same(*single_device, shape=MESHES[name], devices=8)


def check_same(experiment, before, state, metrics, shape: MeshShape, devices: int, steps: Sequence[int] = (0, 2)):
    """That a mesh gives what a single device gave from the same state."""
    _, sharded_state, sharded_metrics = run(shape, devices, experiment, steps, before)
    for one, other in zip(metrics, sharded_metrics, strict=True):
        for name in ("loss", "grad_norm"):
            assert np.allclose(other[name], one[name], rtol=1e-5, atol=1e-5), name
    # The first moments are the gradients: Adam's parameters would blow up rounding where a gradient is nearly zero.
    for one, other in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(sharded_state.opt_state), strict=True):
        assert np.allclose(jax.device_get(other), jax.device_get(one), atol=1e-5)


def test_training_starts_from_the_same_parameters_on_every_mesh():
    states = []
    for shape, devices in (ONE, (MESHES["mixed"], 8)):
        trainer, _, mesh = trainer_on(shape, devices, tiny.experiment("ctc"))
        with jax.set_mesh(mesh):
            states.append(jax.device_get(trainer.init(jax.random.key(0))))
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
def test_moments_and_averages_lie_as_their_parameters(shape):
    trainer, _, _ = trainer_on(shape, 8, tiny.experiment("best_rq"))

    def sharding(tree):
        return jax.tree.map(lambda leaf: leaf.sharding, tree)

    adam = next(part for part in trainer.shapes.opt_state if hasattr(part, "mu"))
    params = sharding(trainer.shapes.params)
    del params["quantizer"]  # frozen: the optimizer keeps nothing for it
    assert sharding(adam.mu) == sharding(adam.nu) == sharding(trainer.shapes.ema) == params
    split = [leaf for leaf in jax.tree.leaves(params) if not leaf.is_fully_replicated]
    assert bool(split) == (shape.fsdp > 1 or shape.tensor > 1)


def test_moments_of_a_group_with_its_own_optimizer_lie_as_their_parameters():
    experiment = tiny.experiment("ctc")
    groups = (Group(prefix="head", every=2, optimizer=UpdateRule()),)
    experiment = experiment.replace(optimizer=experiment.optimizer.replace(groups=groups))
    trainer, _, _ = trainer_on(MESHES["mixed"], 8, experiment)
    leaves = jax.tree.leaves_with_path(trainer.shapes.opt_state)
    moments = {name_of(path).partition("mu/")[2]: leaf for path, leaf in leaves if "/mu/" in name_of(path)}
    params = {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(trainer.shapes.params)}
    assert {name: leaf.sharding for name, leaf in moments.items()} == {
        name: leaf.sharding for name, leaf in params.items()
    }
    assert not params["head/kernel"].sharding.is_fully_replicated


def test_frozen_parameters_never_change():
    experiment = tiny.experiment("best_rq")
    before, after, _ = run(*ONE, experiment)
    same = jax.tree.map(np.array_equal, before.params, jax.device_get(after.params))
    assert all(jax.tree.leaves(same["quantizer"]))
    assert not any(jax.tree.leaves(same["head"]))


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    experiment = tiny.experiment("ctc")
    whole = run(*ONE, experiment)
    cut = run(*ONE, experiment.replace(optimizer=experiment.optimizer.replace(accumulate=4)))
    for one, other in zip(whole[-1], cut[-1], strict=True):
        assert np.allclose(other["loss"], one["loss"], rtol=1e-5)
        assert np.allclose(other["grad_norm"], one["grad_norm"], rtol=1e-4)


def test_micro_batches_must_divide_the_batch():
    experiment = tiny.experiment("ctc")
    with pytest.raises(ValueError, match="accumulate=3 does not divide a batch of 8"):
        run(*ONE, experiment.replace(optimizer=experiment.optimizer.replace(accumulate=3)))


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    trainer, source, mesh = trainer_on(*ONE, tiny.experiment("ctc"))
    with jax.set_mesh(mesh):
        state = trainer.init(jax.random.key(0))
        state = state._replace(params=jax.tree.map(lambda leaf: leaf.at[...].set(jnp.nan), state.params))
        before = jax.device_get(state.opt_state)
        batch = meshes.shard_batch(mesh, source.batch(source.plan, 0))
        for count in (1, 2):
            state, metrics = trainer.step(state, batch)
            assert (int(state.skipped), int(state.skipped_in_a_row), int(state.step)) == (count, count, count)
        jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.opt_state))
        assert metrics["loss"] == (0, 0)  # no weight: it disappears from every mean
        fresh = trainer.init(jax.random.key(0))
        state, _ = trainer.step(state._replace(params=fresh.params, ema=fresh.ema), batch)
        assert (int(state.skipped), int(state.skipped_in_a_row)) == (2, 0)


def test_evaluation_uses_the_moving_average():
    _, state, _ = run(*ONE, tiny.experiment("best_rq"))
    params = eval_params(state)
    assert np.array_equal(params["head"]["kernel"], state.ema["head"]["kernel"])
    assert not np.array_equal(params["head"]["kernel"], state.params["head"]["kernel"])
    assert np.array_equal(params["quantizer"]["codebook"], state.params["quantizer"]["codebook"])
