"""Masked language modelling: predicts masked tokens from context on both sides.

Reference: Liu et al. 2019 (RoBERTa), with the 80/10/10 rule of Devlin et al. 2019 (BERT, section 3.1). Masks are
dynamic: a row is masked differently at every step.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray
from pydantic import Field

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import forward_flops, head_flops
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, split_row_keys
from jax_speechlm.objectives.lm.causal_lm import require_transformer, text_objective, token_metrics
from jax_speechlm.objectives.masking import masked_places, take_frames
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import shard_batch_and_time

_SHOWN_AS_MASK, _SHOWN_AS_RANDOM = 0.8, 0.1  # shares of the chosen tokens; the rest are unchanged


class MaskedLM(ObjectiveConfig):
    """Settings of masked language modelling.

    Attributes:
      ratio: share of each row's tokens that are chosen, without boundaries and padding.
      whole_words: whether all tokens of a word are chosen together.
    """

    kind: Literal["masked_lm"] = "masked_lm"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15
    whole_words: bool = False

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over the chosen tokens; the metric `masked_accuracy` is the share of
        them predicted correctly. In evaluation a row's masks are always the same.
        """
        vocabulary = Vocabulary.of(tokenizer)
        require_transformer(model, causal=False, objective=self.kind)
        starts_V = self.starts(tokenizer)

        def score(transformer: Transformer, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            mask_keys, dropout_keys = split_row_keys(key, batch)
            row = batch["tokens"], batch["segment"]
            masked = mask_tokens(*row, mask_keys, vocabulary, starts_V, self.ratio)
            hidden_BxTxD = transformer(masked.tokens, batch["segment"], batch["position"], dropout_keys)
            most = most_masked(batch["tokens"].shape[1], self.ratio)
            targets = take_chosen(masked, hidden_BxTxD, batch["tokens"], batch["weight"][:, None], most)
            metrics, _ = token_metrics(transformer, *targets)
            return {"loss": metrics["loss"], "masked_accuracy": metrics["accuracy"]}

        def flops(num_tokens: int, batch_size: int) -> float:
            unscored = num_tokens - most_masked(num_tokens, self.ratio)
            head = head_flops(model, vocabulary.size)
            return forward_flops(model, vocabulary.size, num_tokens, batch_size) - batch_size * unscored * head

        return text_objective(model, vocabulary, score, forward_flops=flops)

    def starts(self, tokenizer: Tokenizer) -> Bool[np.ndarray, " vocab"]:
        """Returns True for ids that start a unit of masking: word starts with `whole_words`, otherwise all."""
        return word_starts(tokenizer) if self.whole_words else np.ones(tokenizer.vocab_size, bool)


class Masked(NamedTuple):
    """Rows with masked tokens, the model's input, and the positions to predict."""

    tokens: Int[Array, "batch time"]
    chosen: Bool[Array, "batch time"]


def word_starts(tokenizer: Tokenizer) -> Bool[np.ndarray, " vocab"]:
    """Returns True for ids that start a word: their piece starts with white space."""
    return np.array([piece[:1] == "\u2581" or piece[:1].isspace() for piece in tokenizer.pieces])


def most_masked(num_tokens: int, ratio: float, utterances: int = 1) -> int:
    """Returns the maximum number of tokens that `mask_tokens` chooses in a row, of so many texts with own keys."""
    return min(num_tokens, int(ratio * num_tokens) + utterances)


class Targets(NamedTuple):
    """The chosen tokens of every row, in a fixed number of slots: hidden states, original tokens, and weights."""

    hidden: Float[Array, "batch slots dim"]
    token: Int[Array, "batch slots"]
    weight: Float[Array, "batch slots"]  # 0 in unused slots


def take_chosen(
    masked: Masked,
    hidden_BxTxD: Float[Array, "batch time dim"],
    tokens_BxT: Int[Array, "batch time"],
    weight_BxT: Float[Array, "batch time"] | Float[Array, "batch 1"],
    most: int,
) -> Targets:
    """Gathers hidden states and original tokens of the chosen ones, which saves most of the output layer's cost.

    Args:
      most: maximum number of chosen tokens in a row.
    """
    slots_BxN = masked_places(masked.chosen, sequence.padded_time(most))
    weight_BxT = masked.chosen * weight_BxT
    hidden, token, weight = (take_frames(x, slots_BxN) for x in (hidden_BxTxD, tokens_BxT, weight_BxT))
    return Targets(shard_batch_and_time(hidden), token, weight)


def mask_tokens(
    tokens_BxT: Int[Array, "batch time"],
    segment_BxT: Int[Array, "batch time"],
    keys_B: Key[Array, " batch"],
    vocabulary: Vocabulary,
    starts_V: Bool[np.ndarray, " tokenizer"],
    ratio: float,
) -> Masked:
    """Chooses `ratio` of each row's tokens and masks them.

    The number of tokens is rounded up or down at random. Words are added in random order while they fit into it; a word
    is a token of `starts_V` with the following tokens that are not, and does not cross a boundary. Of the words chosen
    80 % are replaced by masks, 10 % by random tokens, and 10 % are kept.

    Args:
      keys_B: one per row; a token's draws depend on its row's key and its position only, not on padding.
      starts_V: tokenizer ids that start a word; if all True, tokens are chosen independently.

    Returns:
      The masked rows and the chosen positions.
    """
    num_tokens = tokens_BxT.shape[1]
    starts_V = jnp.append(starts_V, True)  # for all other ids

    def mask(tokens: Array, segment: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        place = jnp.arange(num_tokens)
        count_key, place_key = jax.random.split(key)
        # One key per position: additional positions due to padding must not change the others.
        draws = jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(place_key, place), (3,)))(place)
        order, shown, other = draws.T

        real = (segment > 0) & (tokens < vocabulary.boundary) & (tokens != vocabulary.begin)
        begins = starts_V[jnp.minimum(tokens, vocabulary.tokenizer_size)] | ~real
        begins |= jnp.pad(~real, (1, 0), constant_values=True)[:-1]
        head = jax.lax.cummax(jnp.where(begins, place, 0))  # start of each token's word
        size = jnp.zeros(num_tokens, jnp.int32).at[head].add(1)

        # All tokens of a word use the draw of its first token, so that sorting keeps words together.
        ranking = jnp.argsort(jnp.where(real, order[head], 2.0))
        rank = jnp.zeros(num_tokens, jnp.int32).at[ranking].set(place)
        count = jnp.floor(ratio * real.sum() + jax.random.uniform(count_key))
        chosen = real & (rank[head] + size[head] <= count)

        random = 1 + jnp.floor(other * (vocabulary.tokenizer_size - 1)).astype(tokens.dtype)
        hidden = jnp.where(shown[head] < _SHOWN_AS_MASK, vocabulary.mask, random)
        hidden = jnp.where(shown[head] < _SHOWN_AS_MASK + _SHOWN_AS_RANDOM, hidden, tokens)
        return jnp.where(chosen, hidden, tokens), chosen

    return Masked(*jax.vmap(mask)(tokens_BxT, segment_BxT, keys_B))
