"""Llama 2 7B by MaxText on 64 H100.

    jax-speechlm plan --config validation/llama2_7b_h100x64

Source: AI-Hypercomputer/maxtext, MaxText/configs/a3/llama_2_7b (commit 30cd40a): 4 rows of 4,096 tokens a GPU, fsdp 8
within the node, 409 TFLOP/s a GPU (attention over all pairs). The machines (a3-highgpu-8g) have a network of 12.5
GB/s a GPU; the plan's has 50, as in DGX systems.

Result: planned only, never run by us; published: 409 TFLOP/s a GPU, 1.85 s a step
"""

from jax_speechlm.models.transformer_config import TransformerConfig, forward_flops
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.common import language_model
from jax_speechlm.recipes.experiment import Experiment

MODEL = TransformerConfig.llama(
    dim=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128, ffn_dim=11008, tied=False, dtype="bfloat16",
    remat="dots",
)  # fmt: skip
SECONDS = 3 * forward_flops(MODEL.replace(causal=False), 32_000, 4096, 4) / 409e12
"""Published duration of a step."""


def config() -> Experiment:
    return language_model(
        MODEL, vocab_size=32_000, rows=64 * 4, context=4096, mesh=MeshShape(data=8, fsdp=8), topology="h100-64"
    )
