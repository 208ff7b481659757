"""A causal LM of 8 B parameters, Qwen3's shape, for two v5p-512 slices.

jax-speechlm prepare my --text 'corpus/*.jsonl.zst'
jax-speechlm train-tokenizer --sets my --kind bpe --vocab-size 128000 --byte-fallback --out data/bpe-128000
jax-speechlm pretrain --config scaling/lm_8b_v5p512 --data.sets my --run-dir runs/lm_8b

Rates and decay follow published recipes of this size (Llama 3: Grattafiori et al. 2024, arXiv:2407.21783, table 3: peak
3e-4, 8,000 steps of warm-up, cosine to a tenth; the batch is 4 M tokens).

Result: planned only, never run: sized with `jax-speechlm plan`
"""

from jax_speechlm.models.transformer_config import SIZES
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Text


def config() -> Experiment:
    return Experiment(
        data=Text(sets=("web",), tokenizer="data/bpe-128000", context=4096, tokens_per_batch=1024 * 4096),
        objective=CausalLM(),
        model=SIZES["8B"].replace(dtype="bfloat16", remat="dots"),
        optimizer=Optimizer(schedule=WarmupCosine(peak=3e-4, warmup_steps=8000), weight_decay=0.1),
        num_steps=250_000,
        mesh=MeshShape(replica=2, data=4, fsdp=64),
        topology="2xv5p-512",
        loop=LoopConfig(log_every=50, eval_every=5000, checkpoint_every=1000),
    )
