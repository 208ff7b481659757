"""Self-attention that knows how far apart query and key are.

By a learnt vector for each clipped distance (Shaw et al. 2018), or by sinusoids of it (Dai et al. 2019).
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.nn.functional import SAVED_ACTIVATION, parameter
from jax_speechlm.nn.layers import Keys, Linear, dropout
from jax_speechlm.parallel import sequence

Chunk = tuple[int | Int[Array, ""], int | Int[Array, ""]]
"""(frames in a chunk, chunks of left context; negative means all). Values may be traced."""


MAX_FULL_SCORES, _BLOCK = 2048, 512
"""Scores of rows of up to `MAX_FULL_SCORES` frames exist all at once; of longer ones, those of `_BLOCK` queries."""


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
def relative_shift(
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
    return relative_shift(scores, first, num_keys, left_max, right_max), first


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


relative_shift.defvjp(_spread, _collect)


Scores = Callable[[Array, int | Int[Array, ""], Array], Array]
"""(queries [B, Q, H, K], the number of the first, keys [B, T, H, K]) -> scores [B, H, Q, T], before masks."""


def attend(
    scores: Scores,
    q_BxTxHxK: Float[Array, "batch time heads head_dim"],
    k_BxTxHxK: Float[Array, "batch time heads head_dim"],
    v_BxTxHxK: Float[Array, "batch time heads head_dim"],
    mask_BxT: Bool[Array, "batch time"],
    *,
    chunk: Chunk | None = None,
    rate: float = 0.0,
    keys: Keys | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """The mean of the values that each query sees, weighted by softmax, which is float32 whatever the compute type.

    Args:
      scores: what softmax is taken of. Long rows are filled up to `padded_time` and go by blocks of their queries.
      mask_BxT: False where a key is padding.
      chunk: see `chunk_mask`.
      rate, keys: dropout of the weights.
    """
    time = q_BxTxHxK.shape[1]
    block = partial(_attend_block, scores, chunk=chunk, rate=rate, keys=keys)
    if time <= MAX_FULL_SCORES:
        return block(q_BxTxHxK, 0, k_BxTxHxK, v_BxTxHxK, mask_BxT)
    more = padded_time(time) - time
    fill = lambda x: jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    q, k, v, mask = map(fill, (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, mask_BxT))
    # Backward, a block's scores are computed again, so that in neither direction those of all blocks are kept.
    again = jax.checkpoint(lambda q, first: block(q, first, k, v, mask))
    num_blocks = q.shape[1] // _BLOCK
    q_NxBxQxHxK = jnp.moveaxis(q.reshape(len(q), num_blocks, _BLOCK, *q.shape[2:]), 1, 0)
    mixed = jax.lax.map(lambda each: again(*each), (q_NxBxQxHxK, _BLOCK * jnp.arange(num_blocks)))
    mixed = jnp.moveaxis(mixed, 0, 1).reshape(q.shape)[:, :time]
    return checkpoint_name(mixed, SAVED_ACTIVATION)


def padded_time(time: int) -> int:
    """Frames of a row in `attend`: whole blocks where it is long."""
    return time if time <= MAX_FULL_SCORES else math.ceil(time / _BLOCK) * _BLOCK


def _attend_block(scores, q_BxQxHxK, first, k_BxTxHxK, v_BxTxHxK, mask_BxT, *, chunk, rate, keys):
    """The same for some of the queries, of which `first` is the first one's number."""
    dtype, (queries, time) = q_BxQxHxK.dtype, (q_BxQxHxK.shape[1], k_BxTxHxK.shape[1])
    mask = mask_BxT[:, None, :] & chunk_mask(first + jnp.arange(queries), jnp.arange(time), chunk)
    # Added, not selected, because a sum costs nothing backward.
    masked = scores(q_BxQxHxK, first, k_BxTxHxK).astype(jnp.float32)
    masked = masked + jnp.where(mask, 0, jnp.finfo(jnp.float32).min)[:, None]
    # The barrier keeps XLA on CPU from computing the softmax inside the product below, several times over.
    weights = jax.lax.optimization_barrier(jax.nn.softmax(masked, axis=-1).astype(dtype))
    weights = dropout(weights, rate, keys, first=(0, first, 0))
    return jnp.einsum("bhts,bshk->bthk", weights, v_BxTxHxK)


