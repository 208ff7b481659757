"""MaxText's model of 16 B parameters on two v5e-256 slices.

    jax-speechlm plan --config validation/maxtext_16b_2xv5e256

Source: as `validation/maxtext_16b_v5e256`, which it joins over the network.

Result: planned only, never run by us; published: 117 TFLOP/s a chip, 10.6 s a step
"""

from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.validation import maxtext_16b_v5e256

SECONDS = maxtext_16b_v5e256.SECONDS * 120 / 117
"""Published duration of a step."""


def config() -> Experiment:
    experiment = maxtext_16b_v5e256.config()
    data = experiment.data.replace(tokens_per_batch=2 * experiment.data.tokens_per_batch)
    mesh = MeshShape(replica=2, data=1, fsdp=256)
    return experiment.replace(data=data, mesh=mesh, topology="2xv5e-256")
