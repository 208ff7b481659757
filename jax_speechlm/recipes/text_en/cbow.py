"""Vectors of the words of text-en by CBOW with negative sampling.

jax-speechlm pretrain --config text_en/cbow
jax-speechlm eval runs/text_en_cbow --files wordsim353.tsv simlex999.txt questions-words.txt

Data, tokenizer and files are those of `text_en/skip_gram`. 3.40 M parameters, seed 0; 2 CPU cores of a busy machine:
11 minutes, 79 s of CPU time, 13.1 M tokens (5.4 passes). SimLex-999: 0.013 [-0.056, 0.083]; analogies: 2.5 % of 6,347
right. gensim on the same words, 5 passes: 0.217, 0.003 and 2.7 %, 10 s of CPU time (benchmarks/word_vectors.py).

Result: WordSim-353 rank correlation 0.272 [0.153, 0.383]
"""

from jax_speechlm.objectives.word_vectors.cbow import CBOW
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.text_en import skip_gram


def config() -> Experiment:
    return skip_gram.config().replace(objective=CBOW())