class RelativeAttention(nnx.Module):
    """Multi-head self-attention; a score is q·k + q·distance[clip(key - query)], over sqrt(head_dim).

    The form of Hugging Face's Wav2Vec2-BERT (`position_embeddings_type="relative_key"`): one distance table a layer,
    shared by its heads.
    """

    def __init__(self, dim: int, num_heads: int, left_max: int, right_max: int, dropout_rate: float, *, rngs: nnx.Rngs):
        head_dim = dim // num_heads
        self.left_max, self.right_max = left_max, right_max
        self.scale, self.dropout_rate = head_dim**-0.5, dropout_rate
        self.query, self.key, self.value, self.out = _projections(dim, num_heads, True, rngs)
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
        mix = partial(attend, self._scores, chunk=chunk, rate=self.dropout_rate, keys=keys)
        return self.out(sequence.by_heads(mix, q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, mask_BxT))

    def _scores(self, q_BxQxHxK, first, k_BxTxHxK):
        scores = jnp.einsum("bthk,bshk->bhts", q_BxQxHxK, k_BxTxHxK)
        by_distance = jnp.einsum("bthk,rk->bhtr", q_BxQxHxK, self.distance[...].astype(q_BxQxHxK.dtype))
        return scores + relative_shift(by_distance, first, k_BxTxHxK.shape[1], self.left_max, self.right_max)


class PositionalAttention(nnx.Module):
    """Multi-head self-attention; a score is (q + u)·k + (q + v)·Wr, over sqrt(head_dim), r the sinusoids of a distance.

    The form of Transformer-XL (Dai et al. 2019, section 3.3), as in the conformer's paper and Hugging Face's Parakeet.
    No distance is too large for it.
    """

    def __init__(self, dim: int, num_heads: int, dropout_rate: float, *, bias: bool, rngs: nnx.Rngs):
        head_dim = dim // num_heads
        self.scale, self.dropout_rate = head_dim**-0.5, dropout_rate
        self.query, self.key, self.value, self.out = _projections(dim, num_heads, bias, rngs)
        self.position = Linear((dim,), (num_heads, head_dim), _INTO, bias=False, rngs=rngs)
        zeros = jax.nn.initializers.zeros
        self.content_bias = parameter(rngs.params(), (num_heads, head_dim), _INTO[1:], zeros, decays=False)  # u
        self.position_bias = parameter(rngs.params(), (num_heads, head_dim), _INTO[1:], zeros, decays=False)  # v

    def __call__(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        sinusoids_RxD: Float[Array, "distances dim"],
        mask_BxT: Bool[Array, "batch time"],
        keys: Keys | None,
    ) -> Float[Array, "batch time dim"]:
        """Attention to the frames that are no padding.

        Args:
          sinusoids_RxD: `distance_sinusoids` of as many frames.
        """
        q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = self.query(x_BxTxD), self.key(x_BxTxD), self.value(x_BxTxD)
        scores = partial(self._scores, self.position(sinusoids_RxD))
        mix = partial(attend, scores, rate=self.dropout_rate, keys=keys)
        return self.out(sequence.by_heads(mix, q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, mask_BxT))

    def _scores(self, r_RxHxK, q_BxQxHxK, first, k_BxTxHxK):
        dtype, (queries, time) = q_BxQxHxK.dtype, (q_BxQxHxK.shape[1], k_BxTxHxK.shape[1])
        content, position = (bias[...].astype(dtype) for bias in (self.content_bias, self.position_bias))
        scores = jnp.einsum("bthk,bshk->bhts", (q_BxQxHxK + content) * self.scale, k_BxTxHxK)
        # From the last query's distance to the first key, down to the first query's to the last key.
        start, size = time - queries - first, queries + time - 1
        r_RxHxK = jax.lax.dynamic_slice_in_dim(r_RxHxK, start, size)
        by_distance = jnp.einsum("bthk,rhk->bhtr", (q_BxQxHxK + position) * self.scale, r_RxHxK)
        return scores + skew(by_distance)


_INTO, _OUT_OF = ("embed", "heads", "head_dim"), ("heads", "head_dim", "embed")


def _projections(dim: int, num_heads: int, bias: bool, rngs: nnx.Rngs) -> tuple[Linear, Linear, Linear, Linear]:
    """Those of queries, keys, values, and of what comes out."""
    heads = num_heads, dim // num_heads
    into = (Linear((dim,), heads, _INTO, bias=bias, rngs=rngs) for _ in range(3))
    return *into, Linear(heads, (dim,), _OUT_OF, bias=bias, rngs=rngs)


def distance_sinusoids(num_frames: int, dim: int) -> Float[Array, "distances {dim}"]:
    """Sines and cosines by turns of every distance query - key, from num_frames - 1 down to its negative.

    The frequencies are those of Vaswani et al. 2017. Rows that `attend` fills up have the distances of `padded_time`.
    """
    reach = padded_time(num_frames) - 1
    frequency = np.float32(1) / np.float32(10_000) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    angle = jnp.arange(reach, -reach - 1, -1, dtype=jnp.float32)[:, None] * frequency
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(len(angle), dim)


def skew(scores: Float[Array, "*batch query distance"]) -> Float[Array, "*batch query key"]:
    """out[i, j] = scores[i, queries - 1 - i + j]; there are queries - 1 more distances than keys.

    By reading the rows, one zero before each, back one element shorter: no direction gathers or scatters.
    """
    *batch, queries, distance = scores.shape
    rows = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(1, 0)]).reshape(*batch, -1)
    return rows[..., queries:].reshape(*batch, queries, distance)[..., : distance - queries + 1]
