"""Declaration of a task: objective, models, data, predictor, evaluator and exports in one place."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.batching.fields import Field
from data_pipelines.storage.frame_labels import FrameLabels
from data_pipelines.storage.index import Index
from data_pipelines.storage.pitch import FramePitch
from data_pipelines.storage.units import FrameGrid, UnitIdStore
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.frontend import AnyMel
from jax_speechlm.objectives.base import ObjectiveConfig

Reader = Callable[
    [ObjectiveConfig, Config, AnyMel, FrameGrid, Index, bool], np.ndarray | UnitIdStore | FrameLabels | FramePitch
]


@dataclasses.dataclass(frozen=True)
class Input:
    """Batch arrays that a task needs, and their source.

    Attributes:
      fields: the arrays.
      read: `(objective, data, mel, grid, index, training) -> values` for the rows of an index, with the grid of the
        model's frames; None if the loader reads them itself (audio, tokens).
    """

    fields: tuple[Field, ...]
    read: Reader | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One capability.

    Functions and classes are given as "module:name" and imported on first use.

    Attributes:
      name: the objective's `kind`, used by checkpoints and recipes.
      objective: settings class; `objective.build(...)` returns the model and the loss.
      models: configs of the models that it trains.
      inputs: inputs per kind of data ("speech", "text", "unit_text", "word_pairs", "mixture").
      predictor: class whose `load(path)` opens a trained checkpoint.
      abilities: methods of `jax_speechlm.load(path)` that such a checkpoint may have.
      evaluator: function that `jax-speechlm eval` calls.
      commands: functions of other commands that depend on the task, by command name.
      hugging_face: the `HuggingFaceForm` for export; None if transformers has no such model.
      runtimes: whether StableHLO, SavedModel, LiteRT and ONNX exports exist.
    """

    name: str
    objective: type[ObjectiveConfig]
    models: tuple[type[Config], ...]
    inputs: Mapping[str, tuple[Input, ...]]
    predictor: str | None = None
    abilities: tuple[str, ...] = ()
    evaluator: str | None = None
    commands: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hugging_face: str | None = None
    runtimes: bool = False

    def __post_init__(self):
        """Raises TypeError if a part is missing or contradicts another."""
        kind = getattr(self.objective, "model_fields", {}).get("kind")
        wrong = None
        if kind is None or "build" not in vars(self.objective):
            wrong = "objective must be an ObjectiveConfig with a `kind` and its own `build`"
        elif kind.default != self.name:
            wrong = f"name must be the objective's kind, {kind.default!r}"
        elif not self.models:
            wrong = "models names no model"
        elif not self.inputs:
            wrong = "inputs names no kind of data"
        elif self.abilities and not self.predictor:
            wrong = f"predictor is missing, which {', '.join(self.abilities)} need"
        elif bad := [path for path in self.paths() if ":" not in path]:
            wrong = f"{bad[0]!r} should be 'module:name'"
        if wrong:
            raise TypeError(f"the task {self.name!r} is incomplete: {wrong}")

    def paths(self) -> Sequence[str]:
        """Returns all functions and classes given as "module:name"."""
        named = (self.predictor, self.evaluator, self.hugging_face, *self.commands.values())
        return [path for path in named if path is not None]

    def check_model(self, model: Config) -> None:
        """Raises ValueError if the task cannot train the model."""
        if isinstance(model, self.models):
            return
        names = " or a ".join(each.__name__ for each in self.models)
        is_coarse = getattr(model, "subsampling", 1) > 1
        why = ", for it needs an encoder with a frame for each feature vector" if is_coarse else ""
        raise ValueError(f"{self.name} does not train a {model.kind}{why}: set model to a {names}")

    def inputs_of(self, data: Config) -> tuple[Input, ...]:
        """Returns the inputs that the task reads from data of this kind.

        Raises:
          ValueError: the task cannot be trained on such data.
        """
        if data.kind not in self.inputs:
            raise ValueError(f"data of kind {data.kind} do not train {self.name}: it takes {' or '.join(self.inputs)}")
        return self.inputs[data.kind]


def resolve(path: str) -> Any:
    """Imports a function or class given as "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
