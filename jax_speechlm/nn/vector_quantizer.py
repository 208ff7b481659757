"""Product quantization with a Gumbel softmax.

References: Baevski et al. 2020 (wav2vec 2.0), section 2; Jang et al. 2017, "Categorical reparameterization with
Gumbel-softmax". With the same weights it computes the numbers of Hugging Face's `Wav2Vec2GumbelVectorQuantizer`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear


class Quantized(NamedTuple):
    """Quantized frames.

    Attributes:
      vectors: codebook vectors of the chosen codes, concatenated over groups.
      codes: index of the chosen code in each group.
      probs: softmax over the codes within a group, without noise.
    """

    vectors: Float[Array, "batch time code_dim"]
    codes: Int[Array, "batch time groups"]
    probs: Float[Array, "batch time groups codes"]


class GumbelQuantizer(nnx.Module):
    """Chooses one of `codes` vectors in each of `groups` groups; concatenated they have `code_dim` values."""

    def __init__(self, input_dim: int, groups: int, codes: int, code_dim: int, *, rngs: nnx.Rngs):
        # Kernel values of standard deviation 1 whatever input_dim: initial choices are diverse and confident.
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
          x_BxTxD: frames of any type; the result is float32.
          keys_BxT: a key a frame for the Gumbel noise, or None to choose the most probable code.
          temperature: of the softmax, which provides the gradient of the choice (straight-through estimator).
        """
        logits = self.logits(x_BxTxD.astype(jnp.float32))
        noisy = logits
        if keys_BxT is not None:
            noisy = logits + jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[2:])))(keys_BxT)
        soft = jax.nn.softmax(noisy / temperature)
        codes = jnp.argmax(noisy, axis=-1)
        # Straight-through: the value is the one-hot choice, the gradient comes from the softmax.
        chosen = jax.nn.one_hot(codes, logits.shape[-1]) + (soft - jax.lax.stop_gradient(soft))
        vectors = jnp.einsum("btgc,gcd->btgd", chosen, self.codebook[...], precision=jax.lax.Precision.HIGHEST)
        return Quantized(vectors.reshape(*vectors.shape[:2], -1), codes, jax.nn.softmax(logits))
