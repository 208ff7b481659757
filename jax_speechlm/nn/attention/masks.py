"""Attention masks, and the softmax over masked scores."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def visible(
    segment_BxT: Int[Array, "batch time"],
    causal: bool,
    window: int | None,
    queries: slice = slice(None),
    keys: slice = slice(None),
) -> Bool[Array, "batch query key"]:
    """Returns the mask of packed rows.

    Args:
      window: greatest distance between a query and a key; None for no limit.

    Returns:
      True where a query may attend to a key.
    """
    position = jnp.arange(segment_BxT.shape[1])
    mask = segment_BxT[:, queries, None] == segment_BxT[:, None, keys]
    distance = position[queries, None] - position[None, keys]
    if causal:
        mask &= distance >= 0
    if window is not None:
        mask &= jnp.abs(distance) <= window
    return mask


def masked_scores(scores: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Returns float32 scores that are so low where the mask is False that their exponential is 0.

    The mask broadcasts. It is added, not selected, because the gradient of a sum is free.
    """
    return scores.astype(jnp.float32) + jnp.where(mask, 0, jnp.finfo(jnp.float32).min)


def masked_softmax(scores: Float[Array, "..."], mask: Bool[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Returns the softmax of masked scores over keys (the last dimension), computed in float32, as `dtype`.

    A query without a visible key gets equal weights.
    """
    weights = jax.nn.softmax(masked_scores(scores, mask), axis=-1).astype(dtype)
    # Without the barrier XLA on CPU fuses the softmax into the product with the values and computes it several times.
    return jax.lax.optimization_barrier(weights)
