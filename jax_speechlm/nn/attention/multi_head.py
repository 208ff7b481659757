"""Linear maps of attention without positions (Vaswani et al. 2017), for self-attention and attention to a source."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jax_speechlm.nn.attention.masks import masked_softmax
from jax_speechlm.nn.layers import Linear

_INTO, _OUT_OF = ("embed", "heads", "head_dim"), ("heads", "head_dim", "embed")


class MultiHeadMaps(nnx.Module):
    """Queries, keys and values of vectors, and the output of the mixed values.

    Args:
      source_dim: width of the vectors that keys and values are of; `dim` by default.
      key_bias: whether keys have a bias, on which a softmax over them does not depend; some published models have it.
      gain: factor on the initial values of the output's kernel.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        source_dim: int | None = None,
        key_bias: bool = False,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        heads, source_dim = (num_heads, dim // num_heads), source_dim or dim
        self.query = Linear((dim,), heads, _INTO, rngs=rngs)
        self.key = Linear((source_dim,), heads, _INTO, bias=key_bias, rngs=rngs)
        self.value = Linear((source_dim,), heads, _INTO, rngs=rngs)
        self.out = Linear(heads, (dim,), _OUT_OF, gain=gain, rngs=rngs)


def source_weights(
    q_BxTxHxK: Float[Array, "batch query heads head_dim"],
    k_BxHxSxK: Float[Array, "batch heads source head_dim"],
    mask_BxTxS: Bool[Array, "batch query source"],
) -> Float[Array, "batch heads query source"]:
    """Computes the weights of `source_attention`, in the type of the queries."""
    q_BxTxHxK = q_BxTxHxK * q_BxTxHxK.shape[-1] ** -0.5
    scores = jnp.einsum("bthk,bhsk->bhts", q_BxTxHxK, k_BxHxSxK, preferred_element_type=jnp.float32)
    return masked_softmax(scores, mask_BxTxS[:, None], q_BxTxHxK.dtype)


def weighted_values(
    weights_BxHxTxS: Float[Array, "batch heads query source"], v_BxHxSxK: Float[Array, "batch heads source head_dim"]
) -> Float[Array, "batch query heads head_dim"]:
    """Computes the means of values by `source_weights`."""
    return jnp.einsum("bhts,bhsk->bthk", weights_BxHxTxS, v_BxHxSxK)


def source_attention(
    q_BxTxHxK: Float[Array, "batch query heads head_dim"],
    k_BxHxSxK: Float[Array, "batch heads source head_dim"],
    v_BxHxSxK: Float[Array, "batch heads source head_dim"],
    mask_BxTxS: Bool[Array, "batch query source"],
) -> Float[Array, "batch query heads head_dim"]:
    """Computes attention to another sequence, whose keys and values have heads before time, as products read them.

    Args:
      mask_BxTxS: True where a query may attend to a key; without any key a query gets the mean of all values.

    Returns:
      The weighted means of the values, in their type.
    """
    return weighted_values(source_weights(q_BxTxHxK, k_BxHxSxK, mask_BxTxS), v_BxHxSxK)
