"""Speech-language models in JAX.

The public interface: `load(path)` opens a trained checkpoint, `Experiment` describes a training run, `train` runs it,
`evaluate` measures what came out. Each imports what it needs when it is first used. Everything else may change.
"""

import importlib
from typing import TYPE_CHECKING

from jax_speechlm.parallel.platforms import skip_absent_tpu

if TYPE_CHECKING:
    from jax_speechlm.evaluation.by_task import evaluate
    from jax_speechlm.inference.load import TrainedModel, load
    from jax_speechlm.recipes.experiment import Experiment
    from jax_speechlm.training.loop import train

__all__ = ["Experiment", "TrainedModel", "evaluate", "load", "train"]

_MODULES = {
    "Experiment": "jax_speechlm.recipes.experiment",
    "TrainedModel": "jax_speechlm.inference.load",
    "evaluate": "jax_speechlm.evaluation.by_task",
    "load": "jax_speechlm.inference.load",
    "train": "jax_speechlm.training.loop",
}

skip_absent_tpu()  # before anything imports JAX


def __getattr__(name: str):
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jax_speechlm")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
