"""Llama 3.1 8B by MaxText on a v6e-256 slice.

    jax-speechlm plan --config validation/llama31_8b_v6e256

Source: AI-Hypercomputer/tpu-recipes, training/trillium/Llama3.1-8B-MaxText/v6e-256 (commit a9e0929): as
`validation/llama31_8b_v6e8`, with 4 rows a chip and fsdp 256.

Result: planned only, never run by us; published: 4.546 s a step
"""

from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.validation import llama31_8b_v6e8

SECONDS = 4.546
"""Published duration of a step."""

COMPILER_OPTIONS = {"xla_tpu_scoped_vmem_limit_kib": 98304}
"""Those of the published run's that change this program."""


def config() -> Experiment:
    experiment = llama31_8b_v6e8.config()
    data = experiment.data.replace(tokens_per_batch=256 * 4 * 8192)
    return experiment.replace(data=data, mesh=MeshShape(data=1, fsdp=256), topology="v6e-256")
