"""The LM of `scaling/lm_8b_v5p512` on 64 H100.

jax-speechlm pretrain --config scaling/lm_8b_h100x64 --data.sets my

Result: planned only, never run: sized with `jax-speechlm plan`
"""

from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.scaling import lm_8b_v5p512


def config() -> Experiment:
    experiment = lm_8b_v5p512.config()
    data = experiment.data.replace(tokens_per_batch=256 * 4096)
    return experiment.replace(data=data, mesh=MeshShape(data=1, fsdp=64), topology="h100-64", num_steps=1_000_000)
