"""GloVe: vectors whose dot products are the logarithms of co-occurrence counts (Pennington et al. 2014).

The loss of a pair that co-occurs x times is f(x) (w_i . c_j + b_i + d_j - log x)^2, with f(x) = min(1, (x / most) ^
exponent), which limits the weight of frequent pairs (equations 8 and 9). As in the paper, a word's vector is the sum of
its two.
"""

from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field, PositiveFloat

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.word_vectors import WordVectors
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.base import Metrics, Objective, weighted
from jax_speechlm.objectives.word_vectors.base import WordVectorObjective, word_counts
from jax_speechlm.parallel.mesh import shard_batch_dim


class GloVe(WordVectorObjective):
    """Settings of GloVe.

    Attributes:
      most: count from which on pairs have the same weight, x_max in the paper, which takes 100 for a corpus of billions
        of words.
      exponent: of the weights below it.
    """

    kind: Literal["glove"] = "glove"
    most: PositiveFloat = 100.0
    exponent: Annotated[float, Field(ge=0)] = 0.75

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over pairs of words. Metrics: `loss`, and `squared_error` without
        the weights f(x).
        """
        word_counts(model, tokenizer, self.kind)
        size = Vocabulary.of(tokenizer).size

        def score(module: WordVectors, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            del key
            is_pair = (batch["segment"] > 0) & (batch["count"] > 0)
            count = jnp.where(is_pair, batch["count"], 1.0)
            error = _predictions(module, batch) - jnp.log(count)
            share = jnp.minimum(1.0, (count / self.most) ** self.exponent)
            weight = is_pair * batch["weight"][:, None]
            return weighted(weight, {"loss": share * error**2, "squared_error": error**2})

        def flops(num_pairs: int, batch_size: int) -> float:
            return 2.0 * model.dim * num_pairs * batch_size

        return Objective.of(lambda rngs: WordVectors(model, size, biases=True, rngs=rngs), score, forward_flops=flops)

    def vectors(self, params: Params) -> Float[Array | np.ndarray, "vocab dim"]:
        return params["words"] + params["contexts"]


def _predictions(module: WordVectors, batch: Batch) -> Float[Array, "batch time"]:
    """Computes w_i . c_j + b_i + d_j of the pairs in a batch."""
    word, context = batch["tokens"], batch["context_tokens"]
    words_BxTxD = shard_batch_dim(module.words[...][word])
    contexts_BxTxD = shard_batch_dim(module.contexts[...][context])
    bias = module.word_bias[...][word] + module.context_bias[...][context]
    return jnp.sum(words_BxTxD * contexts_BxTxD, axis=-1) + bias
