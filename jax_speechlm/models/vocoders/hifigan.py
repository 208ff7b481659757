"""HiFi-GAN's generator in the form of Hugging Face's `SpeechT5HifiGan` and `FastSpeech2ConformerHifiGan`.

Transposed convolutions raise the rate from frames to samples; after each, residual blocks of dilated convolutions with
several kernel sizes are averaged. With the same weights it computes the same samples as those classes
(`jax_speechlm.interop.hf.hifigan` converts the weights). Reference: Kong et al. 2020, "HiFi-GAN: generative adversarial
networks for efficient and high fidelity speech synthesis".

The default, at 80 bins and hop 256, has 499,521 parameters; `V1` of the reference, at hop 256, 13,926,177.
"""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Float32

from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.models.vocoders.base import Context, Vocoder, VocoderConfig, masked, one_a_row
from jax_speechlm.nn.convolution import RowConvolution
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.stft import overlap_add
from jax_speechlm.parallel.mesh import shard_batch_dim

Counts = Annotated[tuple[pydantic.PositiveInt, ...], pydantic.Field(min_length=1)]
_ENDS = 7  # taps of the first and the last convolution
_LAST_SLOPE = 0.01  # of the last leaky ReLU, whatever the others have


class HifiGanConfig(VocoderConfig):
    """Shape of the generator.

    Attributes:
      dim: channels at frame rate; each transposed convolution halves them.
      upsample_rates: factors of the rate, by transposed convolution; their product is `hop`.
      upsample_kernels: their taps, each as much above its rate as an even number.
      block_kernels: taps of the residual blocks after each of them; odd.
      block_dilations: distances between the taps of the convolutions of each block.
      slope: of leaky ReLU below 0.
      normalize: whether the spectrogram is normalised by `mean` and `scale`.
    """

    kind: Literal["hifigan"] = "hifigan"
    dim: pydantic.PositiveInt = 128
    upsample_rates: Counts = (8, 8, 4)
    upsample_kernels: Counts = (16, 16, 8)
    block_kernels: Counts = (3, 5)
    block_dilations: tuple[Counts, ...] = ((1, 3, 5), (1, 3, 5))
    slope: pydantic.NonNegativeFloat = 0.1
    normalize: bool = True

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self):
        if len(self.upsample_rates) != len(self.upsample_kernels):
            raise ValueError("upsample_rates and upsample_kernels must have one entry for each transposed convolution")
        if len(self.block_kernels) != len(self.block_dilations):
            raise ValueError("block_kernels and block_dilations must have one entry for each residual block")
        for rate, kernel in self.stages:
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"an upsampling kernel of {kernel} taps does not give {rate} samples for each: add 1")
        if even := [kernel for kernel in self.block_kernels if kernel % 2 == 0]:
            raise ValueError(f"block_kernels must be odd, so that they have a middle tap; got {even[0]}")
        if self.dim % 2**self.num_layers:
            raise ValueError(f"dim ({self.dim}) is not divisible by 2 for each of the {self.num_layers} upsamplings")
        return self

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Rate and kernel of each transposed convolution."""
        return list(zip(self.upsample_rates, self.upsample_kernels, strict=True))

    @property
    def blocks(self) -> list[tuple[int, tuple[int, ...]]]:
        """Kernel and dilations of each residual block of a stage."""
        return list(zip(self.block_kernels, self.block_dilations, strict=True))

    @property
    def num_layers(self) -> int:
        """Transposed convolutions."""
        return len(self.upsample_rates)

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.upsample_rates)

    @property
    def context_frames(self) -> Context:
        """Frames before and after a frame that its samples depend on."""
        before = after = _ENDS // 2  # at the present rate, from the samples to the frames
        block = max(sum(kernel // 2 * (each + 1) for each in dilations) for kernel, dilations in self.blocks)
        for rate, kernel in reversed(self.stages):
            cut = (kernel - rate) // 2
            before = (before + block + kernel - 1 - cut) // rate
            after = -(-(after + block + cut) // rate)
        return Context(before + _ENDS // 2, after + _ENDS // 2)

    def forward_flops(self, num_frames: int, batch_size: int) -> float:
        """Returns the FLOPs of the matrix products of one forward pass."""
        channels, total, rate = self.dim, _ENDS * self.input_dim * self.dim, 1
        for factor, kernel in self.stages:
            total += rate * channels * kernel * channels // 2
            channels, rate = channels // 2, rate * factor
            taps = sum(2 * kernel * len(dilations) for kernel, dilations in self.blocks)
            total += rate * taps * channels**2
        return 2.0 * (total + rate * _ENDS * channels) * num_frames * batch_size


V1 = HifiGanConfig(
    dim=512,
    upsample_rates=(8, 8, 2, 2),
    upsample_kernels=(16, 16, 4, 4),
    block_kernels=(3, 7, 11),
    block_dilations=((1, 3, 5),) * 3,
)
"""The largest generator of Kong et al."""


class Upsampling(nnx.Module):
    """Transposed convolution, x [B, T, inputs] -> [B, T * rate, outputs]: a matrix product and overlap-add."""

    def __init__(self, dim_in: int, dim_out: int, rate: int, kernel_size: int, *, rngs: nnx.Rngs):
        self.rate = rate
        kernel = jax.nn.initializers.normal((dim_in * kernel_size / rate) ** -0.5)
        self.kernel = parameter(rngs.params(), (dim_in, kernel_size, dim_out), ("embed", None, "mlp"), kernel)
        self.bias = parameter(rngs.params(), (dim_out,), ("mlp",), jax.nn.initializers.zeros, decays=False)

    def __call__(self, x: Float[Array, "batch time inputs"]) -> Float[Array, "batch samples outputs"]:
        batch, num_frames, rate = *x.shape[:2], self.rate
        kernel = self.kernel[...].astype(x.dtype)
        _, taps, dim_out = kernel.shape
        parts = jnp.tensordot(x, kernel, axes=1).reshape(batch, num_frames, taps * dim_out)
        y = overlap_add(parts, rate * dim_out).reshape(batch, -1, dim_out)
        return y[:, (taps - rate) // 2 :][:, : num_frames * rate] + self.bias[...].astype(x.dtype)


class ResidualBlock(nnx.Module):
    """Pairs of a dilated and a plain convolution, each with a leaky ReLU before it, around a residual."""

    def __init__(self, dim: int, kernel: int, dilations: tuple[int, ...], slope: float, *, rngs: nnx.Rngs):
        self.slope, self.count = slope, len(dilations)
        self.dilated = nnx.Dict(
            {
                f"layer{i}": RowConvolution(dim, dim, kernel, dilation=each, rngs=rngs)
                for i, each in enumerate(dilations)
            }
        )
        self.plain = nnx.Dict(
            {f"layer{i}": RowConvolution(dim, dim, kernel, gain=0.5, rngs=rngs) for i in range(len(dilations))}
        )

    def __call__(
        self, x: Float[Array, "batch time dim"], segments: Segments, rate: int
    ) -> Float[Array, "batch time dim"]:
        for i in range(self.count):
            y = masked(self.dilated[f"layer{i}"](jax.nn.leaky_relu(x, self.slope)), segments, rate)
            x = x + masked(self.plain[f"layer{i}"](jax.nn.leaky_relu(y, self.slope)), segments, rate)
        return x


class HifiGan(Vocoder):
    """The generator."""

    def __init__(self, config: HifiGanConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.first = RowConvolution(config.input_dim, config.dim, _ENDS, rngs=rngs)
        ups, blocks, channels = {}, {}, config.dim
        for i, (rate, kernel) in enumerate(config.stages):
            ups[f"layer{i}"] = Upsampling(channels, channels // 2, rate, kernel, rngs=rngs)
            channels //= 2
            for j, (size, dilations) in enumerate(config.blocks):
                blocks[f"layer{i * len(config.blocks) + j}"] = ResidualBlock(
                    channels, size, dilations, config.slope, rngs=rngs
                )
        self.upsamplings, self.blocks = nnx.Dict(ups), nnx.Dict(blocks)
        self.last = RowConvolution(channels, 1, _ENDS, gain=0.1, rngs=rngs)

    def __call__(self, mel_BxTxF: Float[Array, "batch time bins"], lengths: Lengths) -> Float32[Array, "batch samples"]:
        """Computes waveforms.

        Args:
          mel_BxTxF: log-mel spectrograms.
          lengths: frames per row, or segments with one utterance a row.

        Returns:
          Samples in [-1, 1], `hop` for each frame; 0 beyond the utterances.
        """
        config, segments, rate = self.config, one_a_row(lengths), 1
        mel = shard_batch_dim(mel_BxTxF)
        x = self.normalized(mel, segments) if config.normalize else masked(mel, segments).astype(config.dtype)
        x = masked(self.first(x), segments)
        for i, (factor, _) in enumerate(config.stages):
            rate *= factor
            x = masked(self.upsamplings[f"layer{i}"](jax.nn.leaky_relu(x, config.slope)), segments, rate)
            first = i * len(config.blocks)
            outputs = [self.blocks[f"layer{first + j}"](x, segments, rate) for j in range(len(config.blocks))]
            x = sum(outputs) / len(outputs)
        x = self.last(jax.nn.leaky_relu(x, _LAST_SLOPE))
        return masked(jnp.tanh(x[..., 0].astype(jnp.float32)), segments, rate)
