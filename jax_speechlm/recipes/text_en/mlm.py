"""A masked LM of 5 M parameters on text-en, 2,048 byte pairs, in ModernBERT's form.

jax-speechlm pretrain --config text_en/mlm
jax-speechlm eval runs/text_en_mlm --sets text-en

The tokenizer is that of `text_en/lm`. 5.41 M parameters, seed 0; 2 CPU cores of a busy machine: 41 minutes, 2.9 M
tokens. Test: 60,302 masked tokens. Token frequencies alone: 3.3 % and 6.430 nats.

Result: text-en test 30.5 % of the masked tokens right, 3.740 nats each
"""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Text

MODEL = TransformerConfig.modernbert()


def config() -> Experiment:
    return Experiment(
        data=Text(sets=("text-en",), tokenizer="data/bpe-2048", context=128, tokens_per_batch=4096),
        objective=MaskedLM(),
        model=MODEL,
        optimizer=Optimizer(schedule=WarmupCosine(peak=1.5e-3, warmup_steps=200)),
        num_steps=700,
        topology="cpu-1",
        loop=LoopConfig(log_every=50, eval_every=500, checkpoint_every=500),
    )
