"""MaxText's model of 16 B parameters on a v5e-256 slice.

    jax-speechlm plan --config validation/maxtext_16b_v5e256

Source: AI-Hypercomputer/maxtext, MaxText/configs/v5e/16b.sh and README.md (commit 0777510): 6 rows of 2,048 tokens a
chip, 120 TFLOP/s a chip by MaxText's formula of that time, which counts attention over all pairs.

Result: planned only, never run by us; published: 120 TFLOP/s a chip, 10.3 s a step
"""

from jax_speechlm.models.transformer_config import TransformerConfig, forward_flops
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.common import language_model
from jax_speechlm.recipes.experiment import Experiment

MODEL = TransformerConfig.llama(
    dim=4096, num_layers=32, num_heads=64, num_kv_heads=64, head_dim=128, ffn_dim=28672, tied=False, dtype="bfloat16",
    remat="full",
)  # fmt: skip
SECONDS = 3 * forward_flops(MODEL.replace(causal=False), 32_000, 2048, 6) / 120e12
"""Published duration of a step."""


def config() -> Experiment:
    return language_model(
        MODEL, vocab_size=32_000, rows=256 * 6, context=2048, mesh=MeshShape(data=1, fsdp=256), topology="v5e-256"
    )
