"""Self-attention with a gated bias by distance (Chen et al. 2022, "WavLM", section III-B)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_speechlm.core.segments import Segments
from jax_speechlm.nn.attention.relative import BLOCKS, DistanceAttention, QueryBlocks, skew
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import FrameKeys, Linear

_PARTS = 4  # outputs of the gates' map that are summed to one gate, as in the published models


class GatedAttention(DistanceAttention):
    """Multi-head self-attention with scores q·k / sqrt(head_dim) + gate bias[key - query].

    The bias, one for each head and distance, is shared by the layers (`bias_by_distance`). The gate of a head and query
    is a (b scale - 1) + 2, a and b sigmoids of a linear map of the head's part of the query's frame.
    """

    def __init__(self, dim: int, num_heads: int, *, blocks: QueryBlocks = BLOCKS, rngs: nnx.Rngs):
        super().__init__(dim, num_heads, 0.0, bias=True, blocks=blocks, rngs=rngs)
        self.gate = Linear((dim // num_heads,), (2, _PARTS), ("head_dim", None, None), rngs=rngs)
        ones = jax.nn.initializers.ones
        self.gate_scale = parameter(rngs.params(), (num_heads,), ("heads",), ones, decays=False)

    def __call__(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        segments: Segments,
        bias_HxR: Float[Array, "heads distances"],
        keys: FrameKeys | None,
    ) -> Float[Array, "batch time dim"]:
        """Computes attention to the frames of the same utterance; `bias_HxR` as of `bias_by_distance`."""
        q_BxTxHxK = self.query(x_BxTxD) * self.scale
        gates = jax.nn.sigmoid(self.gate(x_BxTxD.reshape(q_BxTxHxK.shape)).sum(-1))
        first, second = gates[..., 0], gates[..., 1]
        gate_BxTxH = first * (second * self.gate_scale[...].astype(first.dtype) - 1) + 2
        # A query's gate goes with it into the blocks of attention.
        gated = jnp.concatenate([q_BxTxHxK, gate_BxTxH[..., None]], axis=-1)
        return self._mix(partial(self._scores, bias_HxR), x_BxTxD, gated, segments, None, keys)

    def _scores(self, bias_HxR, gated_BxQxHxK, first, k_BxTxHxK):
        q_BxQxHxK, gate_BxQxH = gated_BxQxHxK[..., :-1], gated_BxQxHxK[..., -1]
        queries, time = q_BxQxHxK.shape[1], k_BxTxHxK.shape[1]
        scores = jnp.einsum("bthk,bshk->bhts", q_BxQxHxK, k_BxTxHxK)
        # Distances from (first key - last query) up to (last key - first query).
        bias_HxR = jax.lax.dynamic_slice_in_dim(bias_HxR, time - queries - first, queries + time - 1, axis=1)
        bias_HxQxT = skew(jnp.broadcast_to(bias_HxR[:, None], (len(bias_HxR), queries, bias_HxR.shape[1])))
        return scores + jnp.swapaxes(gate_BxQxH, 1, 2)[..., None] * bias_HxQxT.astype(scores.dtype)


def bias_by_distance(
    table_NxH: Float[Array, "buckets heads"], num_frames: int, longest: int, blocks: QueryBlocks = BLOCKS
) -> Float[Array, "heads distances"]:
    """Returns the bias of every distance key - query, from the lowest to the highest.

    Args:
      table_NxH: bias of each bucket of distances.
      num_frames: frames of a row, before `relative.attend` pads it to `blocks.padded_time`.
      longest: distance from which on all share a bucket.
    """
    reach = blocks.padded_time(num_frames) - 1
    bucket = buckets(jnp.arange(-reach, reach + 1), len(table_NxH), longest)
    return jnp.take(table_NxH, bucket, axis=0).T


def buckets(distance: Int[Array, " distances"], num: int, longest: int) -> Int[Array, " distances"]:
    """Returns the bucket of each distance key - query, as in T5 (Raffel et al. 2020).

    Half of the `num` buckets are for keys after the query. In each half, half have a distance each, from 0 on; the
    others have distances in equal steps of the logarithm up to `longest`.
    """
    half = num // 2
    exact = half // 2
    size = jnp.abs(distance)
    ratio = jnp.log(jnp.maximum(size, 1).astype(jnp.float32) / exact) / np.float32(math.log(longest / exact))
    large = jnp.minimum(exact + (ratio * (half - exact)).astype(jnp.int32), half - 1)
    return half * (distance > 0) + jnp.where(size < exact, size, large)
