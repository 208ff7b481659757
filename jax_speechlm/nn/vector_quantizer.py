"""Product quantization whose choices are learnt through the Gumbel softmax.

References: Baevski et al. 2020 (wav2vec 2.0), section 2; Jang et al. 2017, "Categorical reparameterization with
Gumbel-softmax". Given the same weights it gives the numbers of Hugging Face's `Wav2Vec2GumbelVectorQuantizer`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear


class Quantized(NamedTuple):
    """What a quantizer made of frames.

    Attributes:
      vectors: the chosen codes' vectors, those of all groups side by side.
      codes: the choice itself, one of each group.
      probs: softmax over each group's codes, without noise.
    """

    vectors: Float[Array, "batch time code_dim"]
    codes: Int[Array, "batch time groups"]
    probs: Float[Array, "batch time groups codes"]


class GumbelQuantizer(nnx.Module):
    """Chooses one of `codes` vectors in each of `groups` groups; together they are a vector of `code_dim`."""

    def __init__(self, input_dim: int, groups: int, codes: int, code_dim: int, *, rngs: nnx.Rngs):
        # A standard deviation of 1 whatever the input's width: the choices are spread and sure from the start.
        self.logits = Linear(
            (input_dim,), (groups, codes), ("embed", None, None), gain=float(input_dim) ** 0.5, rngs=rngs
        )
        self.codebook = parameter(
            rngs.params(), (groups, codes, code_dim // groups), (None, None, None), jax.nn.initializers.uniform(1.0)
        )

    def __call__(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        keys_BxT: Key[Array, "batch time"] | None = None,
        temperature: Float[Array, ""] | float = 1.0,
    ) -> Quantized:
        """Quantizes every frame.

        Args:
          x_BxTxD: frames, of any type; the result is float32.
          keys_BxT: a key a frame for the noise of the choice, or None to take the likeliest code.
          temperature: of the softmax that stands in for the choice when gradients go back through it.
        """
        logits = self.logits(x_BxTxD.astype(jnp.float32))
        noisy = logits
        if keys_BxT is not None:
            noisy = logits + jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[2:])))(keys_BxT)
        soft = jax.nn.softmax(noisy / temperature)
        codes = jnp.argmax(noisy, axis=-1)
        chosen = jax.nn.one_hot(codes, logits.shape[-1]) + (
            soft - jax.lax.stop_gradient(soft)
        )  # the choice forward, the softmax backward
        vectors = jnp.einsum("btgc,gcd->btgd", chosen, self.codebook[...], precision=jax.lax.Precision.HIGHEST)
        return Quantized(vectors.reshape(*vectors.shape[:2], -1), codes, jax.nn.softmax(logits))
