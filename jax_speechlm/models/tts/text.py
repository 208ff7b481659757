"""Texts as the input of acoustic models: a boundary at both ends, and packed rows of tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.segments import Segments
from jax_speechlm.nn.functional import parameter

BOUNDARIES = 2
"""Tokens of a text besides its own: the boundaries at its ends."""


def boundary_id(tokenizer: Tokenizer) -> int:
    """Returns the id that begins and ends every text, the first beyond the tokenizer's; it takes the silence there."""
    return tokenizer.vocab_size


def num_ids(tokenizer: Tokenizer) -> int:
    """Returns the token ids of an acoustic model, the boundary included."""
    return tokenizer.vocab_size + 1


def with_boundaries(
    tokens: Int[Array, "*rows tokens"], length: Int[Array, "*rows"], boundary: int
) -> tuple[Int[Array, "*rows more"], Int[Array, "*rows"]]:
    """Returns texts with the id `boundary` at both ends, and their lengths."""
    more = [(0, 0)] * (tokens.ndim - 1) + [(1, 1)]
    position = jnp.arange(tokens.shape[-1] + BOUNDARIES)
    is_boundary = (position == 0) | (position == length[..., None] + 1)
    return jnp.where(is_boundary, boundary, jnp.pad(tokens, more)), length + BOUNDARIES


class TextRows(NamedTuple):
    """The tokens of a row's utterances, one utterance after the other."""

    tokens: Int[Array, "batch tokens"]
    segments: Segments


def pack_text(
    tokens_BxNxU: Int[Array, "batch utterances tokens"], length_BxN: Int[Array, "batch utterances"], limit: int
) -> TextRows:
    """Packs the texts of each row's utterances.

    A model over the packed tokens costs less than over texts that are padded to the longest.

    Args:
      limit: most tokens of a row: of all its utterances together.
    """
    batch, num, longest = tokens_BxNxU.shape
    size = min(num * longest, limit)
    segments = Segments(jnp.cumsum(length_BxN, axis=1) - length_BxN, length_BxN)
    utterance = jnp.maximum(segments.segment(size) - 1, 0)
    index = utterance * longest + jnp.clip(segments.position(size), 0, longest - 1)
    tokens = jnp.take_along_axis(tokens_BxNxU.reshape(batch, -1), index, axis=1)
    return TextRows(jnp.where(segments.mask(size), tokens, 0), segments)


def speaker_table(num_speakers: int, dim: int, rngs: nnx.Rngs) -> nnx.Param | None:
    """Returns the embeddings of speakers, [speakers, dim]; None for a model of one voice."""
    if num_speakers == 1:
        return None
    return parameter(rngs.params(), (num_speakers, dim), (None, "embed"), jax.nn.initializers.normal(0.3))


def spread_speakers(
    table: nnx.Param | None, speaker_BxN: Int[Array, "batch utterances"] | None, segments: Segments, num_tokens: int
) -> Float[Array, "batch tokens dim"] | float:
    """Returns the embedding of each token's speaker; 0 without a table.

    Args:
      speaker_BxN: speaker of each utterance; negative for an unknown one, who gets the mean of all embeddings.
    """
    if table is None:
        return 0.0
    known = jnp.take(table[...], jnp.maximum(speaker_BxN, 0), axis=0)
    speaker_BxNxD = jnp.where(speaker_BxN[..., None] < 0, table[...].mean(0), known)
    return segments.spread(speaker_BxNxD, num_tokens)
