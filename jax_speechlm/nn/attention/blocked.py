"""Scaled dot-product attention in blocks of queries, each against only the keys that the mask can allow.

Only the scores of one block exist at a time, forward and backward, and most scores that causality or a window masks are
not computed. The backward pass recomputes a block's weights from its scores and the saved logarithm of their sum, then

    dv = pᵀ do,    ds = p * (do vᵀ - sum(do * o)),    dq = ds k,    dk = dsᵀ q

as in FlashAttention (Dao et al. 2022). It is plain JAX, which XLA compiles for any backend and partitions over rows and
heads; on CPU it takes 0.6 of the time of the reference.
"""

import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jax_speechlm.nn.attention.masks import masked_scores, visible
from jax_speechlm.nn.functional import SAVED_ACTIVATION

_BLOCK = 128  # queries; fastest of 64, 128, 256 and 512 on CPU
_MOST_BLOCKS = 16  # blocks are unrolled, so longer rows have larger ones


def blocked_attention(
    q_BxTxHxK: Float[Array, "batch time heads head_dim"],
    k_BxTxGxK: Float[Array, "batch time kv_heads head_dim"],
    v_BxTxGxK: Float[Array, "batch time kv_heads head_dim"],
    segment_BxT: Int[Array, "batch time"],
    causal: bool,
    window: int | None,
) -> Float[Array, "batch time heads head_dim"]:
    """Computes self-attention of packed rows; arguments and result as of `dot.attend`."""
    batch, time, heads, head_dim = q_BxTxHxK.shape
    groups = k_BxTxGxK.shape[2]
    q = (q_BxTxHxK * head_dim**-0.5).reshape(batch, time, groups, heads // groups, head_dim)
    # Time next to head_dim: XLA's batched products then need no copy.
    out = _attention(
        q.transpose(0, 2, 3, 1, 4), k_BxTxGxK.swapaxes(1, 2), v_BxTxGxK.swapaxes(1, 2), segment_BxT, causal, window
    )
    return out.transpose(0, 3, 1, 2, 4).reshape(q_BxTxHxK.shape)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q_BxGxRxTxK, k_BxGxTxK, v_BxGxTxK, segment_BxT, causal, window):
    return _forward(q_BxGxRxTxK, k_BxGxTxK, v_BxGxTxK, segment_BxT, causal, window)[0]


def _forward(q, k, v, segment, causal, window):
    outs, log_sums = [], []
    for queries, keys in _blocks(segment.shape[1], causal, window):
        scores = _scores(q, k, segment, causal, window, queries, keys)
        top = scores.max(-1, keepdims=True)
        # The barrier keeps XLA on CPU from computing the exponentials twice, for the sum and for the product.
        weights = jax.lax.optimization_barrier(jnp.exp(scores - top))
        total = weights.sum(-1, keepdims=True)
        values = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v.dtype), v[:, :, keys])
        outs.append((values / total).astype(v.dtype))
        log_sums.append(top + jnp.log(total))
    # Named so that rematerialisation can save them instead of recomputing this function.
    out = checkpoint_name(jnp.concatenate(outs, axis=3), SAVED_ACTIVATION)
    log_sum = checkpoint_name(jnp.concatenate(log_sums, axis=3), SAVED_ACTIVATION)
    return out, (q, k, v, segment, out, log_sum)


def _backward(causal, window, residuals, to_out):
    q, k, v, segment, out, log_sum = residuals
    shared = jnp.sum(to_out.astype(jnp.float32) * out, axis=-1, keepdims=True)
    to_q = []
    # head_dim before time: both products then read their large operand without a transposition.
    to_k = to_v = jnp.zeros_like(k.swapaxes(2, 3), jnp.float32)
    for queries, keys in _blocks(segment.shape[1], causal, window):
        scores = _scores(q, k, segment, causal, window, queries, keys)
        weights = jax.lax.optimization_barrier(jnp.exp(scores - log_sum[:, :, :, queries]))
        here = to_out[:, :, :, queries]
        to_weights = jnp.einsum("bgrtk,bgsk->bgrts", here, v[:, :, keys], preferred_element_type=jnp.float32)
        to_scores = (weights * (to_weights - shared[:, :, :, queries])).astype(q.dtype)
        to_scores = jax.lax.optimization_barrier(to_scores)
        to_q.append(jnp.einsum("bgrts,bgsk->bgrtk", to_scores, k[:, :, keys]))
        product = partial(jnp.einsum, "bgrtk,bgrts->bgks", preferred_element_type=jnp.float32)
        to_v = to_v.at[..., keys].add(product(here, weights.astype(v.dtype)))
        to_k = to_k.at[..., keys].add(product(q[:, :, :, queries], to_scores))
    to_q = jnp.concatenate(to_q, axis=3)
    return to_q, to_k.swapaxes(2, 3).astype(k.dtype), to_v.swapaxes(2, 3).astype(v.dtype), None


_attention.defvjp(_forward, _backward)


def _scores(q, k, segment, causal, window, queries, keys):
    """Returns the masked float32 scores of a block."""
    scores = jnp.einsum("bgrtk,bgsk->bgrts", q[:, :, :, queries], k[:, :, keys], preferred_element_type=jnp.float32)
    return masked_scores(scores, visible(segment, causal, window, queries, keys)[:, None, None])


def _blocks(time: int, causal: bool, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Yields each block's queries and the smallest stretch of keys that holds all visible ones."""
    size = _BLOCK * math.ceil(time / (_BLOCK * _MOST_BLOCKS))
    reach = time if window is None else window
    for start in range(0, time, size):
        stop = min(time, start + size)
        yield slice(start, stop), slice(max(0, start - reach), stop if causal else min(time, stop + reach))
