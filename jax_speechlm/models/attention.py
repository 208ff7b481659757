"""Self-attention with a learnt vector for each clipped distance between query and key (Shaw et al. 2018)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.models.functional import KEPT_NAME, parameter
from jax_speechlm.models.layers import Keys, Linear, dropout
from jax_speechlm.parallel import sequence

Chunk = tuple[int | Int[Array, ""], int | Int[Array, ""]]
"""(frames in a chunk, chunks of left context; negative means all). Values may be traced."""


WHOLE, _BLOCK = 2048, 512
"""Scores of rows of up to `WHOLE` frames exist all at once; of longer ones, those of `_BLOCK` queries."""


def chunk_mask(
    query: Int[Array, " query"], key: Int[Array, " key"], chunk: Chunk | None
) -> Bool[Array, "query key"] | bool:
    """True where a query may see a key: the whole of its own chunk and the given number of chunks before it.

    Args:
      query, key: frame numbers.
      chunk: None for everything.
    """
    if chunk is None:
        return True
    length, left = chunk
    behind = (query // length)[:, None] - (key // length)[None, :]
    return (behind >= 0) & ((behind <= left) | (jnp.asarray(left) < 0))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def spread_by_distance(
    scores: Float[Array, "*batch query distance"],
    first: int | Int[Array, ""],
    num_keys: int,
    left_max: int,
    right_max: int,
) -> Float[Array, "*batch query {num_keys}"]:
    """out[i, j] = scores[i, clip(j - first - i, -left_max, right_max) + left_max]; distance = left_max + 1 + right_max.

    Neither direction scatters, which XLA does slowly on CPU. Forward, the band of distances is laid along the diagonal
    by reading zero-padded rows back one element shorter, and the two ends are filled in. Backward, the band is gathered
    from around the diagonal, and what lies beyond it goes to the two ends.

    Args:
      first: the number of the first query, of `num_keys` frames that the queries are some of.
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


def _spread(scores, first, num_keys, left_max, right_max):
    return spread_by_distance(scores, first, num_keys, left_max, right_max), first


def _collect(num_keys, left_max, right_max, first, gradient):
    *batch, queries, _ = gradient.shape
    key = (first + jnp.arange(queries))[:, None] + jnp.arange(-left_max, right_max + 1)
    index = jnp.broadcast_to(jnp.clip(key, 0, num_keys - 1), (*batch, *key.shape))
    band = jnp.where((key >= 0) & (key < num_keys), jnp.take_along_axis(gradient, index, axis=-1), 0)
    offset = _offset(queries, first, num_keys)
    left = jnp.where(offset < -left_max, gradient, 0).sum(-1)
    right = jnp.where(offset > right_max, gradient, 0).sum(-1)
    place = jnp.arange(left_max + 1 + right_max)
    left, right = (place == 0) * left[..., None], (place == left_max + right_max) * right[..., None]
    return band + left + right, None


spread_by_distance.defvjp(_spread, _collect)


class RelativeAttention(nnx.Module):
    """Multi-head self-attention; a score is q·k + q·distance[clip(key - query)], over sqrt(head_dim).

    The form of Hugging Face's Wav2Vec2-BERT (`position_embeddings_type="relative_key"`): one distance table a layer,
    shared by its heads. Softmax is float32 whatever the compute type.
    """

    def __init__(self, dim: int, num_heads: int, left_max: int, right_max: int, dropout_rate: float, *, rngs: nnx.Rngs):
        head_dim = dim // num_heads
        into, out_of = ("embed", "heads", "head_dim"), ("heads", "head_dim", "embed")
        self.left_max, self.right_max = left_max, right_max
        self.scale, self.dropout_rate = head_dim**-0.5, dropout_rate
        self.query = Linear((dim,), (num_heads, head_dim), into, rngs=rngs)
        self.key = Linear((dim,), (num_heads, head_dim), into, rngs=rngs)
        self.value = Linear((dim,), (num_heads, head_dim), into, rngs=rngs)
        self.out = Linear((num_heads, head_dim), (dim,), out_of, rngs=rngs)
        self.distance = parameter(
            rngs.params(), (left_max + 1 + right_max, head_dim), (None, "head_dim"), jax.nn.initializers.normal(0.02)
        )

    def __call__(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        mask_BxT: Bool[Array, "batch time"],
        chunk: Chunk | None,
        keys: Keys | None,
    ) -> Float[Array, "batch time dim"]:
        """Attention to the frames that are no padding (`mask_BxT`) and within reach (`chunk_mask`)."""
        q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = self.query(x_BxTxD) * self.scale, self.key(x_BxTxD), self.value(x_BxTxD)
        mix = partial(self._mix, chunk=chunk, keys=keys)
        return self.out(sequence.by_heads(mix, q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, mask_BxT))

    def _mix(self, q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, mask_BxT, chunk, keys):
        """The mean of the values that each query sees, weighted by softmax."""
        time = q_BxTxHxK.shape[1]
        if time <= WHOLE:
            return self._mix_block(q_BxTxHxK, 0, k_BxTxHxK, v_BxTxHxK, mask_BxT, chunk, keys)
        num_blocks = math.ceil(time / _BLOCK)
        fill = lambda x: jnp.pad(x, [(0, 0), (0, num_blocks * _BLOCK - time)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
        q, k, v, mask = map(fill, (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, mask_BxT))

        # Backward, a block's scores are computed again, so that in neither direction those of all blocks are kept.
        @jax.checkpoint
        def block(q: Array, first: Array) -> Array:
            return self._mix_block(q, first, k, v, mask, chunk, keys)

        q_NxBxQxHxK = jnp.moveaxis(q.reshape(len(q), num_blocks, _BLOCK, *q.shape[2:]), 1, 0)
        firsts = _BLOCK * jnp.arange(num_blocks)
        mixed = jax.lax.map(lambda each: block(*each), (q_NxBxQxHxK, firsts))
        mixed = jnp.moveaxis(mixed, 0, 1).reshape(q.shape)[:, :time]
        return checkpoint_name(mixed, KEPT_NAME)

    def _mix_block(self, q_BxQxHxK, first, k_BxTxHxK, v_BxTxHxK, mask_BxT, chunk, keys):
        """The same for some of the queries, of which `first` is the first one's number."""
        dtype, (queries, time) = q_BxQxHxK.dtype, (q_BxQxHxK.shape[1], k_BxTxHxK.shape[1])
        scores = jnp.einsum("bthk,bshk->bhts", q_BxQxHxK, k_BxTxHxK)
        by_distance = jnp.einsum("bthk,rk->bhtr", q_BxQxHxK, self.distance[...].astype(dtype))
        scores = scores + spread_by_distance(by_distance, first, time, self.left_max, self.right_max)
        mask = mask_BxT[:, None, :] & chunk_mask(first + jnp.arange(queries), jnp.arange(time), chunk)
        # Added, not selected, because a sum costs nothing backward.
        scores = scores.astype(jnp.float32) + jnp.where(mask, 0, jnp.finfo(jnp.float32).min)[:, None]
        # The barrier keeps XLA on CPU from computing the softmax inside the product below, several times over.
        weights = jax.lax.optimization_barrier(jax.nn.softmax(scores, axis=-1).astype(dtype))
        weights = dropout(weights, self.dropout_rate, keys, first=(0, first, 0))
        return jnp.einsum("bhts,bshk->bthk", weights, v_BxTxHxK)
