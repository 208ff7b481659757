"""Aligner of text and speech, learnt with the acoustic model.

Reference: Badlani et al. 2021, "One TTS alignment to rule them all". Small convolutions encode tokens and
log-mel frames to vectors; the log-probability that a frame has a token falls with the squared distance of the two.
"""

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments
from jax_speechlm.models.tts.fastspeech2 import MEAN_LOG_MEL
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
        self,
        tokens_BxNxU: Int[Array, "batch utterances tokens"],
        token_length_BxN: Int[Array, "batch utterances"],
        mel_BxTxF: Float[Array, "batch time bins"],
        segments: Segments,
    ) -> Float[Array, "batch time tokens"]:
        """Returns log-probabilities of the tokens of each frame's utterance, `IMPOSSIBLE` where it has none.

        Args:
          segments: utterances of the rows in frames.
        """
        (batch, num, tokens), num_frames = tokens_BxNxU.shape, mel_BxTxF.shape[1]
        text = jnp.take(self.tokens[...], tokens_BxNxU.reshape(-1, tokens), axis=0, mode="clip")
        rows = Segments.of(token_length_BxN.reshape(-1))
        key = self.text_out(jax.nn.relu(self.text_in(text, rows)), rows).reshape(batch, num, tokens, -1)
        mel = jax.nn.relu(self.mel_in(mel_BxTxF - MEAN_LOG_MEL, segments))
        query = self.mel_out(jax.nn.relu(self.mel_mid(mel, segments)), segments)
        # |query - key|^2 without |query|^2, which is the same for all tokens. The few scores of other utterances are
        # computed too, because a gather of the keys by frame would be larger, and its gradient a scatter.
        score = 2 * jnp.einsum("btc,bnuc->btnu", query, key) - jnp.sum(jnp.square(key), axis=-1)[:, None]
        score = jnp.sum(jnp.where(segments.belongs(num_frames)[..., None], score, 0), axis=2)
        score = jnp.where(token_mask(token_length_BxN, segments, tokens, num_frames), score, IMPOSSIBLE)
        return jax.nn.log_softmax(self.config.temperature * score)


def token_mask(token_length_BxN: Int[Array, "batch utterances"], segments: Segments, num_tokens: int, num_frames: int):
    """Returns whether the utterance of a frame has a token, bool [B, T, tokens]."""
    return jnp.arange(num_tokens) < segments.spread(token_length_BxN, num_frames)[..., None]
