"""x-vectors: one vector that says who speaks, from an encoder's frames by way of their mean and deviation.

Reference: Snyder et al. 2018, "X-vectors: robust DNN embeddings for speaker recognition". The layers are those of
`Wav2Vec2BertForXVector` in transformers, which a trained head is exported as.
"""

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear
from jax_speechlm.parallel.mesh import shard_batch_dim


class XVectorConfig(Config):
    """Shape of the head: its layers over time are those of Snyder et al., which have features where we have an encoder.

    Attributes:
      channels, kernels, dilations: of each layer over time: its outputs, the frames that it sees, and the frames from
        one of those to the next.
      dim: of the vector.
    """

    channels: tuple[pydantic.PositiveInt, ...] = (512, 512, 512, 512, 1500)
    kernels: tuple[pydantic.PositiveInt, ...] = (5, 3, 3, 1, 1)
    dilations: tuple[pydantic.PositiveInt, ...] = (1, 2, 3, 1, 1)
    dim: pydantic.PositiveInt = 512

    @pydantic.model_validator(mode="after")
    def _layers_are_whole(self):
        if not len(self.channels) == len(self.kernels) == len(self.dilations) > 0:
            raise ValueError(
                f"channels, kernels and dilations must have one entry a layer, got {len(self.channels)}, "
                f"{len(self.kernels)} and {len(self.dilations)}"
            )
        return self

    @property
    def shortest(self) -> int:
        """Frames without which there is no vector: what the layers see, and one more to have a deviation."""
        return sum((k - 1) * d for k, d in zip(self.kernels, self.dilations, strict=True)) + 2

    @property
    def layers(self) -> list[tuple[int, int, int, int]]:
        """Inputs, outputs, kernel and dilation of each layer over time."""
        inputs = (self.channels[0], *self.channels[:-1])
        return list(zip(inputs, self.channels, self.kernels, self.dilations, strict=True))

    def forward_flops(self, dim: int, num_frames: int, batch_size: int) -> float:
        """FLOPs of the matrix products over so many frames a row, of an encoder's dimension `dim`."""
        each = dim * self.channels[0] + sum(kernel * i * o for i, o, kernel, _ in self.layers)
        return 2.0 * batch_size * (num_frames * each + (2 * self.channels[-1] + self.dim) * self.dim)


class XVector(nnx.Module):
    """From an encoder's frames to a vector, and from that to a cosine for each speaker of the training data."""

    def __init__(self, config: XVectorConfig, dim: int, num_speakers: int, *, rngs: nnx.Rngs):
        self.config = config
        size = (config.dim,)
        self.projector = Linear((dim,), config.channels[:1], ("embed", "mlp"), rngs=rngs)
        self.tdnn = nnx.Dict(
            {
                f"layer{number}": Linear((kernel * i,), (o,), ("embed", "mlp"), rngs=rngs)
                for number, (i, o, kernel, _) in enumerate(config.layers)
            }
        )
        self.embedding = Linear((2 * config.channels[-1],), size, ("mlp", "embed"), rngs=rngs)
        self.output = Linear(size, size, ("embed", None), rngs=rngs)
        directions = jax.nn.initializers.normal(1.0)  # their lengths do not matter
        self.speakers = parameter(rngs.params(), (config.dim, num_speakers), ("embed", None), directions)

    def __call__(
        self, x_BxTxD: Float[Array, "batch time dim"], length_B: Int[Array, " batch"]
    ) -> Float[Array, "batch out"]:
        """The vector of each row. One of fewer than `config.shortest` frames is given that of silence: see to them."""
        missing = max(0, self.config.shortest - x_BxTxD.shape[1])
        x = self.projector(jnp.pad(shard_batch_dim(x_BxTxD), ((0, 0), (0, missing), (0, 0))))
        for number, (_, _, kernel, dilation) in enumerate(self.config.layers):
            span = x.shape[1] - (kernel - 1) * dilation
            taps = [x[:, tap * dilation : tap * dilation + span] for tap in range(kernel)]
            # by name: in the dict's own order layer10 comes before layer2
            x = jax.nn.relu(self.tdnn[f"layer{number}"](jnp.concatenate(taps, axis=-1)))
        inside_BxT = frame_mask(length_B - (self.config.shortest - 2), x.shape[1])
        return self.embedding(_mean_and_deviation(x, inside_BxT).astype(x_BxTxD.dtype))

    def cosines(self, vector_BxE: Float[Array, "batch dim"]) -> Float[Array, "batch speakers"]:
        """How alike each row and each speaker are, from -1 to 1."""
        out_BxE = _unit_length(self.output(vector_BxE).astype(jnp.float32), axis=1)
        return out_BxE @ _unit_length(self.speakers[...].astype(jnp.float32), axis=0)


def _mean_and_deviation(x_BxTxC: Array, inside_BxT: Array) -> Float[Array, "batch twice_channels"]:
    """Of each channel over a row's frames; the deviation of a sample, as torch's. 0 where there is none."""
    inside, x = inside_BxT[..., None], x_BxTxC.astype(jnp.float32)
    count_B = inside_BxT.sum(1)[:, None]
    mean_BxC = jnp.sum(jnp.where(inside, x, 0), axis=1) / jnp.maximum(count_B, 1)
    square_BxC = jnp.sum(jnp.where(inside, jnp.square(x - mean_BxC[:, None]), 0), axis=1)
    variance_BxC = square_BxC / jnp.maximum(count_B - 1, 1)
    varies = variance_BxC > 0  # a root has no slope at 0, where every channel is that no frame excites
    deviation_BxC = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance_BxC, 1)), 0)
    return jnp.concatenate([mean_BxC, deviation_BxC], axis=-1)


def _unit_length(x: Array, axis: int) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + 1e-12)
