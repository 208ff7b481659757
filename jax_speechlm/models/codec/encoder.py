"""SEANet encoder: strided convolutions over samples, then an LSTM (Tagliasacchi et al. 2020; Defossez et al. 2022).

Every convolution reflects an utterance at its own ends, wherever the row ends, so that padding changes no result.
"""

from collections.abc import Iterable

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_speechlm.models.codec.config import WavTokenizerConfig
from jax_speechlm.nn.convolution import ReflectedConvolution
from jax_speechlm.nn.recurrence import LSTM


def numbered(modules: Iterable[nnx.Module]) -> nnx.Dict:
    """Returns modules as parts of another, named by their numbers; parameters are nested dicts with string keys."""
    return nnx.Dict({str(number): module for number, module in enumerate(modules)})


def in_order(modules: nnx.Dict) -> list[nnx.Module]:
    """Returns the modules of `numbered`."""
    return [modules[str(number)] for number in range(len(modules))]


class ResidualBlock(nnx.Module):
    """ELU -> dilated convolution -> ELU -> convolution of one tap, plus a shortcut."""

    def __init__(self, config: WavTokenizerConfig, dim: int, dilation: int, *, rngs: nnx.Rngs):
        inner = dim // config.compress
        self.dilated = ReflectedConvolution(dim, inner, config.residual_kernel_size, dilation=dilation, rngs=rngs)
        self.pointwise = ReflectedConvolution(inner, dim, 1, rngs=rngs)
        self.shortcut = ReflectedConvolution(dim, dim, 1, rngs=rngs) if config.conv_shortcut else None

    def __call__(self, x: Float[Array, "batch time dim"], length: Int[Array, " batch"]) -> Float[Array, "..."]:
        y, _ = self.dilated(jax.nn.elu(x), length)
        y, _ = self.pointwise(jax.nn.elu(y), length)
        return y + (x if self.shortcut is None else self.shortcut(x, length)[0])


class Stage(nnx.Module):
    """Residual blocks, and a strided convolution to twice the channels."""

    def __init__(self, config: WavTokenizerConfig, dim: int, stride: int, *, rngs: nnx.Rngs):
        dilations = (config.dilation_growth**block for block in range(config.num_residual_layers))
        self.blocks = numbered(ResidualBlock(config, dim, dilation, rngs=rngs) for dilation in dilations)
        self.down = ReflectedConvolution(dim, 2 * dim, 2 * stride, stride, rngs=rngs)


class Encoder(nnx.Module):
    """Waveforms to one vector for each hop."""

    def __init__(self, config: WavTokenizerConfig, *, rngs: nnx.Rngs):
        dims = [config.num_filters * 2**stage for stage in range(len(config.strides) + 1)]
        self.first = ReflectedConvolution(1, dims[0], config.kernel_size, rngs=rngs)
        stages = zip(dims, config.strides, strict=False)
        self.stages = numbered(Stage(config, dim, stride, rngs=rngs) for dim, stride in stages)
        self.lstm = numbered(LSTM(dims[-1], rngs=rngs) for _ in range(config.num_lstm_layers))
        self.last = ReflectedConvolution(dims[-1], config.latent_dim, config.last_kernel_size, rngs=rngs)

    def __call__(
        self, audio: Float[Array, "batch samples"], length: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch codes latent"], Int[Array, " batch"]]:
        """Returns vectors, arbitrary at padding, and their number in each row."""
        x, length = self.first(audio[..., None], length)
        for stage in in_order(self.stages):
            for block in in_order(stage.blocks):
                x = block(x, length)
            x, length = stage.down(jax.nn.elu(x), length)
        y = x
        for layer in in_order(self.lstm):
            y = layer(y)
        return self.last(jax.nn.elu(x + y), length)
