"""Self-attention with relative positions.

`RelativeAttention` has a learnt vector for each clipped distance (Shaw et al. 2018), `PositionalAttention` sinusoids of
the distance (Dai et al. 2019).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from jax_speechlm.core.segments import Segments
from jax_speechlm.nn.attention.masks import masked_softmax
from jax_speechlm.nn.functional import SAVED_ACTIVATION, parameter
from jax_speechlm.nn.layers import FrameKeys, Linear, drop
from jax_speechlm.parallel import sequence

Chunk = tuple[int | Int[Array, ""], int | Int[Array, ""]]
"""(frames in a chunk, chunks of left context; negative for all). Values may be traced."""

MAX_FULL_SCORES = 2048
"""Longest row in frames whose scores exist all at once by default."""


@dataclasses.dataclass(frozen=True)
class QueryBlocks:
    """Bound on the memory of attention over long rows.

    Attributes:
      max_full: longest row in frames whose scores exist all at once.
      size: queries of a block, in longer rows; the scores of one block exist at a time.
    """

    max_full: int = MAX_FULL_SCORES
    size: int = 512

    def padded_time(self, time: int) -> int:
        """Returns the frames that a row is padded to: whole blocks where it is long."""
        return time if time <= self.max_full else math.ceil(time / self.size) * self.size


BLOCKS = QueryBlocks()

_INTO = ("embed", "heads", "head_dim")


def chunk_mask(
    query: Int[Array, "*batch query"], key: Int[Array, "*batch key"], chunk: Chunk | None
) -> Bool[Array, "*batch query key"] | bool:
    """Returns the mask of chunked attention: True for keys of the query's chunk and of its left context.

    Args:
      query, key: positions in the utterance.
      chunk: chunk length and left context; None for no limit.
    """
    if chunk is None:
        return True
    length, left = chunk
    chunks_back = (query // length)[..., :, None] - (key // length)[..., None, :]
    return (chunks_back >= 0) & ((chunks_back <= left) | (jnp.asarray(left) < 0))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def relative_shift(
    scores: Float[Array, "*batch query distance"],
    first: int | Int[Array, ""],
    num_keys: int,
    left_max: int,
    right_max: int,
) -> Float[Array, "*batch query {num_keys}"]:
    """Expands scores by clipped distance to scores by key.

        out[i, j] = scores[i, clip(j - first - i, -left_max, right_max) + left_max]

    Neither direction scatters, which is slow in XLA on CPU. Forward, padding the rows with zeros and reshaping them to
    one element less shifts each row by one, which aligns the band of distances with the diagonal; keys beyond it get
    the first or last distance. Backward, the band is gathered around the diagonal, and the gradients beyond it are
    summed into the first and last distance.

    Args:
      scores: `left_max + 1 + right_max` distances for each query.
      first: frame number of the first query.
    """
    *batch, queries, distance = scores.shape
    rows = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(0, queries)]).reshape(*batch, -1)
    width = queries + distance - 1
    band = rows[..., : queries * width].reshape(*batch, queries, width)
    if queries < num_keys:
        room = jnp.zeros((*batch, queries, num_keys + distance - 1), scores.dtype)
        band = jax.lax.dynamic_update_slice_in_dim(room, band, first, axis=-1)
    band = band[..., left_max : left_max + num_keys]
    offset = _offset(queries, first, num_keys)
    ends = jnp.where(offset < 0, scores[..., :1], scores[..., -1:])
    return jnp.where((offset < -left_max) | (offset > right_max), ends, band)


def _offset(queries, first, num_keys):
    return jnp.arange(num_keys) - (first + jnp.arange(queries))[:, None]


def _shift_forward(scores, first, num_keys, left_max, right_max):
    return relative_shift(scores, first, num_keys, left_max, right_max), first


def _shift_backward(num_keys, left_max, right_max, first, gradient):
    *batch, queries, _ = gradient.shape
    key = (first + jnp.arange(queries))[:, None] + jnp.arange(-left_max, right_max + 1)
    index = jnp.broadcast_to(jnp.clip(key, 0, num_keys - 1), (*batch, *key.shape))
    band = jnp.where((key >= 0) & (key < num_keys), jnp.take_along_axis(gradient, index, axis=-1), 0)
    offset = _offset(queries, first, num_keys)
    left = jnp.where(offset < -left_max, gradient, 0).sum(-1)
    right = jnp.where(offset > right_max, gradient, 0).sum(-1)
    distance = jnp.arange(left_max + 1 + right_max)
    left, right = (distance == 0) * left[..., None], (distance == left_max + right_max) * right[..., None]
    return band + left + right, None


relative_shift.defvjp(_shift_forward, _shift_backward)


Scores = Callable[[Array, int | Int[Array, ""], Array], Array]
"""(queries [B, Q, H, K], frame number of the first, keys [B, T, H, K]) -> unmasked scores [B, H, Q, T]."""


class FrameRows(NamedTuple):
    """Segment and position of each frame of a batch, for masks and distances."""

    segment_BxT: Int[Array, "batch time"]  # utterance of the row; 0 is padding
    position_BxT: Int[Array, "batch time"]  # index in the utterance
    seed_BxT: UInt32[Array, "batch time"]  # of the dropout of its weights


def attend(
    scores: Scores,
    q_BxTxHxK: Float[Array, "batch time heads query_dim"],
    k_BxTxHxK: Float[Array, "batch time heads head_dim"],
    v_BxTxHxK: Float[Array, "batch time heads head_dim"],
    *rows: Shaped[Array, "batch time"],
    chunk: Chunk | None = None,
    rate: float = 0.0,
    blocks: QueryBlocks = BLOCKS,
) -> Float[Array, "batch time heads head_dim"]:
    """Computes attention whose scores depend on the distance of query and key, within each utterance of a row.

    Args:
      scores: computes the scores of some of the queries; rows have `blocks.padded_time` frames then.
      q_BxTxHxK: queries, and what else `scores` reads of a query.
      rows: the arrays of `FrameRows`.
      chunk: limits the visible keys (see `chunk_mask`).
      rate: dropout of the weights.
      blocks: when and how queries are split to save memory; results agree up to rounding.

    Returns:
      The mean of the values with the softmax of the scores as weights, in the type of the queries. Softmax is float32.
    """
    time = q_BxTxHxK.shape[1]
    block = partial(_attend_block, scores, chunk=chunk, rate=rate)
    if time <= blocks.max_full:
        return block(q_BxTxHxK, 0, k_BxTxHxK, v_BxTxHxK, FrameRows(*rows), FrameRows(*rows))
    extra = blocks.padded_time(time) - time
    q, k, v, *rows = (
        jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, *rows)
    )

    # The backward pass recomputes each block's scores, so the scores of all blocks never exist together.
    @jax.checkpoint
    def run(q: Array, first: Array) -> Array:
        queries = FrameRows(*(jax.lax.dynamic_slice_in_dim(x, first, blocks.size, axis=1) for x in rows))
        return block(q, first, k, v, queries, FrameRows(*rows))

    num_blocks = q.shape[1] // blocks.size
    q_NxBxQxHxK = jnp.moveaxis(q.reshape(len(q), num_blocks, blocks.size, *q.shape[2:]), 1, 0)
    mixed = jax.lax.map(lambda args: run(*args), (q_NxBxQxHxK, blocks.size * jnp.arange(num_blocks)))
    mixed = jnp.moveaxis(mixed, 0, 1).reshape(*q.shape[:3], v.shape[-1])[:, :time]
    return checkpoint_name(mixed, SAVED_ACTIVATION)


def _attend_block(scores, q_BxQxHxK, first, k_BxTxHxK, v_BxTxHxK, queries, rows, *, chunk, rate):
    """Computes `attend` for the stretch `queries` of the rows that starts at frame `first`."""
    mask = queries.segment_BxT[:, :, None] == rows.segment_BxT[:, None, :]
    mask &= chunk_mask(queries.position_BxT, rows.position_BxT, chunk)
    weights = masked_softmax(scores(q_BxQxHxK, first, k_BxTxHxK), mask[:, None], q_BxQxHxK.dtype)
    if rate:
        head = jax.lax.broadcasted_iota(jnp.uint32, weights.shape, 1)
        indices = head, queries.position_BxT[:, None, :, None], rows.position_BxT[:, None, None, :]
        weights = drop(weights, rate, queries.seed_BxT[:, None, :, None], indices)
    return jnp.einsum("bhts,bshk->bthk", weights, v_BxTxHxK)


class KeysAndValues(NamedTuple):
    """State of attention over a stream: keys and values of the newest frames, a ring of fixed length."""

    key_BxSxHxK: Float[Array, "batch left heads head_dim"]
    value_BxSxHxK: Float[Array, "batch left heads head_dim"]


class DistanceAttention(nnx.Module):
    """Base of multi-head self-attention whose scores depend on distance: linear maps and the mixing of values."""

    def __init__(
        self, dim: int, num_heads: int, dropout_rate: float, *, bias: bool, blocks: QueryBlocks, rngs: nnx.Rngs
    ):
        """`dropout_rate` is of the attention weights; `blocks` as of `attend`."""
        heads = num_heads, dim // num_heads
        self.scale, self.dropout_rate, self.blocks = heads[1] ** -0.5, dropout_rate, blocks
        self.query, self.key, self.value = (Linear((dim,), heads, _INTO, bias=bias, rngs=rngs) for _ in range(3))
        self.out = Linear(heads, (dim,), ("heads", "head_dim", "embed"), bias=bias, rngs=rngs)

    def _mix(
        self,
        scores: Scores,
        x_BxTxD: Array,
        q_BxTxHxK: Array,
        segments: Segments,
        chunk: Chunk | None,
        keys: FrameKeys | None,
    ) -> Float[Array, "batch time dim"]:
        num_frames = x_BxTxD.shape[1]
        segment, position = segments.segment(num_frames), segments.position(num_frames)
        rate = 0.0 if keys is None else self.dropout_rate
        rows = FrameRows(segment, position, keys.seed(num_frames) if rate else jnp.zeros_like(segment, jnp.uint32))
        mix = partial(attend, scores, chunk=chunk, rate=rate, blocks=self.blocks)
        return self.out(sequence.by_heads(mix, q_BxTxHxK, self.key(x_BxTxD), self.value(x_BxTxD), *rows))

    def init_state(self, batch: int, left: int, dtype: jnp.dtype) -> KeysAndValues:
        """Returns the state before the first frame, for `left` frames of context."""
        zeros = jnp.zeros((batch, left, *self.key.kernel.shape[1:]), dtype)
        return KeysAndValues(zeros, zeros)

    def _mix_step(
        self,
        scores: Scores,
        state: KeysAndValues,
        x_BxCxD: Float[Array, "batch chunk dim"],
        q_BxCxHxK: Float[Array, "batch chunk heads head_dim"],
        visible_BxS: Bool[Array, "batch left_and_chunk"],
    ) -> tuple[KeysAndValues, Float[Array, "batch chunk dim"]]:
        """Computes attention of a chunk to the visible ones of the state's frames and its own."""
        left, chunk = state.key_BxSxHxK.shape[1], x_BxCxD.shape[1]
        k_BxSxHxK = jnp.concatenate([state.key_BxSxHxK, self.key(x_BxCxD)], axis=1)
        v_BxSxHxK = jnp.concatenate([state.value_BxSxHxK, self.value(x_BxCxD)], axis=1)
        scores_BxHxCxS = scores(q_BxCxHxK, left, k_BxSxHxK)
        weights = masked_softmax(scores_BxHxCxS, visible_BxS[:, None, None], x_BxCxD.dtype)
        mixed = self.out(jnp.einsum("bhts,bshk->bthk", weights, v_BxSxHxK))
        return KeysAndValues(k_BxSxHxK[:, chunk:], v_BxSxHxK[:, chunk:]), mixed


