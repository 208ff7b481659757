"""Negative sampling: the draws and the loss of skip-gram and CBOW (Mikolov et al. 2013b).

Every occurrence of a word is a centre, whose context are the words within a radius that is drawn from 1 to `window`, so
that near words count more. Of frequent words some occurrences are left out before contexts are formed, which widens
them. The output of a centre is told apart from `negatives` words drawn from the distribution count ** `exponent`.

Reference: Mikolov et al. 2013, "Distributed representations of words and phrases and their compositionality", sections
2.2 and 2.3; probabilities as in their program and in gensim, which differ from the paper's for subsampling.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt32
from pydantic import Field, PositiveInt

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.models.word_vectors import WordVectors
from jax_speechlm.objectives.base import Metrics, Objective, split_row_keys, weighted
from jax_speechlm.objectives.word_vectors.base import WordVectorObjective, word_counts

_BLOCK = 16  # centres
_DOMAIN = 2**31 - 1  # of the draws of negatives: the last entry of their cumulative distribution


class Tables(NamedTuple):
    """Distributions over words, by token id.

    Attributes:
      keep: an occurrence is kept if 32 random bits do not exceed its word's entry; 0 for ids that are no words.
      cumulative: a uniform integer below 2^31 draws the first negative, counted from id 1, whose entry is as large.
    """

    keep: UInt32[np.ndarray, " ids"]
    cumulative: UInt32[np.ndarray, " words"]

    @classmethod
    def of(cls, counts: Int[np.ndarray, " words"], subsample: float | None, exponent: float) -> "Tables":
        """Computes the distributions from the counts of words.

        Args:
          subsample, exponent: as in `NegativeSampling`.
        """
        ratio = np.ones(len(counts)) if subsample is None else subsample * counts.sum() / counts
        keep = np.minimum(np.sqrt(ratio) + ratio, 1.0)
        cumulative = np.cumsum(counts.astype(np.float64) ** exponent)
        entries = np.round(cumulative / cumulative[-1] * _DOMAIN)
        return cls(np.append(0, keep * (2**32 - 1)).astype(np.uint32), entries.astype(np.uint32))


class Examples(NamedTuple):
    """Centres with their contexts and outputs, of the words that subsampling kept, which stand close together.

    Attributes:
      tokens: words; anything after the last.
      segment: document of each word, from 1; 0 after the last.
      radius: of each word's context.
      outputs: the word, then its negatives.
      is_drawn: False for a negative that is the word itself, and is ignored.
    """

    tokens: Int[Array, "batch time"]
    segment: Int[Array, "batch time"]
    radius: Int[Array, "batch time"]
    outputs: Int[Array, "batch time outputs"]
    is_drawn: Bool[Array, "batch time outputs"]


def draw_examples(
    tokens_BxT: Int[Array, "batch time"],
    segment_BxT: Int[Array, "batch time"],
    keys_B: Key[Array, " batch"],
    tables: Tables,
    window: int,
    negatives: int,
) -> Examples:
    """Draws which words are kept, the radius of each context, and the negatives of each centre.

    The contexts of a centre share its negatives (Ji et al. 2016, "Parallelizing word2vec in shared and distributed
    memory"): in expectation the loss is that of separate draws, at a fraction of the memory traffic. Draws depend on
    the row's key and on the position only.
    """
    keep, cumulative = jnp.asarray(tables.keep), jnp.asarray(tables.cumulative)

    def draw(tokens: Array, segment: Array, key: PRNGKeyArray) -> Examples:
        bits_TxN = jax.vmap(
            lambda place: jax.random.bits(jax.random.fold_in(key, place), (2 + negatives,), jnp.uint32)
        )(jnp.arange(len(tokens)))
        is_word = (segment > 0) & (tokens > 0) & (tokens < len(keep))
        kept = is_word & (bits_TxN[:, 0] <= keep[jnp.where(is_word, tokens, 0)])
        radius = 1 + (bits_TxN[:, 1] % window).astype(jnp.int32)
        others = 1 + jnp.searchsorted(cumulative, bits_TxN[:, 2:] >> 1).astype(tokens.dtype)
        outputs = jnp.concatenate([tokens[:, None], others], axis=1)
        is_drawn = jnp.concatenate([jnp.ones_like(kept)[:, None], others != tokens[:, None]], axis=1)
        order = jnp.argsort(~kept)  # stable: kept words first, in their order
        return Examples(*(x[order] for x in (tokens, jnp.where(kept, segment, 0), radius, outputs, is_drawn)))

    return jax.vmap(draw)(tokens_BxT, segment_BxT, keys_B)


class Blocks(NamedTuple):
    """Examples in blocks of consecutive centres, so that all logits of a block are one matrix product.

    Attributes:
      tokens: words of a block, and `window` more before and after it.
      is_pair: whether such a word is in the context of a centre.
      outputs, is_drawn: of the centres, as in `Examples`.
    """

    tokens: Int[Array, "batch blocks near"]
    is_pair: Bool[Array, "batch blocks near centres"]
    outputs: Int[Array, "batch blocks centres outputs"]
    is_drawn: Bool[Array, "batch blocks centres outputs"]

    @classmethod
    def of(cls, examples: Examples, window: int) -> "Blocks":
        """Cuts the rows of examples into blocks; the last has padding."""
        num_blocks = -(-examples.tokens.shape[1] // _BLOCK)
        more = num_blocks * _BLOCK - examples.tokens.shape[1]

        def centres(x: Array) -> Array:
            padded = jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)))
            return padded.reshape(len(x), num_blocks, _BLOCK, *x.shape[2:])

        place = _BLOCK * np.arange(num_blocks)[:, None] + np.arange(_BLOCK + 2 * window)

        def near(x_BxT: Array) -> Array:
            return jnp.pad(x_BxT, ((0, 0), (window, window + more)))[:, place]

        distance = np.abs(np.arange(_BLOCK + 2 * window)[:, None] - window - np.arange(_BLOCK))
        segment = centres(examples.segment)[:, :, None]
        is_pair = (distance > 0) & (distance <= centres(examples.radius)[:, :, None]) & (segment > 0)
        is_pair &= near(examples.segment)[..., None] == segment
        return cls(near(examples.tokens), is_pair, centres(examples.outputs), centres(examples.is_drawn))


ScoreBlocks = Callable[[WordVectors, Blocks], tuple[Array, Array, Array]]
"""Returns losses, whether each is right, and whether each counts, of one shape."""


class NegativeSampling(WordVectorObjective):
    """Settings of skip-gram and CBOW; the defaults are gensim's.

    Attributes:
      window: largest distance of a context's words from their centre.
      negatives: words drawn for each centre.
      subsample: s, where a word of share f of the text is kept with probability sqrt(s / f) + s / f; None keeps all.
      exponent: of the counts in the distribution of negatives.
    """

    window: PositiveInt = 5
    negatives: PositiveInt = 5
    subsample: Annotated[float, Field(gt=0, lt=1)] | None = 1e-3
    exponent: float = 0.75

    def objective(
        self, model: Config, tokenizer: Tokenizer | None, score_blocks: ScoreBlocks, products: int
    ) -> Objective:
        """Builds an objective of the examples that `score_blocks` scores, with so many products of vectors a centre.

        Metrics: `loss`, and `accuracy`, the share in which the output's logit exceeds those of all negatives. In
        evaluation a row's draws are always the same.
        """
        counts = word_counts(model, tokenizer, self.kind)
        size, tables = Vocabulary.of(tokenizer).size, Tables.of(counts, self.subsample, self.exponent)

        def score(module: WordVectors, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            keys, _ = split_row_keys(key, batch)
            examples = draw_examples(batch["tokens"], batch["segment"], keys, tables, self.window, self.negatives)
            loss, is_right, is_valid = score_blocks(module, Blocks.of(examples, self.window))
            weight = is_valid * batch["weight"].reshape(-1, *(1,) * (is_valid.ndim - 1))
            return weighted(weight, {"loss": loss, "accuracy": is_right})

        def flops(num_tokens: int, batch_size: int) -> float:
            return 2.0 * model.dim * products * num_tokens * batch_size

        return Objective.of(lambda rngs: WordVectors(model, size, rngs=rngs), score, forward_flops=flops)


def sampled_loss(
    logits: Float[Array, "*places outputs"], is_drawn: Bool[Array, "*#places outputs"]
) -> tuple[Float[Array, "*places"], Bool[Array, "*places"]]:
    """Computes the loss of negative sampling, -log s(l_0) - sum_k log s(-l_k) with the logistic function s.

    Args:
      logits: of the right output, then of the negatives.
      is_drawn: False for logits to ignore.

    Returns:
      The loss in nats, and whether the first logit exceeds the others.
    """
    is_right = jnp.arange(logits.shape[-1]) == 0
    loss = jax.nn.softplus(jnp.where(is_right, -logits, logits))
    others = jnp.where(is_drawn & ~is_right, logits, -jnp.inf)
    return jnp.sum(loss * is_drawn, axis=-1), logits[..., 0] > jnp.max(others, axis=-1)
