"""Self-attention with a learnt vector for each clipped distance between query and key (Shaw et al. 2018)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.models.functional import parameter
from jax_speechlm.models.layers import Keys, Linear, dropout

Chunk = tuple[int | Int[Array, ""], int | Int[Array, ""]]
"""(frames in a chunk, chunks of left context; negative means all). Values may be traced."""


def chunk_mask(num_frames: int, chunk: Chunk) -> Bool[Array, "query key"]:
    """True where a query may see a key: the whole of its own chunk and the given number of chunks before it."""
    length, left = chunk
    index = jnp.arange(num_frames) // length
    behind = index[:, None] - index[None, :]
    return (behind >= 0) & ((behind <= left) | (jnp.asarray(left) < 0))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spread_by_distance(
    scores: Float[Array, "*batch time distance"], left_max: int, right_max: int
) -> Float[Array, "*batch time {scores.shape[-2]}"]:
    """out[i, j] = scores[i, clip(j - i, -left_max, right_max) + left_max]; distance = left_max + 1 + right_max.

    Neither direction scatters, which XLA does slowly on CPU. Forward, the band of distances is laid along the diagonal
    by reading zero-padded rows back one element shorter, and the two ends are filled in. Backward, the band is gathered
    from around the diagonal, and what lies beyond it goes to the two ends.
    """
    *batch, time, distance = scores.shape
    rows = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(0, time)]).reshape(*batch, -1)
    width = time + distance - 1
    band = rows[..., : time * width].reshape(*batch, time, width)[..., left_max : left_max + time]
    offset = jnp.arange(time) - jnp.arange(time)[:, None]
    ends = jnp.where(offset < 0, scores[..., :1], scores[..., -1:])
    return jnp.where((offset < -left_max) | (offset > right_max), ends, band)


def _spread(scores, left_max, right_max):
    return spread_by_distance(scores, left_max, right_max), None


def _collect(left_max, right_max, _, gradient):
    *batch, time, _ = gradient.shape
    key = jnp.arange(time)[:, None] + jnp.arange(-left_max, right_max + 1)
    index = jnp.broadcast_to(jnp.clip(key, 0, time - 1), (*batch, *key.shape))
    band = jnp.where((key >= 0) & (key < time), jnp.take_along_axis(gradient, index, axis=-1), 0)
    offset = jnp.arange(time) - jnp.arange(time)[:, None]
    left = jnp.where(offset < -left_max, gradient, 0).sum(-1)
    right = jnp.where(offset > right_max, gradient, 0).sum(-1)
    place = jnp.arange(left_max + 1 + right_max)
    left, right = (place == 0) * left[..., None], (place == left_max + right_max) * right[..., None]
    return (band + left + right,)


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
        mask: Bool[Array, "batch #time time"],  # noqa: F821
        keys: Keys | None,
    ) -> Float[Array, "batch time dim"]:
        q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = self.query(x_BxTxD) * self.scale, self.key(x_BxTxD), self.value(x_BxTxD)
        scores = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k_BxTxHxK)
        by_distance = jnp.einsum("bthk,rk->bhtr", q_BxTxHxK, self.distance[...].astype(x_BxTxD.dtype))
        scores = (scores + spread_by_distance(by_distance, self.left_max, self.right_max)).astype(jnp.float32)
        # Added, not selected, because a sum costs nothing backward.
        scores = scores + jnp.where(mask, 0, jnp.finfo(jnp.float32).min)[:, None]
        # The barrier keeps XLA on CPU from computing the softmax inside the product below, several times over.
        weights = jax.lax.optimization_barrier(jax.nn.softmax(scores, axis=-1).astype(x_BxTxD.dtype))
        weights = dropout(weights, self.dropout_rate, keys)
        return self.out(jnp.einsum("bhts,bshk->bthk", weights, v_BxTxHxK))
