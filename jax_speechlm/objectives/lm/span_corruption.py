"""Span corruption: predicts the missing spans of a text with gaps.

Reference: Raffel et al. 2020 (T5, sections 3.1.4 and 3.3.4) for gaps and sentinels:

    A1 A2 B1 B2 B3 C1 C2 D1  ->  A1 A2 <0> C1 C2 <1> | <0> B1 B2 B3 <1> D1 <boundary>

As in T5 an encoder with a decoder encodes the first part and decodes the second. For a decoder-only model both parts
are a causal sequence, as in Aghajanyan et al. 2022 (CM3), with the loss on the second part.

As in T5's data a row is a single text, even if packed from several documents: attention crosses their boundaries, which
are ordinary tokens.
"""

import math
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray
from pydantic import Field, PositiveInt

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import PADDING, Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models import text_encoder_decoder
from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoder, TextEncoderDecoderConfig
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import forward_flops
from jax_speechlm.nn.layers import Keys
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, split_row_keys
from jax_speechlm.objectives.lm import text_to_text
from jax_speechlm.objectives.lm.causal_lm import require_transformer, text_objective, token_metrics
from jax_speechlm.parallel import sequence


class SpanCorruption(ObjectiveConfig):
    """Settings of span corruption; the defaults are T5's.

    Attributes:
      ratio: share of each row's tokens in gaps.
      mean_span: mean length of a gap in tokens.
      sentinels: sentinels in the vocabulary, which limits the gaps per row.
    """

    kind: Literal["span_corruption"] = "span_corruption"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mean_span: Annotated[float, Field(ge=1)] = 3.0
    sentinels: PositiveInt = 100

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over the second part without its first sentinel, which marks its
        start. Metrics: `loss`, `accuracy`. In evaluation a row's gaps are always the same.
        """
        vocabulary = Vocabulary.of(tokenizer, self.sentinels)
        if isinstance(model, TextEncoderDecoderConfig):
            return self._build_encoder_decoder(model, vocabulary)
        require_transformer(model, causal=True, objective=self.kind)

        def score(transformer: Transformer, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            row, dropout_keys = self._corrupted(batch, key, vocabulary)
            tokens_BxT = sequence.pad_time(row.tokens)
            place = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1]), tokens_BxT.shape)
            inside = place < row.length[:, None]
            hidden_BxTxD = transformer(tokens_BxT, inside.astype(jnp.int32), place, dropout_keys)
            target_BxT = jnp.pad(tokens_BxT[:, 1:], ((0, 0), (0, 1)))
            asked = (place >= row.answer[:, None]) & (place < row.length[:, None] - 1)
            return token_metrics(transformer, hidden_BxTxD, target_BxT, asked * batch["weight"][:, None])[0]

        def flops(num_tokens: int, batch_size: int) -> float:
            length = corrupted_length(num_tokens, self._most_spans(num_tokens))
            return forward_flops(model, vocabulary.size, length, batch_size)

        return text_objective(model, vocabulary, score, forward_flops=flops)

    def _build_encoder_decoder(self, model: TextEncoderDecoderConfig, vocabulary: Vocabulary) -> Objective:
        def score(module: TextEncoderDecoder, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            row, dropout_keys = self._corrupted(batch, key, vocabulary)
            num_tokens = batch["tokens"].shape[1]
            num_asked = self._most_asked(num_tokens)
            text_to_text.check_positions(model, num_asked)
            encoder_keys, decoder_keys = text_to_text.two_keys(dropout_keys)
            place = jnp.broadcast_to(jnp.arange(num_tokens), batch["tokens"].shape)
            given = (place < row.answer[:, None]).astype(jnp.int32)
            source = module.encode(row.tokens[:, :num_tokens], given, place, encoder_keys)

            place = jnp.broadcast_to(jnp.arange(num_asked), (len(row.tokens), num_asked))
            answer_BxN = row.answer[:, None] + jnp.arange(num_asked + 1)
            answer_BxN = jnp.take_along_axis(row.tokens, answer_BxN, axis=1, mode="fill", fill_value=PADDING)
            asked = place < (row.length - row.answer)[:, None] - 1
            tokens = answer_BxN[:, :-1], asked.astype(jnp.int32), place
            hidden_BxNxD = module.decoder(*tokens, source, decoder_keys)
            weight_BxN = asked * batch["weight"][:, None]
            return token_metrics(module.decoder, hidden_BxNxD, answer_BxN[:, 1:], weight_BxN)[0]

        def flops(num_tokens: int, batch_size: int) -> float:
            lengths = num_tokens, self._most_asked(num_tokens)
            return text_encoder_decoder.forward_flops(model, vocabulary.size, *lengths, batch_size)

        make = text_to_text.make_model(model, vocabulary, self.kind)
        return Objective.of(make, score, forward_flops=flops)

    def _corrupted(
        self, batch: Batch, key: PRNGKeyArray | None, vocabulary: Vocabulary
    ) -> tuple["Corrupted", Keys | None]:
        """Returns the rows of a batch with gaps, and keys for dropout."""
        gap_keys, dropout_keys = split_row_keys(key, batch)
        length_B = (batch["segment"] > 0).sum(1)
        num_tokens = batch["tokens"].shape[1]
        num_spans = self._most_spans(num_tokens)
        gaps_BxT = draw_gaps(gap_keys, length_B, num_tokens, self.ratio, self.mean_span, num_spans)
        return corrupt(batch["tokens"], length_B, gaps_BxT, vocabulary, num_spans), dropout_keys

    def _most_asked(self, num_tokens: int) -> int:
        """Returns the most tokens that predict another in the second part of a row."""
        return math.ceil(self.ratio * num_tokens) + self._most_spans(num_tokens)

    def _most_spans(self, num_tokens: int) -> int:
        most = most_spans(num_tokens, self.ratio, self.mean_span)
        if most > self.sentinels:
            raise ValueError(
                f"rows of {num_tokens} tokens can have {most} gaps, and the vocabulary has {self.sentinels} markers: "
                f"set --objective.sentinels {most}"
            )
        return most


class Corrupted(NamedTuple):
    """Rows with gaps, followed by the missing spans: tokens of both parts, their number, start of the second part."""

    tokens: Int[Array, "batch corrupted"]
    length: Int[Array, " batch"]
    answer: Int[Array, " batch"]


def most_spans(num_tokens: int, ratio: float, mean_span: float) -> int:
    """Returns the maximum number of gaps that `draw_gaps` makes in a row of `num_tokens`."""
    return max(1, round(max(1, round(ratio * num_tokens)) / mean_span))


def corrupted_length(num_tokens: int, num_spans: int) -> int:
    """Returns the length for `num_tokens` tokens and `num_spans` gaps: two sentinels per gap, and the boundary."""
    return num_tokens + 2 * num_spans + 1


def draw_gaps(
    keys_B: Key[Array, " batch"],
    length_B: Int[Array, " batch"],
    num_tokens: int,
    ratio: float,
    mean_span: float,
    num_spans: int,
) -> Bool[Array, "batch {num_tokens}"]:
    """Draws gaps: round(ratio * length) tokens in round(tokens / mean_span) gaps, at least one of either.

    All partitions of the gap tokens into gaps, and of the other tokens into the texts between, are equally likely. A
    row starts with text and ends with a gap, as in the reference implementation of Raffel et al. 2020. A row of a
    single token has no gap. A row's draws depend on its key and length only.

    Args:
      num_spans: `most_spans` of `num_tokens`, the static number of gaps.

    Returns:
      True in gaps.
    """

    def draw(key: PRNGKeyArray, length: Array) -> Array:
        noise = jnp.clip(jnp.round(ratio * length).astype(jnp.int32), 1, jnp.maximum(length - 1, 1))
        most = jnp.minimum(jnp.minimum(noise, length - noise), num_spans)
        spans = jnp.clip(jnp.round(noise / mean_span).astype(jnp.int32), 1, most)
        gap_key, text_key = jax.random.split(key)
        gaps = _cut_evenly(gap_key, noise, spans, num_tokens, num_spans)
        texts = _cut_evenly(text_key, length - noise, spans, num_tokens, num_spans)
        edges = jnp.cumsum(jnp.stack([texts, gaps], axis=1).reshape(-1))  # text, gap, text, gap, ...
        place = jnp.arange(num_tokens)
        inside = jnp.searchsorted(edges, place, side="right") % 2 == 1
        return inside & (place < length) & (length > 1)

    return jax.vmap(draw)(keys_B, length_B)


def _cut_evenly(key: Array, total: Array, parts: Array, most: int, most_parts: int) -> Int[Array, " parts"]:
    """Returns lengths of `parts` non-empty parts that sum to `total`, padded with 0 to `most_parts`."""
    place = jnp.arange(most)
    chance = jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place)))(place)
    # Of the total - 1 positions between tokens, the parts - 1 with the lowest draws become cuts.
    chance = jnp.where(place < total - 1, chance, 2.0)
    rank = jnp.zeros(most, jnp.int32).at[jnp.argsort(chance)].set(place)
    part = jnp.cumsum(rank < parts - 1) - (rank < parts - 1)
    return jnp.zeros(most_parts, jnp.int32).at[part].add(place < total, mode="drop")


def corrupt(
    tokens_BxT: Int[Array, "batch time"],
    length_B: Int[Array, " batch"],
    gaps_BxT: Bool[Array, "batch time"],
    vocabulary: Vocabulary,
    num_spans: int,
) -> Corrupted:
    """Replaces gaps by sentinels and appends the gaps' tokens, each after its sentinel. Shapes: `corrupted_length`."""
    num_tokens = tokens_BxT.shape[1]

    def rearrange(tokens: Array, length: Array, gaps: Array) -> tuple[Array, Array, Array]:
        place = jnp.arange(num_tokens)
        starts = gaps & ~jnp.pad(gaps, (1, 0))[:-1]
        span = jnp.cumsum(starts)  # gaps started up to here
        hidden = jnp.cumsum(gaps)
        shown = place + 1 - hidden
        answer = length - hidden[-1] + span[-1]
        end = answer + span[-1] + hidden[-1]

        outside = corrupted_length(num_tokens, num_spans)  # such writes are dropped
        marker = vocabulary.sentinel + span - 1
        row = jnp.full(outside, PADDING, tokens.dtype)
        into = jnp.where(gaps, answer + span + hidden - 1, shown + span - 1)
        row = row.at[jnp.where(place < length, into, outside)].set(tokens, mode="drop")
        row = row.at[jnp.where(starts, shown + span - 1, outside)].set(marker, mode="drop")
        row = row.at[jnp.where(starts, answer + span + hidden - 2, outside)].set(marker, mode="drop")
        row = row.at[jnp.where(span[-1] > 0, end, outside)].set(vocabulary.boundary, mode="drop")
        return row, jnp.where(span[-1] > 0, end + 1, 0), answer

    return Corrupted(*jax.vmap(rearrange)(tokens_BxT, length_B, gaps_BxT))
