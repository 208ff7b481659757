"""Adapters of trained runs: LoRA in a folder of its own, applied to a base that stays as it is in memory."""

import dataclasses
import os
from pathlib import Path

import jax

from jax_speechlm.nn.lora import attach
from jax_speechlm.tasks import resolve
from jax_speechlm.training.runs import LoadedRun

_READER = "jax_speechlm.interop.hf.peft:read_adapter"  # imported when used, as the forms of tasks are


def adapted(run: LoadedRun, adapter: str | os.PathLike | None) -> LoadedRun:
    """Returns a run whose kernels have the updates of an adapter beside them; the base's arrays are shared.

    Args:
      adapter: folder of an adapter in peft's format; None returns the run itself.

    Raises:
      ExportError: the adapter cannot be read, or is of another model.
      ValueError: the run has an adapter already.
    """
    if adapter is None:
        return run
    if run.adapter is not None:
        raise ValueError(f"{run.checkpoint} has the adapter {run.adapter} already: load the run without it")
    updates = jax.device_put(resolve(_READER)(Path(adapter), run))
    return dataclasses.replace(run, params=attach(run.params, updates, 1.0), adapter=str(adapter))
