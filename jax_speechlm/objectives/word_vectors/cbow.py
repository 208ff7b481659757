"""CBOW with negative sampling: the mean vector of a context predicts its centre (Mikolov et al. 2013a)."""

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


class CBOW(NegativeSampling):
    """Settings of CBOW, the continuous bag of words."""

    kind: Literal["cbow"] = "cbow"

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over the centres that have a context."""
        return self.objective(model, tokenizer, score_centres, 2 * self.window + 1 + self.negatives)


def score_centres(
    module: WordVectors, blocks: Blocks
) -> tuple[
    Float[Array, "batch blocks centres"], Bool[Array, "batch blocks centres"], Bool[Array, "batch blocks centres"]
]:
    """Computes the loss of every centre, whether it is right, and whether it has a context."""
    words = shard_batch_dim(module.words[...][blocks.tokens])
    outputs = shard_batch_dim(module.contexts[...][blocks.outputs])
    size = jnp.sum(blocks.is_pair, axis=2)
    mean = jnp.einsum("bmji,bmjd->bmid", blocks.is_pair / jnp.maximum(size, 1)[:, :, None], words)
    logits = jnp.einsum("bmid,bmind->bmin", mean, outputs)
    return *sampled_loss(logits, blocks.is_drawn), size > 0
