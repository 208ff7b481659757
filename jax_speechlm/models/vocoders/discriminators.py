"""Discriminators of waveforms: one for each period of samples, and one for each resolution of the spectrum.

References: Kong et al. 2020, "HiFi-GAN", section 2.3 (multi-period); Jang et al. 2021, "UnivNet" (multi-resolution
spectrograms). Weights are plain, without weight normalisation.
"""

from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from jax_speechlm.core.config import Config
from jax_speechlm.nn.convolution import RowConvolution
from jax_speechlm.nn.stft import stft

_SLOPE = 0.1  # of leaky ReLU below 0
Judgement = tuple[Float[Array, "rows _"], list[Float[Array, "rows _"]]]
"""Scores of the parts of each row, high for what looks recorded; and the hidden states of every layer."""


class DiscriminatorConfig(Config):
    """Shape of the discriminators.

    Attributes:
      periods: samples from one to the next of those that a discriminator sees together.
      channels: outputs of the layers of a discriminator of a period; each but the last has a stride of 3.
      windows: lengths of the Fourier transforms of the spectral discriminators, multiples of 4 samples.
      spectral_channels: outputs of each of their layers.
      spectral_layers: layers, of which all but the first have a stride of 2 over frequencies.
    """

    periods: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = (2, 3, 5, 7, 11)
    channels: Annotated[tuple[pydantic.PositiveInt, ...], pydantic.Field(min_length=1)] = (16, 32, 64, 128)
    windows: tuple[Annotated[int, pydantic.Field(ge=4, multiple_of=4)], ...] = (512, 1024, 2048)
    spectral_channels: pydantic.PositiveInt = 16
    spectral_layers: pydantic.PositiveInt = 4

    @pydantic.model_validator(mode="after")
    def _has_some(self):
        if not self.periods and not self.windows:
            raise ValueError("periods and windows are both empty: name at least one discriminator")
        return self


class PeriodDiscriminator(nnx.Module):
    """Convolutions over every `period`-th sample."""

    def __init__(self, period: int, channels: Sequence[int], *, rngs: nnx.Rngs):
        self.period = period
        sizes = [1, *channels]
        strides = [3] * (len(channels) - 1) + [1]
        self.layers = nnx.Dict(
            {
                f"layer{i}": RowConvolution(sizes[i], sizes[i + 1], 5, stride=stride, rngs=rngs)
                for i, stride in enumerate(strides)
            }
        )
        self.out = RowConvolution(channels[-1], 1, 3, rngs=rngs)

    def __call__(self, audio: Float[Array, "rows samples"]) -> Judgement:
        rows, period, features = len(audio), self.period, []
        x = jnp.pad(audio, ((0, 0), (0, -audio.shape[1] % period))).reshape(rows, -1, period)
        x = jnp.swapaxes(x, 1, 2).reshape(rows * period, -1, 1)
        for i in range(len(self.layers)):
            x = jax.nn.leaky_relu(self.layers[f"layer{i}"](x), _SLOPE)
            features.append(x.reshape(rows, -1))
        return self.out(x).reshape(rows, -1), features


class SpectralDiscriminator(nnx.Module):
    """Convolutions over frames and frequencies of the magnitudes of a Fourier transform."""

    def __init__(self, window: int, channels: int, num_layers: int, *, rngs: nnx.Rngs):
        self.window = window
        sizes = [1] + [channels] * num_layers
        self.layers = nnx.Dict(
            {
                f"layer{i}": RowConvolution(sizes[i], channels, (3, 9), stride=1 if i == 0 else 2, rngs=rngs)
                for i in range(num_layers)
            }
        )
        self.out = RowConvolution(channels, 1, (3, 3), rngs=rngs)

    def __call__(self, audio: Float[Array, "rows samples"]) -> Judgement:
        real, imaginary = stft(audio, self.window, self.window // 4, mode="constant")
        x, features = jnp.sqrt(jnp.square(real) + jnp.square(imaginary) + 1e-9)[..., None], []
        for i in range(len(self.layers)):
            x = jax.nn.leaky_relu(self.layers[f"layer{i}"](x), _SLOPE)
            features.append(x.reshape(len(x), -1))
        return self.out(x).reshape(len(x), -1), features


class Discriminators(nnx.Module):
    """All discriminators of a config."""

    def __init__(self, config: DiscriminatorConfig, *, rngs: nnx.Rngs):
        self.period = nnx.Dict(
            {f"period{n}": PeriodDiscriminator(n, config.channels, rngs=rngs) for n in config.periods}
        )
        layers = config.spectral_channels, config.spectral_layers
        self.spectral = nnx.Dict({f"window{n}": SpectralDiscriminator(n, *layers, rngs=rngs) for n in config.windows})

    def __call__(
        self, audio: Float[Array, "rows samples"]
    ) -> tuple[list[Float[Array, "rows _"]], list[Float[Array, "rows _"]]]:
        """Returns the scores of each discriminator, and the hidden states of all layers of all of them.

        A row's results depend on its samples only, its padding included, so all rows need one length.
        """
        scores, features = [], []
        for part in (*self.period.values(), *self.spectral.values()):
            score, hidden = part(audio)
            scores.append(score)
            features += hidden
        return scores, features