class RelativeAttention(DistanceAttention):
    """Multi-head self-attention with scores (q·k + q·distance[clip(key - query)]) / sqrt(head_dim).

    This is `position_embeddings_type="relative_key"` of Hugging Face's Wav2Vec2-BERT: one table of distances a layer,
    shared by its heads.

    Args:
      left_max, right_max: distance in frames before and after the query beyond which distances are clipped.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        left_max: int,
        right_max: int,
        dropout_rate: float,
        *,
        blocks: QueryBlocks = BLOCKS,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, num_heads, dropout_rate, bias=True, blocks=blocks, rngs=rngs)
        self.left_max, self.right_max = left_max, right_max
        shape = left_max + 1 + right_max, dim // num_heads
        self.distance = parameter(rngs.params(), shape, (None, "head_dim"), jax.nn.initializers.normal(0.02))

    def __call__(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        segments: Segments,
        chunk: Chunk | None,
        keys: FrameKeys | None,
    ) -> Float[Array, "batch time dim"]:
        """Computes attention to the frames of the same utterance that `chunk_mask` allows."""
        return self._mix(self._scores, x_BxTxD, self.query(x_BxTxD) * self.scale, segments, chunk, keys)

    def step(
        self,
        state: KeysAndValues,
        x_BxCxD: Float[Array, "batch chunk dim"],
        visible_BxS: Bool[Array, "batch left_and_chunk"],
        context: None,
    ) -> tuple[KeysAndValues, Float[Array, "batch chunk dim"]]:
        """Computes attention of the next chunk to the visible frames of the state and of itself."""
        del context
        return self._mix_step(self._scores, state, x_BxCxD, self.query(x_BxCxD) * self.scale, visible_BxS)

    def _scores(self, q_BxQxHxK, first, k_BxTxHxK):
        scores = jnp.einsum("bthk,bshk->bhts", q_BxQxHxK, k_BxTxHxK)
        by_distance = jnp.einsum("bthk,rk->bhtr", q_BxQxHxK, self.distance[...].astype(q_BxQxHxK.dtype))
        return scores + relative_shift(by_distance, first, k_BxTxHxK.shape[1], self.left_max, self.right_max)


class PositionalContext(NamedTuple):
    """What `PositionalAttention` shares between the layers of a model.

    Attributes:
      sinusoids_RxD: `distance_sinusoids` of the frames of a row.
      chunk: limits the visible keys (see `chunk_mask`); None for no limit.
    """

    sinusoids_RxD: Float[Array, "distances dim"]
    chunk: Chunk | None = None


class PositionalAttention(DistanceAttention):
    """Multi-head self-attention with scores ((q + u)·k + (q + v)·W r) / sqrt(head_dim), r the sinusoids of a distance.

    This is the form of Transformer-XL (Dai et al. 2019, section 3.3), of the conformer's paper and of Hugging Face's
    Parakeet. Distances are not clipped.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout_rate: float,
        *,
        bias: bool,
        blocks: QueryBlocks = BLOCKS,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, num_heads, dropout_rate, bias=bias, blocks=blocks, rngs=rngs)
        heads, zeros = (num_heads, dim // num_heads), jax.nn.initializers.zeros
        self.position = Linear((dim,), heads, _INTO, bias=False, rngs=rngs)
        self.content_bias = parameter(rngs.params(), heads, _INTO[1:], zeros, decays=False)  # u
        self.position_bias = parameter(rngs.params(), heads, _INTO[1:], zeros, decays=False)  # v

    def __call__(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        segments: Segments,
        context: PositionalContext,
        keys: FrameKeys | None,
    ) -> Float[Array, "batch time dim"]:
        """Computes attention to the frames of the same utterance that `chunk_mask` allows."""
        scores = partial(self._scores, self.position(context.sinusoids_RxD))
        return self._mix(scores, x_BxTxD, self.query(x_BxTxD), segments, context.chunk, keys)

    def step(
        self,
        state: KeysAndValues,
        x_BxCxD: Float[Array, "batch chunk dim"],
        visible_BxS: Bool[Array, "batch left_and_chunk"],
        context: PositionalContext,
    ) -> tuple[KeysAndValues, Float[Array, "batch chunk dim"]]:
        """Computes attention of the next chunk to the visible frames of the state and of itself."""
        scores = partial(self._scores, self.position(context.sinusoids_RxD))
        return self._mix_step(scores, state, x_BxCxD, self.query(x_BxCxD), visible_BxS)

    def _scores(self, r_RxHxK, q_BxQxHxK, first, k_BxTxHxK):
        dtype, (queries, time) = q_BxQxHxK.dtype, (q_BxQxHxK.shape[1], k_BxTxHxK.shape[1])
        content, position = (bias[...].astype(dtype) for bias in (self.content_bias, self.position_bias))
        scores = jnp.einsum("bthk,bshk->bhts", (q_BxQxHxK + content) * self.scale, k_BxTxHxK)
        # Distances from (last query - first key) down to (first query - last key).
        start, size = time - queries - first, queries + time - 1
        r_RxHxK = jax.lax.dynamic_slice_in_dim(r_RxHxK, start, size)
        by_distance = jnp.einsum("bthk,rhk->bhtr", (q_BxQxHxK + position) * self.scale, r_RxHxK)
        return scores + skew(by_distance)


def distance_sinusoids(num_frames: int, dim: int, blocks: QueryBlocks = BLOCKS) -> Float[Array, "distances {dim}"]:
    """Returns interleaved sines and cosines of every distance query - key, from the largest to its negative.

    The frequencies follow Vaswani et al. 2017.

    Args:
      num_frames: frames of a row, before `attend` pads it to `blocks.padded_time`.
      dim: values of a distance; even.
    """
    reach = blocks.padded_time(num_frames) - 1
    frequency = np.float32(1) / np.float32(10_000) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    angle = jnp.arange(reach, -reach - 1, -1, dtype=jnp.float32)[:, None] * frequency
    # Not stacked: converters to other formats do not know that operation.
    return jnp.concatenate([jnp.sin(angle)[..., None], jnp.cos(angle)[..., None]], axis=-1).reshape(len(angle), dim)


def skew(scores: Float[Array, "*batch query distance"]) -> Float[Array, "*batch query key"]:
    """Shifts scores by distance to scores by key: out[i, j] = scores[i, queries - 1 - i + j].

    Padding each row with one zero and reshaping to rows of one element less shifts them, so neither direction gathers
    or scatters. There are queries - 1 more distances than keys.
    """
    *batch, queries, distance = scores.shape
    rows = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(1, 0)]).reshape(*batch, -1)
    return rows[..., queries:].reshape(*batch, queries, distance)[..., : distance - queries + 1]
