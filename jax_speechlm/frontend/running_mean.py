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
    first_BxT = jnp.broadcast_to(position == 0, x.shape[:2])

    # A scan, not an associative one, because programs are exported for any number of windows.
    def step(mean_BxF: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        x_BxF, first_B = inputs
        mean_BxF = _DECAY * jnp.where(first_B[:, None], start, mean_BxF) + (1 - _DECAY) * x_BxF
        return mean_BxF, mean_BxF

    _, means_TxBxF = jax.lax.scan(step, start, (jnp.swapaxes(x, 0, 1), first_BxT.T))
    return jnp.swapaxes(means_TxBxF, 0, 1)
