"""A run's checkpoint, read back: what every use of a trained model begins with."""

import dataclasses
import os

import jax

from data_pipelines.core.paths import AnyPath
from data_pipelines.tokenizers import base
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.tasks import Task, task_of
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import saved_tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A checkpoint's parameters and all that is needed to use them.

    Attributes:
      checkpoint: its folder.
      step: steps of training behind it.
      experiment: the run that it is from.
      tokenizer: None where the run had none.
      params: on the device; the moving average where the run kept one.
      units: fingerprint of the k-means whose units it was trained on, or None.
    """

    checkpoint: AnyPath
    step: int
    experiment: Experiment = dataclasses.field(repr=False)
    tokenizer: base.Tokenizer | None = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    units: str | None = None

    @classmethod
    def load(cls, path: str | os.PathLike, objective: type[ObjectiveConfig], purpose: str) -> "LoadedRun":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder.

        Args:
          objective: what it has to be trained by.
          purpose: what for; ends the sentence "... which cannot".

        Raises:
          CheckpointError: there is no readable checkpoint, or its objective is another.
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
        """The same, whatever the checkpoint was trained by.

        Args:
          quantized: leave kernels that were rounded to integers as they are; else they are the arrays they stand for.

        Raises:
          CheckpointError: there is no readable checkpoint.
        """
        checkpoint = ckpt.find(path)
        params, meta = ckpt.read_params(checkpoint, quantized=quantized)
        experiment = Experiment.model_validate(meta["experiment"])
        units = meta.get("units")
        return cls(checkpoint, meta["step"], experiment, saved_tokenizer(meta), jax.device_put(params), units)


def task_of_run(path: str | os.PathLike) -> Task:
    """Returns the task that a run was trained for; a distillation's is that of its student.

    Raises:
      CheckpointError: there is no readable checkpoint.
    """
    return task_of(Experiment.model_validate(ckpt.read_meta(ckpt.find(path))["experiment"]).objective)
