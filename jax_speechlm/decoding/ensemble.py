"""Mixtures of models."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def mean_probability(log_probs: Sequence[Float[Array | np.ndarray, "*shape"]]) -> Float[Array | np.ndarray, "*shape"]:
    """Returns the elementwise logarithm of the mean probability, in the arrays' dtype; -inf where all are -inf."""
    if len(log_probs) == 1:
        return log_probs[0]
    if isinstance(log_probs[0], jax.Array):
        return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - jnp.log(len(log_probs))
    return np.logaddexp.reduce(np.stack(log_probs), axis=0) - np.log(np.float32(len(log_probs)))
