"""Opens trained runs: turns a checkpoint into an experiment, a tokenizer and parameters."""

import base64
import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from data_pipelines.core.paths import AnyPath, as_path
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.units import read_units
from data_pipelines.tokenizers.base import load_tokenizer
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import GROUP, merge
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.tasks import Task, task_of
from jax_speechlm.training import checkpoints as ckpt


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A checkpoint's parameters and the settings needed to use them. LoRA of the run (`Experiment.lora`) is merged.

    Attributes:
      step: training steps before it.
      tokenizer: None if the run had none.
      params: the moving average if the run kept one.
      units: fingerprint of the k-means whose units it was trained on, or None.
      meta: the checkpoint's JSON, for checkpoints derived from it.
      adapter: folder of the adapter in `params` (`inference.adapters`), or None.
    """

    checkpoint: AnyPath
    step: int
    experiment: Experiment = dataclasses.field(repr=False)
    tokenizer: Tokenizer | None = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    units: str | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    adapter: str | None = None

    @classmethod
    def load(
        cls, path: str | os.PathLike, objective: type[ObjectiveConfig], purpose: str, *, training_only: bool = False
    ) -> "LoadedRun":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, to the device.

        Args:
          training_only: read the parameter groups that only training needs too.

        Raises:
          CheckpointError: no checkpoint can be read, or it was trained by another objective, "which cannot" `purpose`.
        """
        checkpoint = ckpt.find(path)
        if (task := task_of_run(checkpoint)).objective is not objective:
            raise CheckpointError(
                f"{checkpoint}: was trained by {task.name}, which cannot {purpose}: name a run that was trained by "
                f"{objective.model_fields['kind'].default}"
            )
        return cls.read(checkpoint, quantized=True, training_only=training_only)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike,
        *,
        quantized: bool = False,
        on_host: bool = False,
        training_only: bool = False,
    ) -> "LoadedRun":
        """Reads a checkpoint of any objective. Raises `CheckpointError` if none can be read.

        Args:
          quantized: keep quantised kernels as integers instead of converting them back to floats.
          on_host: leave the parameters in host memory, as numpy arrays.
          training_only: read the parameter groups that only training needs too.
        """
        checkpoint = ckpt.find(path)
        params, meta = ckpt.read_params(checkpoint, quantized=quantized, training_only=training_only)
        experiment = _experiment(meta)
        if experiment.lora.rank:
            of_groups = {name: updates for name, updates in params[GROUP].items() if name in params}
            params, _ = merge(params | {GROUP: of_groups}, experiment.lora)
            experiment = experiment.replace(lora=experiment.lora.replace(rank=0))
            meta = meta | {"experiment": experiment.model_dump(mode="json")}
        params = jax.device_get(params) if on_host else jax.device_put(params)
        return cls(checkpoint, meta["step"], experiment, saved_tokenizer(meta), params, meta.get("units"), meta)


def experiment_of(path: str | os.PathLike) -> Experiment:
    """Returns the experiment of a run without its parameters. Raises `CheckpointError` if no checkpoint is readable."""
    return _experiment(ckpt.read_meta(ckpt.find(path)))


def _experiment(meta: Mapping[str, Any]) -> Experiment:
    return Experiment.model_validate(meta["experiment"])


def task_of_run(path: str | os.PathLike) -> Task:
    """Returns the task that a run was trained for; for a distillation its student's. Raises as `experiment_of` does."""
    return task_of(experiment_of(path).objective)


def read_tokenizer(path: str) -> Tokenizer:
    """Reads a tokenizer from a folder of `train-tokenizer`, or from a run. Raises `CheckpointError` or `DataError`."""
    if (as_path(path) / "checkpoints").is_dir():
        if tokenizer := saved_tokenizer(ckpt.read_meta(ckpt.find(path))):
            return tokenizer
        raise CheckpointError(f"{path}: this run has no tokenizer to share; set data.tokenizer to one that has")
    return load_tokenizer(path)


def trained_units(folder: str | Path, fingerprint: str | None, checkpoint: AnyPath | None) -> Path:
    """Returns the folder of the k-means that a run was trained on.

    Args:
      fingerprint: of that k-means.

    Raises:
      DataError: the folder cannot be read.
      CheckpointError: it is another k-means.
    """
    if (other := read_units(folder).fingerprint) != fingerprint:
        raise CheckpointError(
            f"{checkpoint}: was trained on the units {fingerprint}, and those of {folder} are {other}: name the folder "
            "of the former with --units"
        )
    return Path(folder)


def tokenizer_files(tokenizer: Tokenizer | None) -> dict[str, str]:
    """Encodes a tokenizer's files for a checkpoint's JSON, name -> base64; empty for None."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return {file.name: base64.b64encode(file.read_bytes()).decode() for file in sorted(Path(folder).iterdir())}


def saved_tokenizer(meta: Mapping[str, Any]) -> Tokenizer | None:
    """Decodes the tokenizer of a checkpoint's JSON; None if it has none."""
    if not meta["tokenizer"]:
        return None
    with tempfile.TemporaryDirectory() as folder:
        unpack_files(meta["tokenizer"], folder)
        return load_tokenizer(folder)


def unpack_files(files: Mapping[str, str], directory: str | Path) -> None:
    """Writes files encoded by `tokenizer_files`. Raises `CheckpointError` for names that contain a path."""
    for name, content in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"a checkpoint's tokenizer holds a file named {name!r}: refused")
        (Path(directory) / name).write_bytes(base64.b64decode(content))


class SavedRuns:
    """Reads the runs that an objective needs, by their folders or URLs (`objectives.base.Runs`)."""

    def find(self, path: str) -> str:
        return str(ckpt.find(path))

    def experiment(self, checkpoint: str) -> Experiment:
        return experiment_of(checkpoint)

    def params(self, checkpoint: str) -> tuple[Params, Tokenizer | None]:
        run = LoadedRun.read(checkpoint, on_host=True)
        return run.params, run.tokenizer


def resolve(experiment: Experiment) -> Experiment:
    """Returns a copy of an experiment with the settings that are read from other runs: those of its objective, and the
    tokenizer of the run that LoRA adapts."""
    if experiment.lora.rank and hasattr(experiment.data, "tokenizer") and experiment.data.tokenizer is None:
        base = experiment.init_from[0].checkpoint
        if ckpt.read_meta(ckpt.find(base))["tokenizer"]:
            experiment = experiment.replace(data=experiment.data.replace(tokenizer=base))
    return experiment.replace(objective=experiment.objective.resolve(SavedRuns()))
