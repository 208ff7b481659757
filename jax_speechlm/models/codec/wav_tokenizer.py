"""WavTokenizer: a codec with a single codebook (Ji et al. 2024, "WavTokenizer: an efficient acoustic discrete codec
tokenizer for audio language modeling").

SEANet encoder, nearest vector of one codebook, decoder of the Vocos kind. With the same weights it computes the codes
and the samples of Hugging Face's `WavTokenizerModel` (`jax_speechlm.interop.hf.wav_tokenizer` converts the weights),
for rows of one utterance; unlike there, padding changes nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.models.codec.codebook import Codebook, straight_through
from jax_speechlm.models.codec.config import WavTokenizerConfig
from jax_speechlm.models.codec.decoder import Decoder
from jax_speechlm.models.codec.encoder import Encoder
from jax_speechlm.nn.layers import Keys
from jax_speechlm.parallel.mesh import shard_batch_dim

__all__ = ["WavTokenizer", "WavTokenizerConfig"]


class Reconstruction(NamedTuple):
    """What the codec makes of waveforms.

    Attributes:
      audio: decoded samples, `hop` for each code.
      latents: the encoder's vectors.
      vectors: of the codes nearest to them, with no gradient to the codebook.
      code_ids: these codes.
      length: codes in each row.
    """

    audio: Float32[Array, "batch samples"]
    latents: Float32[Array, "batch codes latent"]
    vectors: Float32[Array, "batch codes latent"]
    code_ids: Int32[Array, "batch codes"]
    length: Int[Array, " batch"]


class WavTokenizer(nnx.Module):
    """The codec; a row has one utterance."""

    def __init__(self, config: WavTokenizerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.quantizer = Codebook(config.codebook_size, config.latent_dim, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def latents(
        self, audio: Float[Array, "batch samples"], length: Int[Array, " batch"]
    ) -> tuple[Float32[Array, "batch codes latent"], Int[Array, " batch"]]:
        """Encodes waveforms to vectors.

        Args:
          audio: samples in [-1, 1).
          length: samples in each row.

        Returns:
          Vectors, 0 at padding, and their number in each row.
        """
        inside = frame_mask(length, audio.shape[1])
        x = shard_batch_dim(jnp.where(inside, audio, 0)).astype(self.config.dtype)
        x, length = self.encoder(x, length)
        return jnp.where(frame_mask(length, x.shape[1])[..., None], x.astype(jnp.float32), 0), length

    def encode(
        self, audio: Float[Array, "batch samples"], length: Int[Array, " batch"]
    ) -> tuple[Int32[Array, "batch codes"], Int[Array, " batch"]]:
        """Encodes waveforms; arguments as of `latents`.

        Returns:
          Code ids, 0 at padding, and their number in each row: one for each whole or partial hop.
        """
        x, length = self.latents(audio, length)
        return jnp.where(frame_mask(length, x.shape[1]), self.quantizer.nearest(x), 0), length

    def decode(
        self, code_ids: Int[Array, "batch codes"], length: Int[Array, " batch"], keys: Keys | None = None
    ) -> tuple[Float32[Array, "batch samples"], Int[Array, " batch"]]:
        """Decodes codes.

        Args:
          code_ids: from 0 to `codebook_size` - 1.
          length: codes in each row.
          keys: of dropout, one a row; None for none.

        Returns:
          Samples, about in [-1, 1], 0 at padding, and their number in each row: `hop` for each code.
        """
        return self.decoder(self.quantizer.lookup(code_ids), length, keys), length * self.config.hop

    def reconstruct(
        self, audio: Float[Array, "batch samples"], length: Int[Array, " batch"], keys: Keys | None = None
    ) -> Reconstruction:
        """Encodes and decodes waveforms, with a straight-through gradient of the codes; arguments as of `latents`."""
        x, num_codes = self.latents(audio, length)
        code_ids = self.quantizer.nearest(jax.lax.stop_gradient(x))
        vectors = jax.lax.stop_gradient(self.quantizer.lookup(code_ids))
        audio = self.decoder(straight_through(x, vectors), num_codes, keys)
        return Reconstruction(audio, x, vectors, code_ids, num_codes)
