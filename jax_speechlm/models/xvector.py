"""x-vectors: a speaker embedding from the mean and standard deviation of an encoder's frames.

Reference: Snyder et al. 2018, "X-vectors: robust DNN embeddings for speaker recognition". The layers equal
`Wav2Vec2BertForXVector` of transformers, which a trained head is exported to.
"""

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear, unit_length
from jax_speechlm.parallel.mesh import shard_batch_dim


class XVectorConfig(Config):
    """Shape of the head. Its layers over time follow Snyder et al., on an encoder's frames instead of features.

    Attributes:
      channels: outputs, by layer over time.
      kernels: taps, by layer.
      dilations: distance in frames between taps, by layer.
      dim: values of the embedding.
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
        """Fewest frames with an embedding: the receptive field, and one more frame for a standard deviation."""
        return sum((k - 1) * d for k, d in zip(self.kernels, self.dilations, strict=True)) + 2

    @property
    def layers(self) -> list[tuple[int, int, int, int]]:
        """Inputs, outputs, kernel and dilation, by layer over time."""
        inputs = (self.channels[0], *self.channels[:-1])
        return list(zip(inputs, self.channels, self.kernels, self.dilations, strict=True))

    def forward_flops(self, dim: int, num_frames: int, batch_size: int) -> float:
        """Returns the FLOPs of the matrix products over `num_frames` frames a row of width `dim`."""
        frame = dim * self.channels[0] + sum(kernel * i * o for i, o, kernel, _ in self.layers)
        return 2.0 * batch_size * (num_frames * frame + (2 * self.channels[-1] + self.dim) * self.dim)


class XVector(nnx.Module):
    """Maps an encoder's frames to an embedding, and that to a cosine for each speaker of the training data."""

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
        directions = jax.nn.initializers.normal(1.0)  # only their directions matter
        self.speakers = parameter(rngs.params(), (config.dim, num_speakers), ("embed", None), directions)

    def __call__(
        self, x_BxTxD: Float[Array, "batch time dim"], lengths: Lengths
    ) -> Float[Array, "batch utterances out"]:
        """Computes one embedding per utterance; a row whose length is given has one.

        Utterances of fewer than `config.shortest` frames all get the same, meaningless embedding; the caller has to
        exclude them.
        """
        missing = max(0, self.config.shortest - x_BxTxD.shape[1])
        x = self.projector(jnp.pad(shard_batch_dim(x_BxTxD), ((0, 0), (0, missing), (0, 0))))
        for number, (_, _, kernel, dilation) in enumerate(self.config.layers):
            span = x.shape[1] - (kernel - 1) * dilation
            taps = [x[:, tap * dilation : tap * dilation + span] for tap in range(kernel)]
            # by name, because the dict sorts layer10 before layer2
            x = jax.nn.relu(self.tdnn[f"layer{number}"](jnp.concatenate(taps, axis=-1)))
        # The layers look ahead only, so those before an utterance's last outputs have all their inputs inside it.
        segments = Segments.of(lengths)
        outputs = Segments(segments.start, jnp.maximum(segments.length - (self.config.shortest - 2), 0))
        return self.embedding(_mean_and_deviation(x, outputs).astype(x_BxTxD.dtype))

    def cosines(self, vectors: Float[Array, "*utterances dim"]) -> Float[Array, "*utterances speakers"]:
        """Returns the cosine similarity of every embedding and speaker."""
        out = unit_length(self.output(vectors).astype(jnp.float32))
        return out @ unit_length(self.speakers[...].astype(jnp.float32), axis=0)


def _mean_and_deviation(
    x_BxTxC: Float[Array, "batch time channels"], segments: Segments
) -> Float[Array, "batch utterances twice_channels"]:
    """Returns mean and sample standard deviation per channel over an utterance's frames; 0 without frames."""
    x_BxTxC = x_BxTxC.astype(jnp.float32)
    mean_BxNxC = segments.mean(x_BxTxC)
    square_BxNxC = segments.sum(jnp.square(x_BxTxC - segments.spread(mean_BxNxC, x_BxTxC.shape[1])))
    variance_BxNxC = square_BxNxC / jnp.maximum(segments.length - 1, 1)[..., None]
    varies = variance_BxNxC > 0  # the gradient of a root is infinite at 0, the variance of inactive channels
    deviation_BxNxC = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance_BxNxC, 1)), 0)
    return jnp.concatenate([mean_BxNxC, deviation_BxNxC], axis=-1)
