"""Reads a run's checkpoint for inference."""

import dataclasses
import os

import jax

from data_pipelines.core.paths import AnyPath
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.tasks import Task, task_of
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import saved_tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A checkpoint's parameters and the settings needed to use them.

    Attributes:
      checkpoint: its folder.
      step: training steps before it.
      experiment: the run's configuration.
      tokenizer: None if the run had none.
      params: on the device; the moving average if the run kept one.
      units: fingerprint of the k-means whose units it was trained on, or None.
    """

    checkpoint: AnyPath
    step: int
    experiment: Experiment = dataclasses.field(repr=False)
    tokenizer: Tokenizer | None = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    units: str | None = None

    @classmethod
    def load(cls, path: str | os.PathLike, objective: type[ObjectiveConfig], purpose: str) -> "LoadedRun":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder.

        Args:
          objective: objective that the run must be trained by.
          purpose: the intended use; completes the error "was trained by ..., which cannot ...".

        Raises:
          CheckpointError: no checkpoint can be read, or it was trained by another objective.
        """
        checkpoint = ckpt.find(path)
        if (task := task_of_run(checkpoint)).objective is not objective:
            raise ckpt.CheckpointError(
                f"{checkpoint}: was trained by {task.name}, which cannot {purpose}: name a run that was trained by "
                f"{objective.model_fields['kind'].default}"
            )
        return cls.read(checkpoint, quantized=True)

    @classmethod
    def read(cls, path: str | os.PathLike, *, quantized: bool = False) -> "LoadedRun":
        """Reads a checkpoint of any objective.

        Args:
          quantized: keep quantised kernels as integers instead of converting them back to floats.

        Raises:
          CheckpointError: no checkpoint can be read.
        """
        checkpoint = ckpt.find(path)
        params, meta = ckpt.read_params(checkpoint, quantized=quantized)
        experiment = Experiment.model_validate(meta["experiment"])
        units = meta.get("units")
        return cls(checkpoint, meta["step"], experiment, saved_tokenizer(meta), jax.device_put(params), units)


def experiment_of_run(path: str | os.PathLike) -> Experiment:
    """Reads the experiment of a run's newest checkpoint, or of a `checkpoints/<step>` folder, without its arrays.

    Raises:
      CheckpointError: no checkpoint can be read.
    """
    return Experiment.model_validate(ckpt.read_meta(ckpt.find(path))["experiment"])


def task_of_run(path: str | os.PathLike) -> Task:
    """Returns the task that a run was trained for; for a distillation its student's.

    Raises:
      CheckpointError: no checkpoint can be read.
    """
    return task_of(experiment_of_run(path).objective)
