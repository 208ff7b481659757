"""FastConformer: convolutions cut the frame rate to an eighth before a conformer's layers (Rekesh et al. 2023).

Given the same weights it gives the same numbers as Hugging Face's `ParakeetEncoder` (`jax_speechlm.interop.hf.parakeet`
maps them both ways). Where that has batch norm this has a scale and an offset a channel, which is what batch norm is in
evaluation, so that nothing depends on the batch.

Parameters at 80 mel bins:

| size | layers | dim  | heads | channels | parameters    |
|------|-------:|-----:|------:|---------:|--------------:|
| XS   |      6 |   96 |     4 |       32 |     1,384,032 |
| S    |     16 |  176 |     4 |      176 |    12,384,944 |
| L    |     17 |  512 |     8 |      256 |   108,753,408 |
| 0.6B |     24 | 1024 |     8 |      256 |   607,724,544 |
| 1.1B |     42 | 1024 |     8 |      256 | 1,061,446,656 |

0.6B and 1.1B are the shapes of parakeet-ctc-0.6b and parakeet-ctc-1.1b; XS is for laptops.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.models.conformer import FeedForward, run_layers
from jax_speechlm.nn.attention.relative import PositionalAttention, distance_sinusoids
from jax_speechlm.nn.functional import Remat, bind, parameter, stack
from jax_speechlm.nn.layers import Count, Keys, LayerNorm, Linear, centred_depthwise, dropout, split_keys
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import shard_batch_and_time


class FastConformerConfig(Config):
    """The shape of a FastConformer encoder.

    Attributes:
      input_dim: mel bins; a multiple of `subsampling`. A feature vector is one frame of them, 10 ms: `stack` is 1.
      dim: width of the residual stream; even, and a multiple of `num_heads`.
      num_layers: conformer blocks.
      num_heads: attention heads.
      ffn_multiple: inner width of the feed-forward modules over `dim`; their product, rounded.
      kernel_size: frames that the depthwise convolution sees, as many behind the present one as before: odd.
      subsampling: feature vectors that become one frame: 8 gives frames of 80 ms, 4 of 40.
      channels: of the convolutions that subsample.
      scale_input: whether what enters the layers is multiplied by the root of `dim`.
      bias: whether the linear maps of the layers add one.
      dropout: rate on what enters the layers, inside and after each feed-forward, after attention and convolution.
      attention_dropout: rate on the attention weights.
      remat: what the forward pass keeps for the backward pass (see `functional.Remat`); the convolutions that subsample
        are computed again unless it is "none".
      dtype: compute type; parameters, norms, softmax and the output are float32.
    """

    kind: Literal["fast_conformer"] = "fast_conformer"
    input_dim: pydantic.PositiveInt = 80
    dim: pydantic.PositiveInt = 176
    num_layers: pydantic.PositiveInt = 16
    num_heads: pydantic.PositiveInt = 4
    ffn_multiple: pydantic.PositiveInt | Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] = 4
    kernel_size: pydantic.PositiveInt = 9
    subsampling: Literal[4, 8] = 8
    channels: pydantic.PositiveInt = 176
    scale_input: bool = True
    bias: bool = True
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    attention_dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _sizes_divide(self):
        if self.dim % self.num_heads or self.dim % 2:
            raise ValueError(f"dim ({self.dim}) must be even and a multiple of num_heads ({self.num_heads})")
        if self.input_dim % self.subsampling:
            raise ValueError(f"input_dim ({self.input_dim}) must be a multiple of subsampling ({self.subsampling})")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size ({self.kernel_size}) must be odd: its middle is the present frame")
        return self

    @property
    def ffn_dim(self) -> int:
        """Inner width of the feed-forward modules."""
        return round(self.ffn_multiple * self.dim)

    def num_frames(self, num_vectors: Count) -> Count:
        """Frames that come from so many feature vectors: the last may have fewer than the others."""
        return -(-num_vectors // self.subsampling)


SIZES = {
    "XS": FastConformerConfig(dim=96, num_layers=6, num_heads=4, channels=32),
    "S": FastConformerConfig(dim=176, num_layers=16, num_heads=4, channels=176),
    "L": FastConformerConfig(dim=512, num_layers=17, num_heads=8, channels=256),
    "0.6B": FastConformerConfig(dim=1024, num_layers=24, num_heads=8, channels=256),
    "1.1B": FastConformerConfig(dim=1024, num_layers=42, num_heads=8, channels=256),
}


class Separable(nnx.Module):
    """Depthwise convolution that halves time and bins, linear map of the channels, ReLU."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        third = jax.nn.initializers.truncated_normal(1 / 3)  # nine values are summed
        self.depthwise = parameter(rngs.params(), (9, channels), (None, None), third)
        self.bias = parameter(rngs.params(), (channels,), (None,), jax.nn.initializers.zeros, decays=False)
        self.pointwise = Linear((channels,), (channels,), (None, None), gain=2**0.5, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time bins channels"]) -> Float[Array, "batch half less_bins channels"]:
        # A sum of shifted products, as in `layers.causal_depthwise`.
        kernel, bias = (each[...].astype(x.dtype) for each in (self.depthwise, self.bias))
        x = sum(part * taps for part, taps in zip(_neighbours(x), kernel, strict=True)) + bias
        return jax.nn.relu(self.pointwise(x))


class Convolutions(nnx.Module):
    """Convolutions over time and mel bins, 3 by 3 with stride 2, of which all but the first are separable."""

    def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
        self.subsampling = config.subsampling
        self.first = Linear((9,), (config.channels,), (None, None), gain=2**0.5, rngs=rngs)
        self.second = Separable(config.channels, rngs=rngs)
        self.third = Separable(config.channels, rngs=rngs) if config.subsampling == 8 else None

    def __call__(self, groups: Float[Array, "batch frames values"]) -> Float[Array, "batch frames out"]:
        """The values of each frame.

        Args:
          groups: the feature vectors of each frame, end to end, each followed by 1, or by 0 where it is padding.
        """
        vectors = groups.reshape(len(groups), groups.shape[1] * self.subsampling, -1)
        x, mask_BxT = vectors[..., :-1, None], vectors[..., -1] > 0
        convolutions = [lambda x: jax.nn.relu(self.first(jnp.concatenate(_neighbours(x), axis=-1))), self.second]
        for convolve in convolutions + ([] if self.third is None else [self.third]):
            # A bias makes padding anything but zero, which the next convolution would carry into real frames. Half as
            # many real frames come out, rounded up: those at even places stay.
            mask_BxT = mask_BxT[:, ::2]
            x = jnp.where(mask_BxT[..., None, None], convolve(x), 0)
        return x.reshape(*groups.shape[:2], -1)


def _neighbours(x: Float[Array, "batch time bins channels"]) -> list[Float[Array, "batch half less_bins channels"]]:
    """The three by three values around each that stride 2 leaves; zeros lie before the first. Sizes are even."""
    _, time, bins, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
    return [x[:, i : i + time - 1 : 2, j : j + bins - 1 : 2] for i in range(3) for j in range(3)]


class Subsampling(nnx.Module):
    """Feature vectors into a fraction of as many frames."""

    def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.convolutions = Convolutions(config, rngs=rngs)
        # Away from 0 for the sake of what SpecAugment blanks (see `Conformer`).
        values = config.input_dim // config.subsampling, config.channels
        self.out = Linear(values, (config.dim,), (None, None, "embed"), bias_scale=0.5, rngs=rngs)

    def __call__(
        self, x_BxTxF: Float[Array, "batch time features"], length_B: Int[Array, " batch"]
    ) -> Float[Array, "batch frames dim"]:
        config, num_vectors = self.config, x_BxTxF.shape[1]
        mask_BxTx1 = frame_mask(length_B, num_vectors)[..., None]
        vectors = jnp.concatenate([jnp.where(mask_BxTx1, x_BxTxF, 0), mask_BxTx1], axis=-1).astype(config.dtype)
        num_frames = config.num_frames(num_vectors)
        vectors = jnp.pad(vectors, ((0, 0), (0, num_frames * config.subsampling - num_vectors), (0, 0)))
        groups = shard_batch_and_time(sequence.pad_time(vectors.reshape(len(vectors), num_frames, -1)))

        graphdef, params = nnx.split(self.convolutions)
        convolve = lambda groups, params: bind(graphdef, params)(groups)  # noqa: E731
        if config.remat != "none":
            convolve = jax.checkpoint(convolve)  # few operations for so many values
        # A frame is made of its own vectors and of those of the frame before.
        x = sequence.with_context(convolve, groups, (params,), past=1)[:, :num_frames]
        return self.out(x.reshape(*x.shape[:2], -1, config.channels))


class Convolution(nnx.Module):
    """LayerNorm -> pointwise (2x) -> GLU -> depthwise -> a scale and an offset a channel -> SiLU -> pointwise.

    The conformer's convolution module (Gulati et al. 2020, section 2.2) with what its batch norm is in evaluation.
    """

    def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
        dim, taps = config.dim, config.kernel_size
        self.rate = config.dropout
        self.norm = LayerNorm(dim, rngs=rngs)
        self.expand = Linear((dim,), (2, dim), ("embed", None, "mlp"), bias=config.bias, rngs=rngs)
        self.depthwise = parameter(
            rngs.params(), (taps, dim), (None, "mlp"), jax.nn.initializers.truncated_normal(taps**-0.5)
        )
        self.scale = parameter(rngs.params(), (dim,), ("mlp",), jax.nn.initializers.ones, decays=False)
        self.offset = parameter(rngs.params(), (dim,), ("mlp",), jax.nn.initializers.zeros, decays=False)
        self.contract = Linear((dim,), (dim,), ("mlp", "embed"), bias=config.bias, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], mask_BxT: Bool[Array, "batch time"], keys: Keys | None
    ) -> Float[Array, "batch time dim"]:
        x = self.expand(self.norm(x))
        x = x[..., 0, :] * jax.nn.sigmoid(x[..., 1, :])
        x = jnp.where(mask_BxT[..., None], x, 0)  # padding must not reach a real frame
        kernel, scale, offset = (each[...].astype(x.dtype) for each in (self.depthwise, self.scale, self.offset))
        aside = len(kernel) // 2
        x = sequence.with_context(centred_depthwise, x, (kernel,), past=aside, future=aside)
        return dropout(self.contract(jax.nn.silu(x * scale + offset)), self.rate, keys)


