"""A causal LM of 5 M parameters on text-en, 2,048 byte pairs.

jax-speechlm prepare text-en
jax-speechlm train-tokenizer --sets text-en --kind bpe --vocab-size 2048 --byte-fallback --out data/bpe-2048
jax-speechlm pretrain --config text_en/lm
jax-speechlm train-ngram --sets text-en --order 5 --out data/text-en-5.arpa
jax-speechlm eval runs/text_en_lm --sets text-en --ngram data/text-en-5.arpa

5.35 M parameters, seed 0; 2 CPU cores of a busy machine: 93 minutes, 8.2 M tokens (1.8 passes). Test: 1,616 documents,
1.22 MB; perplexity 24.1 a token. A word 5-gram of the same training text has 1.546 bits a byte, where the 8,243 unknown
words (3.9 %) are charged as `<unk>` and not by their letters.

Result: text-en test 1.514 bits per byte
"""

from jax_speechlm.models.transformer_config import SIZES
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.recipes.common import on_cpu
from jax_speechlm.recipes.experiment import Experiment, Text


def config() -> Experiment:
    return Experiment(
        data=Text(sets=("text-en",), tokenizer="data/bpe-2048", context=256, tokens_per_batch=4096),
        objective=CausalLM(),
        model=SIZES["5M"],
        **on_cpu(2000, peak=1.5e-3, warmup_steps=200, eval_every=500),
    )
