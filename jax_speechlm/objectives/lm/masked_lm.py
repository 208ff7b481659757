"""Masked language modelling: hidden tokens from what stands on both sides of them.

Reference: Liu et al. 2019 (RoBERTa), with the 80/10/10 rule of Devlin et al. 2019 (BERT, section 3.1). A row's masks
are drawn anew at every step.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray
from pydantic import Field

from data_pipelines.tokenizers.base import Tokenizer
from jax_speechlm.core.batch import Batch, example_keys
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.transformer_config import forward_flops, head_flops
from jax_speechlm.nn import functional
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig
from jax_speechlm.objectives.lm.causal_lm import TextModel, require_transformer, scored
from jax_speechlm.objectives.masking import masked_places, take_frames
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import shard_batch_and_time

_SHOWN_AS_MASK, _SHOWN_AS_RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are


class MaskedLM(ObjectiveConfig):
    """Settings of masked language modelling.

    Attributes:
      ratio: share of each row's tokens that are chosen, boundaries and padding aside.
      whole_words: whether a word is chosen with all of its tokens or not at all.
    """

    kind: Literal["masked_lm"] = "masked_lm"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15
    whole_words: bool = False

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """The objective for one model and tokenizer; it has no use for the front end.

        The loss is a mean over the chosen tokens, of which the metric `masked_accuracy` is the share that is guessed
        right. In evaluation a row's masks are the same every time.

        Raises:
          ValueError: no tokenizer, or a model that does not look ahead.
        """
        del frontend
        vocabulary = Vocabulary.of(tokenizer)
        require_transformer(model, causal=False, objective=self.kind)
        starts_V = self.starts(tokenizer)

        def make(rngs):
            return TextModel(model, vocabulary.size, rngs=rngs)

        graphdef = functional.declare(make).graphdef

        def loss(params: functional.Params, batch: Batch, key: PRNGKeyArray | None) -> tuple[Float[Array, ""], Metrics]:
            transformer = functional.bind(graphdef, params).transformer
            mask_key, dropout_key = (jax.random.key(0), None) if key is None else jax.random.split(key)
            keys = None if key is None else example_keys(dropout_key, batch["example_id"])
            masked = mask_tokens(
                batch["tokens"],
                batch["segment"],
                example_keys(mask_key, batch["example_id"]),
                vocabulary,
                starts_V,
                self.ratio,
            )
            hidden_BxTxD = transformer(masked.tokens, batch["segment"], batch["position"], keys)
            targets = take_chosen(masked, hidden_BxTxD, batch["tokens"], batch["weight"], self.ratio)
            loss, metrics = scored(transformer, *targets)
            return loss, {"loss": metrics["loss"], "masked_accuracy": metrics["accuracy"]}

        def flops(num_tokens: int, batch_size: int) -> float:
            unscored = num_tokens - most_masked(num_tokens, self.ratio)
            head = head_flops(model, vocabulary.size)
            return forward_flops(model, vocabulary.size, num_tokens, batch_size) - batch_size * unscored * head

        return Objective(make, loss, forward_flops=flops)

    def starts(self, tokenizer: Tokenizer) -> Bool[np.ndarray, " vocab"]:
        """True for the ids that begin what is chosen together: those that begin a word, or all."""
        return word_starts(tokenizer) if self.whole_words else np.ones(tokenizer.vocab_size, bool)


class Masked(NamedTuple):
    """Rows with some tokens hidden: what the model sees, and where it has to say what stood there."""

    tokens: Int[Array, "batch time"]
    chosen: Bool[Array, "batch time"]


def word_starts(tokenizer: Tokenizer) -> Bool[np.ndarray, " vocab"]:
    """True for the ids that begin a word: those that begin with white space."""
    return np.array([piece[:1] == "\u2581" or piece[:1].isspace() for piece in tokenizer.pieces])


def most_masked(num_tokens: int, ratio: float) -> int:
    """The most tokens that `mask_tokens` chooses in a row."""
    return min(num_tokens, int(ratio * num_tokens) + 1)


class Targets(NamedTuple):
    """The chosen tokens of each row, in as many slots as can be chosen.

    Attributes:
      hidden: what the model made of each.
      token: what has to be said of it.
      weight: 0 in the slots that no chosen token fills.
    """

    hidden: Float[Array, "batch slots dim"]
    token: Int[Array, "batch slots"]
    weight: Float[Array, "batch slots"]


def take_chosen(
    masked: Masked,
    hidden_BxTxD: Float[Array, "batch time dim"],
    tokens_BxT: Int[Array, "batch time"],
    weight_B: Float[Array, " batch"],
    ratio: float,
) -> Targets:
    """Hidden states and targets of the chosen tokens alone: the vocabulary map costs as much as several layers.

    Args:
      tokens_BxT: what stood there.
      ratio: as `mask_tokens` was given it.
    """
    slots_BxN = masked_places(masked.chosen, sequence.padded_time(most_masked(tokens_BxT.shape[1], ratio)))
    hidden, token, chosen = (take_frames(x, slots_BxN) for x in (hidden_BxTxD, tokens_BxT, masked.chosen))
    return Targets(shard_batch_and_time(hidden), token, chosen * weight_B[:, None])


def mask_tokens(
    tokens_BxT: Int[Array, "batch time"],
    segment_BxT: Int[Array, "batch time"],
    keys_B: Key[Array, " batch"],
    vocabulary: Vocabulary,
    starts_V: Bool[np.ndarray, " tokenizer"],
    ratio: float,
) -> Masked:
    """Chooses `ratio` of each row's tokens and hides them.

    The number of tokens is rounded up or down at random. Words are taken in random order while they fit into it; a word
    is a token of `starts_V` with those behind it that are not, and does not reach over a boundary. Of the words chosen
    80 % are shown as masks, 10 % as random tokens, 10 % as they are.

    Args:
      keys_B: one a row; what a token draws depends on its row's key and its place alone.
      starts_V: which of the tokenizer's ids begin a word; all of them: every token for itself.
    """
    num_tokens = tokens_BxT.shape[1]
    starts_V = jnp.append(starts_V, True)  # and of all others

    def mask(tokens: Array, segment: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        place = jnp.arange(num_tokens)
        count_key, place_key = jax.random.split(key)
        # One key a place, not one draw for all: the places that padding adds must not change the others.
        draws = jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(place_key, place), (3,)))(place)
        order, shown, other = draws.T

        real = (segment > 0) & (tokens < vocabulary.boundary) & (tokens != vocabulary.begin)
        begins = starts_V[jnp.minimum(tokens, vocabulary.tokenizer_size)] | ~real
        begins |= jnp.pad(~real, (1, 0), constant_values=True)[:-1]
        head = jax.lax.cummax(jnp.where(begins, place, 0))  # where each token's word begins
        size = jnp.zeros(num_tokens, jnp.int32).at[head].add(1)

        # All of a word draw what its first token draws, so that sorting leaves words whole.
        ranking = jnp.argsort(jnp.where(real, order[head], 2.0))
        rank = jnp.zeros(num_tokens, jnp.int32).at[ranking].set(place)
        count = jnp.floor(ratio * real.sum() + jax.random.uniform(count_key))
        chosen = real & (rank[head] + size[head] <= count)

        random = 1 + jnp.floor(other * (vocabulary.tokenizer_size - 1)).astype(tokens.dtype)
        hidden = jnp.where(shown[head] < _SHOWN_AS_MASK, vocabulary.mask, random)
        hidden = jnp.where(shown[head] < _SHOWN_AS_MASK + _SHOWN_AS_RANDOM, hidden, tokens)
        return jnp.where(chosen, hidden, tokens), chosen

    return Masked(*jax.vmap(mask)(tokens_BxT, segment_BxT, keys_B))
