"""Vectors of the words of text-en by skip-gram with negative sampling.

jax-speechlm prepare text-en
jax-speechlm train-tokenizer --sets text-en --kind word --out data/words-text-en
jax-speechlm pretrain --config text_en/skip_gram
jax-speechlm eval runs/text_en_skip_gram --files wordsim353.tsv simlex999.txt questions-words.txt

3.40 M parameters, seed 0; 2 CPU cores of a busy machine: 12 minutes, about 120 s of CPU time, 13.1 M tokens (5.4
passes). The files are those in gensim's package (docs/word_vectors.md); 265 of 353 pairs have known words.
SimLex-999: 0.032 [-0.037, 0.101]; analogies: 2.2 % of 6,347 right. gensim on the same words, 5 passes: 0.228, 0.082
and 3.4 %, 38 s of CPU time (benchmarks/word_vectors.py).

Result: WordSim-353 rank correlation 0.291 [0.173, 0.400]
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