class FastConformerLayer(nnx.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each residual; then LayerNorm."""

    def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
        dim, bias = config.dim, config.bias
        self.rate = config.dropout
        self.ffn1 = FeedForward(config, bias=bias, rngs=rngs)
        self.attention_norm = LayerNorm(dim, rngs=rngs)
        self.attention = PositionalAttention(dim, config.num_heads, config.attention_dropout, bias=bias, rngs=rngs)
        self.convolution = Convolution(config, rngs=rngs)
        self.ffn2 = FeedForward(config, bias=bias, rngs=rngs)
        self.norm = LayerNorm(dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        mask_BxT: Bool[Array, "batch time"],
        sinusoids_RxD: Float[Array, "distances dim"],
        keys: Keys | None,
    ) -> Float[Array, "batch time dim"]:
        ffn1, weights, attention, convolution, ffn2 = split_keys(keys, 5)
        x = shard_batch_and_time(x + 0.5 * self.ffn1(x, ffn1))
        x = x + dropout(self.attention(self.attention_norm(x), sinusoids_RxD, mask_BxT, weights), self.rate, attention)
        x = shard_batch_and_time(x)
        x = shard_batch_and_time(x + self.convolution(x, mask_BxT, convolution))
        x = shard_batch_and_time(x + 0.5 * self.ffn2(x, ffn2))
        return shard_batch_and_time(self.norm(x))


class FastConformer(nnx.Module):
    """Log-mel frames in, hidden states out, one for each `subsampling` of them, the last for what is left.

    A frame's output depends on its own utterance only: not on padding, batch size or row order.
    """

    def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.subsampling = Subsampling(config, rngs=rngs)
        self.layers = stack(lambda rngs: FastConformerLayer(config, rngs=rngs), config.num_layers, rngs)

    def __call__(
        self,
        x_BxTxF: Float[Array, "batch time features"],
        length_B: Int[Array, " batch"],
        *,
        keys: Key[Array, " batch"] | None = None,
        chunk: None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "batch frames dim"], dict[int, Float[Array, "batch frames dim"]]]:
        """Encodes a batch.

        Args:
          x_BxTxF: features, `input_dim` mel bins each 10 ms.
          length_B: valid ones of each row; may be 0. `config.num_frames` of them are the frames that come out.
          keys: one key a row (`jax_speechlm.core.batch.example_keys`) for dropout, or None for evaluation.
          chunk: None, always: the convolutions look ahead, so no attention could keep within a chunk.
          taps: layer counts after which hidden states are wanted too, up to `num_layers`; 0 is what enters the layers.

        Returns:
          float32 hidden states after the last layer, and those after each tap. Both are 0 at padding.
        """
        del chunk
        x_BxTxD = self.embed(x_BxTxF, length_B)
        return self.encode(x_BxTxD, self.config.num_frames(length_B), keys=keys, taps=taps)

    def embed(
        self, x_BxTxF: Float[Array, "batch time features"], length_B: Int[Array, " batch"]
    ) -> Float[Array, "batch frames dim"]:
        """Features as the layers take them, in the compute type; anything at padding."""
        x = self.subsampling(x_BxTxF, length_B)
        return shard_batch_and_time(x * self.config.dim**0.5 if self.config.scale_input else x)

    def encode(
        self,
        x_BxTxD: Float[Array, "batch frames dim"],
        length_B: Int[Array, " batch"],
        *,
        keys: Key[Array, " batch"] | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "batch frames dim"], dict[int, Float[Array, "batch frames dim"]]]:
        """The layers, over what `embed` gave; `length_B` counts frames. Other arguments and result as of the call."""
        config = self.config
        sinusoids_RxD = distance_sinusoids(sequence.padded_time(x_BxTxD.shape[1]), config.dim).astype(config.dtype)
        run = lambda layer, x, mask_BxT, keys: layer(x, mask_BxT, sinusoids_RxD, keys)  # noqa: E731
        return run_layers(self.layers, run, config, x_BxTxD, length_B, keys=keys, taps=taps)


def forward_flops(config: FastConformerConfig, num_vectors: int, batch_size: int) -> float:
    """FLOPs of the products of one forward pass over so many feature vectors a row, padding included.

    A multiply-add is two.
    """
    dim, channels, frames = config.dim, config.channels, config.num_frames(num_vectors)
    linear = (4 * config.ffn_dim + (4 + 3) * dim) * dim  # two feed-forwards, attention's four maps, pointwise 2 + 1
    distances = 2 * frames - 1
    attention = (2 * frames + distances) * dim
    frame = config.num_layers * (linear + attention + config.kernel_size * dim) + config.input_dim * (
        channels * dim // config.subsampling
    )
    # What a convolution gives, for each frame that comes out in the end.
    values = [
        config.input_dim * config.subsampling // 4**stage for stage in (1, 2, 3) if 2**stage <= config.subsampling
    ]
    frame += values[0] * 9 * channels + sum(values[1:]) * (9 + channels) * channels
    once = config.num_layers * distances * dim * dim  # the map of distances, which rows share
    return 2.0 * (frame * frames * batch_size + once)
