"""Text to text: predicts the tokens of the text that is asked for, given another text (Raffel et al. 2020, "T5").

A task is told by the words before the given text, such as "translate Czech: ", so that translation, classification and
question answering are one objective. A document with a target is its text, the boundary and its target:

    <begin> A B C <boundary> X Y <boundary>     encoder: <begin> A B C     decoder: <boundary> X Y -> X Y <boundary>

`span_corruption` trains the same model on texts alone.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoder, TextEncoderDecoderConfig, forward_flops
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Keys
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, row_keys
from jax_speechlm.objectives.lm.causal_lm import next_tokens, token_metrics


class TextToText(ObjectiveConfig):
    """Settings of training from text to text: none but the task's."""

    kind: Literal["text_to_text"] = "text_to_text"

    @property
    def reads_targets(self) -> bool:
        return True

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over the tokens of the targets and the boundary after each; other
        documents do not count. Metrics: `loss`, `accuracy` (teacher-forced).
        """
        vocabulary, make = Vocabulary.of(tokenizer), make_model(model, Vocabulary.of(tokenizer), self.kind)

        def score(module: TextEncoderDecoder, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            parts = split_pairs(batch["tokens"], batch["segment"], batch["position"], vocabulary.boundary)
            check_positions(model, batch["tokens"].shape[1])
            segment = batch["segment"]
            encoder_keys, decoder_keys = two_keys(row_keys(key, batch))
            given = jnp.where(parts.is_given, segment, 0)
            source = module.encode(batch["tokens"], given, batch["position"], encoder_keys)
            asked = jnp.where(parts.is_asked, segment, 0)
            hidden_BxTxD = module.decoder(batch["tokens"], asked, parts.position, source, decoder_keys)
            target_BxT, _ = next_tokens(batch["tokens"], segment)
            weight_BxT = parts.is_asked * batch["weight"][:, None]
            return token_metrics(module.decoder, hidden_BxTxD, target_BxT, weight_BxT)[0]

        def flops(num_tokens: int, batch_size: int) -> float:
            return forward_flops(model, vocabulary.size, num_tokens, num_tokens, batch_size)

        return Objective.of(make, score, forward_flops=flops)


def make_model(model: Config, vocabulary: Vocabulary, objective: str) -> functional.MakeModule:
    """Returns the constructor of the model. Raises ValueError if it is no text encoder with a decoder."""
    if not isinstance(model, TextEncoderDecoderConfig):
        raise ValueError(f"{objective} trains a text encoder with a decoder, not a {model.kind}")
    return lambda rngs: TextEncoderDecoder(model, vocabulary.size, rngs=rngs)


def check_positions(model: TextEncoderDecoderConfig, num_tokens: int) -> None:
    """Raises ValueError if the decoder has fewer positions than tokens may be asked for."""
    if num_tokens > model.decoder.max_tokens:
        raise ValueError(
            f"a row may ask for {num_tokens} tokens, and the decoder has {model.decoder.max_tokens} positions: lower "
            "data.context, or raise model.decoder.max_tokens"
        )


def two_keys(keys_B: Keys | None) -> tuple[Keys | None, Keys | None]:
    """Returns keys for dropout in the encoder and in the decoder."""
    if keys_B is None:
        return None, None
    encoder, decoder = jnp.moveaxis(jax.vmap(jax.random.split)(keys_B), 1, 0)
    return encoder, decoder


class Pairs(NamedTuple):
    """The two parts of the documents of packed rows.

    Attributes:
      is_given: True at the tokens before the boundary between text and target; everywhere in a document without.
      is_asked: True at that boundary and at the tokens of the target, each of which predicts the next.
      position: places after that boundary; arbitrary elsewhere.
    """

    is_given: Bool[Array, "batch time"]
    is_asked: Bool[Array, "batch time"]
    position: Int[Array, "batch time"]


def split_pairs(
    tokens_BxT: Int[Array, "batch time"],
    segment_BxT: Int[Array, "batch time"],
    position_BxT: Int[Array, "batch time"],
    boundary: int,
) -> Pairs:
    """Splits documents at the boundary between a text and its target."""
    place = jnp.arange(tokens_BxT.shape[1])
    _, goes_on = next_tokens(tokens_BxT, segment_BxT)  # 0 at the last token of a segment
    is_inside = (position_BxT > 0) & (goes_on > 0)
    between = jax.lax.cummax(jnp.where(is_inside & (tokens_BxT == boundary), place, -1), axis=1)
    is_after = (between >= place - position_BxT) & (segment_BxT > 0)  # the last such place is in this document
    return Pairs(~is_after & (segment_BxT > 0), is_after & (goes_on > 0), jnp.maximum(place - between, 0))
