"""Scorers of a beam search that tests know by heart."""

import numpy as np

from jax_speechlm.decoding.lm.fusion import StepScorer


class Pairs(StepScorer):
    """A bigram model whose log-probabilities are a table; a token is a unit."""

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        shape = np.full(vocab_size, 0.3), vocab_size
        self.table = np.log(np.random.default_rng(5).dirichlet(*shape) + 1e-6)

    def initial(self):
        return 0

    def step(self, value, token):
        return self.table[value, token], 1, token

    def end(self, value):
        return self.table[value, 0], 0
