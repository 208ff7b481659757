"""The LM of `lm_8b_v5p512` on 64 H100. Never run by us: sized with `jax-speechlm plan`.

jax-speechlm pretrain --config lm_8b_h100x64 --data.sets my
"""

from jax_speechlm.configs import lm_8b_v5p512
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    experiment = lm_8b_v5p512.config()
    data = experiment.data.replace(tokens_per_batch=256 * 4096)
    return experiment.replace(data=data, mesh=MeshShape(data=1, fsdp=64), topology="h100-64", num_steps=1_000_000)
