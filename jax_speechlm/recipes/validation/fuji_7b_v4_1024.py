"""AxLearn's fuji-7B, version 1, on a v4-1024 slice.

    jax-speechlm plan --config validation/fuji_7b_v4_1024

Source: as `validation/fuji_7b_v5p512`, with fsdp 16; compiler options from axlearn/common/compiler_options.py.

Result: planned only, never run by us; published: 3.03 s a step
"""

from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.validation import fuji_7b_v5p512

SECONDS = 3.03
"""Published duration of a step."""

COMPILER_OPTIONS = {"xla_enable_async_all_gather": True, "xla_enable_async_collective_permute": True}
"""Those of the published run."""


def config() -> Experiment:
    return fuji_7b_v5p512.config().replace(mesh=MeshShape(data=32, fsdp=16), topology="v4-1024")
