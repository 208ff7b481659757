"""A causal LM of 5 M parameters on text-en, 2,048 byte pairs.

jax-speechlm prepare text-en
jax-speechlm train-tokenizer --sets text-en --kind bpe --vocab-size 2048 --byte-fallback --out data/bpe-2048
jax-speechlm pretrain --config text_en_lm
jax-speechlm train-ngram --sets text-en --order 5 --out data/text-en-5.arpa
jax-speechlm eval runs/text_en_lm --sets text-en --ngram data/text-en-5.arpa

Not yet measured by us.
"""

from jax_speechlm.experiment import Cadence, Experiment, Text
from jax_speechlm.models.transformer import SIZES
from jax_speechlm.objectives.causal_lm import CausalLM
from jax_speechlm.training.optimizers import Optimizer, WarmupCosine


def config() -> Experiment:
    return Experiment(
        data=Text(sets=("text-en",), tokenizer="data/bpe-2048", context=256, tokens_per_batch=4096),
        objective=CausalLM(),
        model=SIZES["5M"],
        optimizer=Optimizer(schedule=WarmupCosine(peak=1.5e-3, warmup_steps=200)),
        num_steps=2000,
        cadence=Cadence(log_every=50, eval_every=500, checkpoint_every=500),
    )
