"""Vectors of the words of text-en by GloVe.

jax-speechlm pretrain --config text_en/glove
jax-speechlm eval runs/text_en_glove --files wordsim353.tsv simlex999.txt questions-words.txt

Data, tokenizer and files are those of `text_en/skip_gram`. 3.43 M parameters, seed 0; 2 CPU cores of a busy machine:
9 minutes, 81 s of CPU time, 52.4 M pairs. SimLex-999: 0.023 [-0.046, 0.092]; analogies: 3.1 % of 6,347 right.

Result: WordSim-353 rank correlation 0.321 [0.205, 0.428]
"""

from jax_speechlm.objectives.word_vectors.glove import GloVe
from jax_speechlm.recipes.experiment import Experiment, WordPairs
from jax_speechlm.recipes.text_en import skip_gram


def config() -> Experiment:
    sampled = skip_gram.config()
    data = WordPairs(sets=sampled.data.sets, tokenizer=sampled.data.tokenizer, context=1024, tokens_per_batch=65536)
    return sampled.replace(data=data, objective=GloVe(most=10))
