"""From the hidden states of a text's tokens to one vector."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Pooling = Literal["mean", "cls"]
"""The mean over a text's tokens with those that enclose it, or the hidden state of the first one (BERT's [CLS])."""


def pool(
    hidden_BxTxD: Float[Array, "batch time dim"], inside_BxT: Bool[Array, "batch time"], pooling: Pooling
) -> Float[Array, "batch dim"]:
    """Returns a vector for each row, whose text begins at the first token; 0 for a row without any."""
    if pooling == "cls":
        return jnp.where(inside_BxT[:, :1], hidden_BxTxD[:, 0], 0)
    total = jnp.sum(jnp.where(inside_BxT[..., None], hidden_BxTxD, 0), axis=1)
    return total / jnp.maximum(inside_BxT.sum(1), 1)[:, None]
