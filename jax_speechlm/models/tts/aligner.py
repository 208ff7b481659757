"""Aligner of text and speech, learnt with the acoustic model.

Reference: Badlani et al. 2021, "One TTS alignment to rule them all". Small convolutions encode tokens and
log-mel frames to vectors; the log-probability that a frame has a token falls with the squared distance of the two.
"""

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments
from jax_speechlm.models.tts.fastspeech2 import MEAN_LOG_MEL
from jax_speechlm.models.tts.text import TextRows
from jax_speechlm.nn.convolution import Convolution
from jax_speechlm.nn.functional import parameter

IMPOSSIBLE = -1e9
"""Log-probability of a token that a frame cannot have; finite, so that no difference of two is NaN."""


class AlignerConfig(Config):
    """The shape of an aligner.

    Attributes:
      dim: width of the vectors that are compared.
      text_dim: width of the token embeddings, and half of the width inside the text encoder.
      temperature: factor on the squared distances.
    """

    dim: pydantic.PositiveInt = 80
    text_dim: pydantic.PositiveInt = 128
    temperature: pydantic.PositiveFloat = 0.0005


class Aligner(nnx.Module):
    """Computes for each frame a score of every token of its utterance."""

    def __init__(self, config: AlignerConfig, vocab_size: int, num_mel_bins: int, *, rngs: nnx.Rngs):
        self.config = config
        text, bins, relu = config.text_dim, num_mel_bins, {"gain": 2**0.5, "rngs": rngs}
        into, out = ("embed", "mlp"), ("mlp", None)
        self.tokens = parameter(rngs.params(), (vocab_size, text), (None, "embed"), jax.nn.initializers.normal(1.0))
        self.text_in = Convolution(text, 2 * text, 3, into, **relu)
        self.text_out = Convolution(2 * text, config.dim, 1, out, rngs=rngs)
        self.mel_in = Convolution(bins, 2 * bins, 3, (None, "mlp"), **relu)
        self.mel_mid = Convolution(2 * bins, bins, 1, ("mlp", "embed"), **relu)
        self.mel_out = Convolution(bins, config.dim, 1, ("embed", None), rngs=rngs)

    def __call__(
        self, text: TextRows, mel_BxTxF: Float[Array, "batch time bins"], segments: Segments, num_tokens: int
    ) -> Float[Array, "batch time {num_tokens}"]:
        """Returns log-probabilities of the tokens of each frame's utterance, `IMPOSSIBLE` where it has none.

        Args:
          segments: utterances of the rows in frames.
          num_tokens: of the longest text.
        """
        num_frames, packed = mel_BxTxF.shape[1], text.tokens.shape[1]
        x = jnp.take(self.tokens[...], text.tokens, axis=0, mode="clip")
        key = self.text_out(jax.nn.relu(self.text_in(x, text.segments)), text.segments)
        mel = jax.nn.relu(self.mel_in(mel_BxTxF - MEAN_LOG_MEL, segments))
        query = self.mel_out(jax.nn.relu(self.mel_mid(mel, segments)), segments)
        # |query - key|^2 without |query|^2, which is the same for all tokens.
        score = 2 * jnp.einsum("btc,bsc->bts", query, key) - jnp.sum(jnp.square(key), axis=-1)[:, None]
        first = segments.spread(text.segments.start, num_frames)[..., None]
        own = jnp.minimum(first + jnp.arange(num_tokens), packed - 1)
        score = jnp.take_along_axis(score, own, axis=2)
        score = jnp.where(token_mask(text.segments.length, segments, num_tokens, num_frames), score, IMPOSSIBLE)
        return jax.nn.log_softmax(self.config.temperature * score)


def token_mask(
    token_length_BxN: Int[Array, "batch utterances"], segments: Segments, num_tokens: int, num_frames: int
) -> Bool[Array, "batch {num_frames} {num_tokens}"]:
    """Returns whether the utterance of a frame has a token."""
    return jnp.arange(num_tokens) < segments.spread(token_length_BxN, num_frames)[..., None]
