"""Checkpoints of untrained models, for tests of what is done with trained ones."""

from pathlib import Path

import jax

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.nn import functional
from jax_speechlm.parallel.mesh import MeshShape, make_mesh
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training.checkpoints import Checkpoints, write
from jax_speechlm.training.runs import tokenizer_files
from jax_speechlm.training.state import make_trainer


def save_run(
    folder: Path, experiment: Experiment, tokenizer: Tokenizer | None, units: str | None = None, params=None
) -> Path:
    """Writes the checkpoint that a run has before its first step, its parameters three times as large.

    Args:
      units: fingerprint of the k-means that it is trained on.
      params: others instead, as they are.
    """
    objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
    mesh = make_mesh(MeshShape(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        trainer = make_trainer(objective, experiment.optimizer, experiment.num_steps, experiment.seed, mesh)
        state = trainer.init(jax.random.key(0))
        params = jax.tree.map(lambda leaf: 3 * leaf, state.params) if params is None else jax.device_put(params)
        state = state._replace(params=params)
        checkpoints = Checkpoints(folder)
        meta = {"experiment": experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(tokenizer)}
        checkpoints.save(0, state, meta | {"plan": "", "step": 0, "units": units})
        checkpoints.close()
    return folder


def write_run(
    folder: Path, experiment: Experiment, tokenizer: Tokenizer | None, units: str | None = None, params=None
) -> Path:
    """The same parameters, but nothing besides them: no optimizer is built, nothing is compiled."""
    objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
    if params is None:
        params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(objective.make, jax.random.key(experiment.seed)))
    meta = {"experiment": experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(tokenizer), "units": units}
    meta |= {"training_only": objective.training_only}
    write(folder, params, meta | {"plan": "", "step": 0})
    return folder
