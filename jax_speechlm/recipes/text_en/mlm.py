"""A masked LM of 5 M parameters on text-en, 2,048 byte pairs, in ModernBERT's form.

jax-speechlm pretrain --config text_en/mlm
jax-speechlm eval runs/text_en_mlm --sets text-en

The tokenizer is that of `text_en/lm`. 5.41 M parameters, seed 0; 2 CPU cores of a busy machine: 41 minutes, 2.9 M
tokens. Test: 60,302 masked tokens. Token frequencies alone: 3.3 % and 6.430 nats.

Result: text-en test 30.5 % of the masked tokens right, 3.740 nats each
"""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.text_en import lm


def config() -> Experiment:
    causal = lm.config()
    return causal.replace(
        data=causal.data.replace(context=128),
        objective=MaskedLM(),
        model=TransformerConfig.modernbert(),
        num_steps=700,
    )
