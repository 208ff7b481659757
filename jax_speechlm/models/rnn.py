"""A recurrent encoder: a stack of LSTM or GRU layers, in one direction or both (Graves and Schmidhuber 2005)."""

from functools import partial
from typing import Literal

import pydantic
from flax import nnx
from jaxtyping import Array, Float

from jax_speechlm.core.segments import Segments
from jax_speechlm.models.encoder_base import FeatureEncoder, FeatureEncoderConfig
from jax_speechlm.nn.functional import Remat
from jax_speechlm.nn.layers import FrameKeys, dropout
from jax_speechlm.nn.recurrence import GRU, LSTM, both_directions
from jax_speechlm.parallel.mesh import shard_batch_and_time, shard_batch_dim


class RNNConfig(FeatureEncoderConfig):
    """The shape of a recurrent encoder.

    Attributes:
      input_dim: features a frame, after stacking.
      cell: "lstm" or "gru".
      bidirectional: whether half of each layer's width runs from the end of an utterance to its beginning.
      dim: width of a layer's output; even if bidirectional.
      num_layers: recurrent layers.
      dropout: rate on the input of the layers and after each.
      remat: activations that the forward pass keeps for the backward pass (see `functional.Remat`).
      dtype: compute type; parameters, an LSTM's cell, softmax and the output are float32.
    """

    kind: Literal["rnn"] = "rnn"
    input_dim: pydantic.PositiveInt = 160
    cell: Literal["lstm", "gru"] = "lstm"
    bidirectional: bool = True
    dim: pydantic.PositiveInt = 256
    num_layers: pydantic.PositiveInt = 2
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _halves_are_whole(self):
        if self.dim % self.num_directions:
            raise ValueError(f"dim ({self.dim}) must be even: each direction has half of it")
        return self

    @property
    def num_directions(self) -> int:
        """Recurrences of a layer."""
        return 2 if self.bidirectional else 1


_CELLS = {"lstm": LSTM, "gru": GRU}


class RNNLayer(nnx.Module):
    """A recurrence over each utterance, or one in either direction."""

    def __init__(self, config: RNNConfig, *, rngs: nnx.Rngs):
        self.rate = config.dropout
        cell = partial(_CELLS[config.cell], config.dim // config.num_directions, config.dim)
        self.forward = cell(rngs=rngs)
        self.backward = cell(rngs=rngs) if config.bidirectional else None

    def __call__(
        self, x: Float[Array, "batch time dim"], segments: Segments, context: None, keys: FrameKeys | None
    ) -> Float[Array, "batch time dim"]:
        """Returns the hidden states of the layer."""
        del context
        x = shard_batch_dim(x)  # a recurrence takes the frames of a row one after the other
        if self.backward is None:
            x = self.forward(x, segments.position(x.shape[1]) == 0)
        else:
            x = both_directions(self.forward, self.backward, x, segments)
        return shard_batch_and_time(dropout(x, self.rate, keys))


class RNN(FeatureEncoder):
    """Encodes stacked log-mel frames by recurrences."""

    def __init__(self, config: RNNConfig, *, rngs: nnx.Rngs):
        super().__init__(config, partial(RNNLayer, config), rngs=rngs)


def forward_flops(config: RNNConfig, num_frames: int, batch_size: int) -> float:
    """Returns the FLOPs of the matrix products of one forward pass, padding included; a multiply-add is two."""
    dim, num_gates = config.dim, {"lstm": 4, "gru": 3}[config.cell]
    layer = num_gates * dim * (dim + dim // config.num_directions)  # of each direction's input and state
    return 2.0 * (config.input_dim * dim + config.num_layers * layer) * num_frames * batch_size
