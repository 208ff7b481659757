"""Parts that all vocoders share: settings, masks, normalisation of the mel spectrogram.

A vocoder is called as `vocoder(mel [B, T, bins], lengths) -> audio [B, T * hop]`, with one utterance a row. Frames
beyond an utterance's ends count as zeros, after normalisation and in every layer, so padding does not change it.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.nn.functional import parameter


class Context(NamedTuple):
    """Mel frames before and after a frame that its `hop` samples depend on."""

    before: int
    after: int


class VocoderConfig(Config):
    """Settings that all vocoders share.

    Attributes:
      input_dim: bins of the mel spectrogram.
      mel_mean, mel_scale: initial values of the mean and the scale by which the log-mel spectrogram is normalised, for
        all bins; they are not trained. The defaults are those of asterisk-en in SpeechT5's form (base-10 logarithms).
      dtype: compute type; parameters and the waveform are float32.
    """

    input_dim: pydantic.PositiveInt = 80
    mel_mean: float = -2.2
    mel_scale: pydantic.PositiveFloat = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def subsampling(self) -> int:
        """Feature vectors of one frame."""
        return 1


class Vocoder(nnx.Module):
    """Base of vocoders: holds the mean and the scale of the mel spectrogram's bins."""

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs):
        def constant(value: float) -> nnx.Param:
            values = jax.nn.initializers.constant(value)
            return parameter(rngs.params(), (config.input_dim,), (None,), values, decays=False)

        self.config = config
        self.mean = constant(config.mel_mean)
        self.scale = constant(config.mel_scale)

    def normalized(
        self, mel_BxTxF: Float[Array, "batch time bins"], segments: Segments
    ) -> Float[Array, "batch time bins"]:
        """Returns the normalised spectrogram in the compute type, 0 beyond the utterance."""
        mean, scale = (jax.lax.stop_gradient(each[...]) for each in (self.mean, self.scale))
        x = (mel_BxTxF.astype(jnp.float32) - mean) / scale
        return masked(x, segments).astype(self.config.dtype)


FROZEN = ("mean", "scale")
"""Parameters of a vocoder that are not trained."""


def one_a_row(lengths: Lengths) -> Segments:
    """Returns lengths as segments.

    Raises:
      ValueError: rows have room for several utterances.
    """
    segments = Segments.of(lengths)
    if segments.num != 1:
        raise ValueError(f"a vocoder takes one utterance a row, and these rows have room for {segments.num}")
    return segments


def masked(x: Float[Array, "batch time *rest"], segments: Segments, rate: int = 1) -> Float[Array, "batch time *rest"]:
    """Sets x to 0 beyond the utterances; `segments` are in frames, of which each has `rate` elements of time."""
    mask = Segments(segments.start * rate, segments.length * rate).mask(x.shape[1])
    return jnp.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x, 0)


def clip_forward(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Clips x to [-1, 1]; the gradient is that of the identity, so that samples beyond are drawn back."""
    return x - jax.lax.stop_gradient(x - jnp.clip(x, -1, 1))
