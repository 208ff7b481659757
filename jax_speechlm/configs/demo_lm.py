"""A character LM on English prose and the transcripts of asterisk-en and queen-en: what `make demo` decodes with.

jax-speechlm pretrain --config demo_lm --run-dir runs/lm
"""

from jax_speechlm.experiment import Cadence, Experiment, Text
from jax_speechlm.models.transformer import TransformerConfig
from jax_speechlm.objectives.causal_lm import CausalLM
from jax_speechlm.training.optimizers import Optimizer, WarmupCosine


def config() -> Experiment:
    return Experiment(
        data=Text(sets=("asterisk-en", "queen-en"), context=128, tokens_per_batch=4096),
        objective=CausalLM(),
        model=TransformerConfig(dim=192, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=48, ffn_dim=512),
        optimizer=Optimizer(schedule=WarmupCosine(peak=2e-3, warmup_steps=100)),
        num_steps=600,
        cadence=Cadence(log_every=50, eval_every=300, checkpoint_every=300),
    )
