"""Exponentially weighted mean over time, of rows and of streams."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_speechlm.core.segments import Segments

_DECAY = 1 - 1 / 300
"""Weight of the past from one window to the next: a time constant of 300 windows, which are 3 s."""


def running_mean(
    x: Float[Array, "batch windows bins"],
    start: Float[Array, "batch bins"],
    segments: Segments | None = None,
) -> Float[Array, "batch windows bins"]:
    """Computes mean[t] = d mean[t - 1] + (1 - d) x[t], the mean of the windows so far.

    Args:
      start: mean before the first window.
      segments: utterances of the rows, each of which starts anew; None for rows of one.
    """
    position = jnp.arange(x.shape[1]) if segments is None else segments.position(x.shape[1])
    first = jnp.broadcast_to(position == 0, x.shape[:2])[..., None]
    decay, new = jnp.where(first, 0.0, _DECAY), (1 - _DECAY) * x + jnp.where(first, _DECAY * start[:, None], 0.0)

    def compose(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        return one[0] * two[0], one[1] * two[0] + two[1]

    return jax.lax.associative_scan(compose, (jnp.broadcast_to(decay, x.shape), new), axis=1)[1]
