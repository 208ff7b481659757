"""Skip-gram with negative sampling: each word of a context predicts its centre (Mikolov et al. 2013a).

The paper predicts in the other direction, which over all pairs of words is the same; this is the order of the original
program and of gensim.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.word_vectors import WordVectors
from jax_speechlm.objectives.base import Objective
from jax_speechlm.objectives.word_vectors.negative_sampling import Blocks, NegativeSampling, sampled_loss
from jax_speechlm.parallel.mesh import shard_batch_dim


class SkipGram(NegativeSampling):
    """Settings of skip-gram."""

    kind: Literal["skip_gram"] = "skip_gram"

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over pairs of a centre and a word of its context."""
        return self.objective(model, tokenizer, score_pairs, 2 * self.window * (1 + self.negatives))


def score_pairs(
    module: WordVectors, blocks: Blocks
) -> tuple[
    Float[Array, "batch blocks near centres"],
    Bool[Array, "batch blocks near centres"],
    Bool[Array, "batch blocks near centres"],
]:
    """Computes the loss of every word near a centre, whether it is right, and whether the word is in the context."""
    words = shard_batch_dim(module.words[...][blocks.tokens])
    outputs = shard_batch_dim(module.contexts[...][blocks.outputs])
    logits = jnp.einsum("bmjd,bmind->bmjin", words, outputs)
    return *sampled_loss(logits, blocks.is_drawn[:, :, None]), blocks.is_pair
