"""Vocos: a vocoder whose layers run at frame rate and whose head predicts a short-time Fourier transform.

ConvNeXt blocks compute the logarithm of the magnitude and the phase of each frame's spectrum; an inverse DFT (a matrix
product) and overlap-add of the windowed frames give the waveform. Reference: Siuzdak 2023, "Vocos: closing the gap
between time-domain and Fourier-based neural vocoders for high-quality audio synthesis".

At 80 bins, hop 256 and window 1024 the default has 1,651,042 parameters.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Float32

from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.models.vocoders.base import (
    Context,
    Vocoder,
    VocoderConfig,
    clip_forward,
    masked,
    one_a_row,
)
from jax_speechlm.nn.convolution import RowConvolution
from jax_speechlm.nn.functional import parameter, scan_layers, stack
from jax_speechlm.nn.layers import LayerNorm, Linear, depthwise
from jax_speechlm.nn.stft import istft
from jax_speechlm.parallel.mesh import shard_batch_dim

_LARGEST = 100.0  # magnitude, as in the reference


class VocosConfig(VocoderConfig):
    """Shape of the vocoder.

    Attributes:
      dim: width of the blocks.
      num_layers: ConvNeXt blocks.
      ffn_multiple: inner width of a block as a multiple of `dim`.
      kernel_size: taps of the convolutions over frames; odd.
      hop: samples from one frame to the next.
      window: samples of a frame of the inverse transform, an even multiple of `hop`.
    """

    kind: Literal["vocos"] = "vocos"
    dim: pydantic.PositiveInt = 192
    num_layers: pydantic.PositiveInt = 6
    ffn_multiple: pydantic.PositiveInt = 3
    kernel_size: Annotated[int, pydantic.Field(ge=1)] = 7
    hop: pydantic.PositiveInt = 256
    window: pydantic.PositiveInt = 1024

    @pydantic.model_validator(mode="after")
    def _frames_are_whole(self):
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size ({self.kernel_size}) must be odd, so that frames have a middle tap")
        if self.window % (2 * self.hop) or self.window < 4 * self.hop:
            raise ValueError(f"window ({self.window}) must be an even multiple, 4 or more, of hop ({self.hop})")
        return self

    @property
    def context_frames(self) -> Context:
        """Frames before and after a frame that its samples depend on."""
        reach = self.kernel_size // 2 * (self.num_layers + 1)
        half = self.window // (2 * self.hop)
        return Context(reach + half - 1, reach + half)

    def forward_flops(self, num_frames: int, batch_size: int) -> float:
        """Returns the FLOPs of the matrix products of one forward pass."""
        dim, bins = self.dim, self.window // 2 + 1
        frame = self.kernel_size * self.input_dim * dim + self.num_layers * dim * 2 * self.ffn_multiple * dim
        frame += self.num_layers * dim * self.kernel_size + dim * 2 * bins + 2 * bins * self.window
        return 2.0 * frame * num_frames * batch_size


class ConvNeXtBlock(nnx.Module):
    """Depthwise convolution -> LayerNorm -> linear -> GELU -> linear -> scale, with a residual (Liu et al. 2022)."""

    def __init__(self, config: VocosConfig, *, rngs: nnx.Rngs):
        dim, inner = config.dim, config.ffn_multiple * config.dim
        taps = jax.nn.initializers.normal(config.kernel_size**-0.5)
        self.depthwise = parameter(rngs.params(), (config.kernel_size, dim), (None, "embed"), taps)
        zeros, scale = jax.nn.initializers.zeros, jax.nn.initializers.constant(1 / config.num_layers)
        self.bias = parameter(rngs.params(), (dim,), ("embed",), zeros, decays=False)
        self.norm = LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.expand = Linear((dim,), (inner,), ("embed", "mlp"), rngs=rngs)
        self.contract = Linear((inner,), (dim,), ("mlp", "embed"), rngs=rngs)
        self.scale = parameter(rngs.params(), (dim,), ("embed",), scale, decays=False)

    def __call__(self, x: Float[Array, "batch time dim"], segments: Segments) -> Float[Array, "batch time dim"]:
        taps = self.depthwise[...].astype(x.dtype)
        y = depthwise(x, taps, None, taps.shape[0] // 2) + self.bias[...].astype(x.dtype)
        y = self.contract(jax.nn.gelu(self.expand(self.norm(y))))
        # The next block's convolution reads the frames beyond the utterance.
        return masked(x + self.scale[...].astype(x.dtype) * y, segments)


class Vocos(Vocoder):
    """The vocoder; frame t of the mel spectrogram is centred at sample t * hop, and its samples follow from there."""

    def __init__(self, config: VocosConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.embed = RowConvolution(config.input_dim, config.dim, config.kernel_size, rngs=rngs)
        self.embed_norm = LayerNorm(config.dim, epsilon=1e-6, rngs=rngs)
        self.layers = stack(lambda rngs: ConvNeXtBlock(config, rngs=rngs), config.num_layers, rngs)
        self.norm = LayerNorm(config.dim, epsilon=1e-6, rngs=rngs)
        self.head = Linear((config.dim,), (2, config.window // 2 + 1), ("embed", None, None), rngs=rngs)

    def __call__(self, mel_BxTxF: Float[Array, "batch time bins"], lengths: Lengths) -> Float32[Array, "batch samples"]:
        """Computes waveforms.

        Args:
          mel_BxTxF: log-mel spectrograms.
          lengths: frames per row, or segments with one utterance a row.

        Returns:
          Samples in [-1, 1], `hop` for each frame; 0 beyond the utterances.
        """
        config, segments = self.config, one_a_row(lengths)
        x = self.normalized(shard_batch_dim(mel_BxTxF), segments)
        x = masked(self.embed_norm(self.embed(x)), segments)
        x, _ = scan_layers(self.layers, lambda layer, x, _: (layer(x, segments), None), x, None, "none")
        parts = jnp.split(self.head(self.norm(x)).astype(jnp.float32), 2, axis=-2)
        log_magnitude, phase = (part.squeeze(-2) for part in parts)
        magnitude = jnp.minimum(jnp.exp(jnp.minimum(log_magnitude, 10)), _LARGEST)
        real, imaginary = magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)
        length = real.shape[1] * config.hop  # the samples of the last frame too, which two of its windows reach
        audio = istft(real, imaginary, config.hop, length=length, lengths=segments)
        return clip_forward(masked(audio, segments, config.hop))
