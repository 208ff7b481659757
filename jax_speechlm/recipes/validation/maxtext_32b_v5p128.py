"""MaxText's model of 32 B parameters on a v5p-128 slice.

    jax-speechlm plan --config validation/maxtext_32b_v5p128

Source: AI-Hypercomputer/maxtext, MaxText/configs/v5p/32b.sh and README.md (commit 0d9779a): 7 rows of 2,048 tokens a
chip, fsdp 16 x tensor 4, 328 TFLOP/s a chip (attention over all pairs). MaxText keeps the outputs of linear maps. Here
they take 91 GiB a chip, attention's included, and the step 110 of 93 usable: remat is "full".

Result: planned only, never run by us; published: 328 TFLOP/s a chip, 8.5 s a step
"""

from jax_speechlm.models.transformer_config import TransformerConfig, forward_flops
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.common import language_model
from jax_speechlm.recipes.experiment import Experiment

MODEL = TransformerConfig.llama(
    dim=8192, num_layers=32, num_heads=64, num_kv_heads=64, head_dim=128, ffn_dim=28672, tied=False, dtype="bfloat16",
    remat="full",
)  # fmt: skip
SECONDS = 3 * forward_flops(MODEL.replace(causal=False), 32_000, 2048, 7) / 328e12
"""Published duration of a step."""


def config() -> Experiment:
    mesh = MeshShape(data=1, fsdp=16, tensor=4)
    return language_model(MODEL, vocab_size=32_000, rows=64 * 7, context=2048, mesh=mesh, topology="v5p-128")
