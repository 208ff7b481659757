"""AxLearn's fuji-7B, version 1, on a v5p-512 slice.

    jax-speechlm plan --config validation/fuji_7b_v5p512

Source: apple/axlearn, axlearn/experiments/text/gpt/fuji.py (commit 01ebc3f): 4 M tokens a batch in rows of 2,048,
fsdp 8.

Result: planned only, never run by us; published: 2.85 s a step
"""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.common import language_model
from jax_speechlm.recipes.experiment import Experiment

MODEL = TransformerConfig.llama(
    dim=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128, ffn_dim=11008, dtype="bfloat16", remat="dots"
)
SECONDS = 2.85
"""Published duration of a step."""


def config() -> Experiment:
    return language_model(
        MODEL, vocab_size=32_768, rows=2048, context=2048, mesh=MeshShape(data=32, fsdp=8), topology="v5p-512"
    )
