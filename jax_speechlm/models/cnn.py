"""A convolutional encoder: a stack of residual convolutions over time, each LayerNorm -> convolution -> ReLU.

A classifier with it is the small convolutional network that keyword spotting and command recognition begin with
(Sainath and Parada 2015), on the features that the other encoders take.
"""

from functools import partial
from typing import Literal

import jax
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from jax_speechlm.core.segments import Segments
from jax_speechlm.models.encoder_base import FeatureEncoder, FeatureEncoderConfig
from jax_speechlm.nn.convolution import Convolution
from jax_speechlm.nn.functional import Remat
from jax_speechlm.nn.layers import FrameKeys, LayerNorm, dropout
from jax_speechlm.parallel.mesh import shard_batch_and_time


class CNNConfig(FeatureEncoderConfig):
    """The shape of a convolutional encoder.

    Attributes:
      input_dim: features a frame, after stacking.
      dim: width of the residual stream.
      num_layers: convolutions.
      kernel_size: taps of each, centred on the present frame; odd.
      dropout: rate on the input of the layers and after each convolution.
      remat: activations that the forward pass keeps for the backward pass (see `functional.Remat`).
      dtype: compute type; parameters, norms, softmax and the output are float32.
    """

    kind: Literal["cnn"] = "cnn"
    input_dim: pydantic.PositiveInt = 160
    dim: pydantic.PositiveInt = 128
    num_layers: pydantic.PositiveInt = 4
    kernel_size: pydantic.PositiveInt = 5
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.field_validator("kernel_size")
    @classmethod
    def _has_a_middle(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"kernel_size ({value}) must be odd: its middle is the present frame")
        return value


class CNNLayer(nnx.Module):
    """Adds to the residual stream its normalised convolution after a ReLU."""

    def __init__(self, config: CNNConfig, *, rngs: nnx.Rngs):
        self.rate = config.dropout
        self.norm = LayerNorm(config.dim, rngs=rngs)
        axes = ("embed", None)
        self.convolution = Convolution(config.dim, config.dim, config.kernel_size, axes, gain=2**0.5, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], segments: Segments, context: None, keys: FrameKeys | None
    ) -> Float[Array, "batch time dim"]:
        """Returns the residual stream after the layer."""
        del context
        y = jax.nn.relu(self.convolution(self.norm(x), segments))
        return shard_batch_and_time(x + dropout(y, self.rate, keys))


class CNN(FeatureEncoder):
    """Encodes stacked log-mel frames by convolutions."""

    def __init__(self, config: CNNConfig, *, rngs: nnx.Rngs):
        super().__init__(config, partial(CNNLayer, config), rngs=rngs)


def forward_flops(config: CNNConfig, num_frames: int, batch_size: int) -> float:
    """Returns the FLOPs of the matrix products of one forward pass, padding included; a multiply-add is two."""
    frame = (config.input_dim + config.num_layers * config.kernel_size * config.dim) * config.dim
    return 2.0 * frame * num_frames * batch_size
