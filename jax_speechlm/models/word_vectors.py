"""Word vectors: each word has one as itself, and one as a word around others (Mikolov et al. 2013, GloVe)."""

import functools
from typing import Literal

import jax
import pydantic
from flax import nnx

from jax_speechlm.core.config import Config
from jax_speechlm.nn.functional import parameter


class WordVectorsConfig(Config):
    """Settings of word vectors; the number of words is the tokenizer's.

    Attributes:
      dim: size of a vector.
    """

    kind: Literal["word_vectors"] = "word_vectors"
    dim: pydantic.PositiveInt = 100


class WordVectors(nnx.Module):
    """Tables `words` and `contexts`, [vocab, dim], and with `biases` a scalar for each row of either.

    As in the reference implementations, `words` start uniformly within 0.5 / dim of 0. The other table starts at 0 for
    negative sampling; with biases, for GloVe, all parameters start like `words`.
    """

    def __init__(self, config: WordVectorsConfig, vocab_size: int, *, biases: bool = False, rngs: nnx.Rngs):
        scale = 0.5 / config.dim
        uniform = functools.partial(jax.random.uniform, minval=-scale, maxval=scale)
        table = {"shape": (vocab_size, config.dim), "axes": ("vocab", "embed")}
        other = uniform if biases else nnx.initializers.zeros
        self.words = parameter(rngs.params(), **table, initializer=uniform)
        self.contexts = parameter(rngs.params(), **table, initializer=other)
        bias = {"shape": (vocab_size,), "axes": ("vocab",), "initializer": uniform, "decays": False}
        self.word_bias = parameter(rngs.params(), **bias) if biases else None
        self.context_bias = parameter(rngs.params(), **bias) if biases else None
