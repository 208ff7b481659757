"""Vectors of the words of text-en by skip-gram with negative sampling.

jax-speechlm prepare text-en
jax-speechlm train-tokenizer --sets text-en --kind word --out data/words-text-en
jax-speechlm pretrain --config text_en/skip_gram

Result: not yet measured
"""

from jax_speechlm.models.word_vectors import WordVectorsConfig
from jax_speechlm.objectives.word_vectors.skip_gram import SkipGram
from jax_speechlm.recipes.common import on_cpu
from jax_speechlm.recipes.experiment import Experiment, Text


def config() -> Experiment:
    settings = on_cpu(800, peak=0.01, warmup_steps=40, eval_every=200)
    return Experiment(
        data=Text(sets=("text-en",), tokenizer="data/words-text-en", context=256, tokens_per_batch=16384),
        objective=SkipGram(),
        model=WordVectorsConfig(dim=100),
        **settings | {"optimizer": settings["optimizer"].replace(kind="adam", b2=0.999)},
    )
