"""Reads other runs for objectives (`objectives.base.Runs`)."""

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.nn.functional import Params
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import saved_tokenizer


class SavedRuns:
    """Reads runs by their folders or URLs."""

    def find(self, path: str) -> str:
        return str(ckpt.find(path))

    def experiment(self, checkpoint: str) -> Experiment:
        return Experiment.model_validate(ckpt.read_meta(ckpt.find(checkpoint))["experiment"])

    def params(self, checkpoint: str) -> tuple[Params, Tokenizer | None]:
        params, meta = ckpt.read_params(ckpt.find(checkpoint))
        return params, saved_tokenizer(meta)


def resolve(experiment: Experiment) -> Experiment:
    """Returns a copy of an experiment whose objective has read the settings it needs from other runs.

    Raises:
      CheckpointError: a run's checkpoint cannot be read, or does not suit the objective.
    """
    return experiment.replace(objective=experiment.objective.resolve(SavedRuns()))
