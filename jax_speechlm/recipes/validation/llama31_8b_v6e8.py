"""Llama 3.1 8B by MaxText on a v6e-8 slice.

    jax-speechlm plan --config validation/llama31_8b_v6e8

Source: AI-Hypercomputer/tpu-recipes, training/trillium/Llama3.1-8B-MaxText/v6e-8 (commit 10ca5b9): 3 rows of 8,192
tokens a chip, fsdp 8. MaxText keeps layer inputs and attention's projections in the host's memory; here "full" keeps
the inputs on the chip and recomputes the projections.

Result: planned only, never run by us; published: 3.443 s a step
"""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.common import language_model
from jax_speechlm.recipes.experiment import Experiment

MODEL = TransformerConfig.llama(
    dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, ffn_dim=14336, rope_theta=5e5, tied=False,
    dtype="bfloat16", remat="full",
)  # fmt: skip
SECONDS = 3.443
"""Published duration of a step."""

COMPILER_OPTIONS = {
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
}
"""Of the published run: no collective matmul, collectives on SparseCores."""


def config() -> Experiment:
    return language_model(
        MODEL, vocab_size=128_256, rows=8 * 3, context=8192, mesh=MeshShape(data=1, fsdp=8), topology="v6e-8"
    )
