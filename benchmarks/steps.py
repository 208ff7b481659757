"""Our training steps, for benchmarks: of a loss with AdamW, and of a whole task."""

from collections.abc import Callable
from typing import Any


def adamw_step(loss: Callable[[Any, Any], Any], params: Any) -> Callable[[], None]:
    """Returns a step of a loss as `() -> None`.

    Args:
      loss: of parameters and a key, which is another one in every step.
      params: initial parameters, which the steps take over.
    """
    import jax
    import optax

    optimizer = optax.adamw(1e-4)

    def step(params, opt_state, key):
        updates, opt_state = optimizer.update(jax.grad(loss)(params, key), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    step = jax.jit(step, donate_argnums=(0, 1))
    state = [params, optimizer.init(params)]
    keys = iter(jax.random.split(jax.random.key(3), 10_000))

    def run():
        state[:] = jax.block_until_ready(step(*state, next(keys)))

    return run


def task_step(experiment: Any, tokenizer: Any, batch: dict[str, Any]) -> tuple[Callable[[], None], dict[str, int]]:
    """Returns the step of an experiment's training on a batch, and the numbers of parameters by group."""
    import jax

    from jax_speechlm.parallel import mesh as meshes
    from jax_speechlm.parallel.mesh import MeshShape
    from jax_speechlm.training.state import make_trainer

    objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
    mesh = meshes.make_mesh(MeshShape(data=1), jax.devices()[:1])
    trainer = make_trainer(objective, experiment.optimizer, 1000, 0, mesh)
    with jax.set_mesh(mesh):
        state, batch = [trainer.init(jax.random.key(0))], meshes.shard_batch(mesh, batch)

    def run():
        with jax.set_mesh(mesh):
            state[0], metrics = trainer.step(state[0], batch)
            jax.block_until_ready(metrics)

    groups = state[0].params
    return run, {name: sum(leaf.size for leaf in jax.tree.leaves(group)) for name, group in groups.items()}
