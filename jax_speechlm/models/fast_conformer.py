"""FastConformer: convolutions reduce the frame rate to an eighth before a conformer's layers (Rekesh et al. 2023).

With the same weights it computes the same numbers as Hugging Face's `ParakeetEncoder`
(`jax_speechlm.interop.hf.parakeet` converts the weights). Batch norm is replaced by a scale and an offset a channel,
which it equals in evaluation, so that no output depends on the batch. With `causal` it is the streaming form of Noroozi
et al. 2024, `NemotronAsrStreamingEncoder` there (`jax_speechlm.interop.hf.nemotron`).

Parameters at 80 mel bins:

| size | layers | dim  | heads | channels | parameters    |
|------|-------:|-----:|------:|---------:|--------------:|
| XS   |      6 |   96 |     4 |       32 |     1,384,032 |
| S    |     16 |  176 |     4 |      176 |    12,384,944 |
| L    |     17 |  512 |     8 |      256 |   108,753,408 |
| 0.6B |     24 | 1024 |     8 |      256 |   607,724,544 |
| 1.1B |     42 | 1024 |     8 |      256 | 1,061,446,656 |

0.6B and 1.1B are the shapes of parakeet-ctc-0.6b and parakeet-ctc-1.1b; XS is for laptops. "0.6B, streaming" is causal,
with the chunks and the left context of nemotron-speech-streaming-en-0.6b: 80, 160, 560 or 1,120 ms, and 5.6 s. It has
608,011,264 parameters.
"""

from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.models.conformer import CausalConvolution, MacaronLayer, check_left_context, convolve
from jax_speechlm.models.encoder_base import Encoder, EncoderState
from jax_speechlm.nn.attention.relative import (
    Chunk,
    PositionalAttention,
    PositionalContext,
    QueryBlocks,
    distance_sinusoids,
)
from jax_speechlm.nn.functional import Remat, bind, parameter, stack
from jax_speechlm.nn.layers import Count, FrameKeys, LayerNorm, Linear, dropout
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import shard_batch_and_time


class FastConformerConfig(Config):
    """The shape of a FastConformer encoder.

    Attributes:
      input_dim: mel bins; a multiple of `subsampling`. A feature vector is one frame of 10 ms: `stack` is 1.
      dim: width of the residual stream; even, and a multiple of `num_heads`.
      num_layers: conformer layers.
      num_heads: attention heads.
      ffn_multiple: inner width of the feed-forward modules as a multiple of `dim`, rounded to whole units.
      kernel_size: taps of the depthwise convolution, centred on the present frame; odd.
      subsampling: feature vectors of one frame: 8 gives frames of 80 ms, 4 of 40 ms.
      channels: of the subsampling convolutions.
      causal: whether convolutions look back only, with LayerNorm in the layers' instead of scale and offset; attention
        then takes chunks, and a frame ends with its last feature vector, so that the first has one only.
      chunk_lengths: as of `ConformerConfig`; only with `causal`.
      left_context: as of `ConformerConfig`; only with `causal`.
      scale_input: whether the input of the layers is multiplied by the root of `dim`.
      bias: whether the linear maps of the layers have one.
      dropout: rate on the input of the layers, inside and after each feed-forward, after attention and convolution.
      attention_dropout: rate on the attention weights.
      remat: activations that the forward pass keeps for the backward pass (see `functional.Remat`); the subsampling
        convolutions are recomputed unless it is "none".
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
    causal: bool = False
    chunk_lengths: tuple[pydantic.PositiveInt, ...] = ()
    left_context: pydantic.PositiveInt | None = None
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
        if not self.causal and (self.chunk_lengths or self.left_context):
            raise ValueError("chunk_lengths and left_context are for causal convolutions: set causal, or neither")
        check_left_context(self)
        return self

    @property
    def lead_vectors(self) -> int:
        """Vectors before the first one that the first frame reads as zeros."""
        return self.subsampling - 1 if self.causal else 0

    @property
    def num_bins(self) -> int:
        """Bins of a frame after the convolutions."""
        bins, remaining = self.input_dim, self.subsampling
        while remaining > 1:
            bins, remaining = bins // 2 + self.causal, remaining // 2
        return bins

    @property
    def ffn_dim(self) -> int:
        """Inner width of the feed-forward modules."""
        return round(self.ffn_multiple * self.dim)

    def num_frames(self, num_vectors: Count) -> Count:
        """Returns the number of frames of `num_vectors` feature vectors, rounded up."""
        frames = -(-(num_vectors + self.lead_vectors) // self.subsampling)
        return frames * (num_vectors > 0) if self.lead_vectors else frames


SIZES = {
    "XS": FastConformerConfig(dim=96, num_layers=6, num_heads=4, channels=32),
    "S": FastConformerConfig(dim=176, num_layers=16, num_heads=4, channels=176),
    "L": FastConformerConfig(dim=512, num_layers=17, num_heads=8, channels=256),
    "0.6B": FastConformerConfig(dim=1024, num_layers=24, num_heads=8, channels=256),
    "1.1B": FastConformerConfig(dim=1024, num_layers=42, num_heads=8, channels=256),
}
SIZES["0.6B, streaming"] = SIZES["0.6B"].replace(causal=True, chunk_lengths=(1, 2, 7, 14), left_context=70)


class Separable(nnx.Module):
    """Depthwise convolution with stride 2 over time and bins -> linear over channels -> ReLU."""

    def __init__(self, channels: int, causal: bool, *, rngs: nnx.Rngs):
        self.causal = causal
        initializer = jax.nn.initializers.truncated_normal(1 / 3)  # nine values are summed
        self.depthwise = parameter(rngs.params(), (9, channels), (None, None), initializer)
        self.bias = parameter(rngs.params(), (channels,), (None,), jax.nn.initializers.zeros, decays=False)
        self.pointwise = Linear((channels,), (channels,), (None, None), gain=2**0.5, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time bins channels"], segment_BxT: Float[Array, "batch time"]
    ) -> Float[Array, "batch half less_bins channels"]:
        # A sum of shifted products is faster than a grouped convolution (see `layers.depthwise`).
        kernel, bias = (array[...].astype(x.dtype) for array in (self.depthwise, self.bias))
        x = sum(part * taps for part, taps in zip(_neighbours(x, segment_BxT, self.causal), kernel, strict=True)) + bias
        return jax.nn.relu(self.pointwise(x))


class Convolutions(nnx.Module):
    """Two or three convolutions over time and mel bins, 3 by 3 with stride 2; all but the first are separable."""

    def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
        self.subsampling, self.causal = config.subsampling, config.causal
        self.first = Linear((9,), (config.channels,), (None, None), gain=2**0.5, rngs=rngs)
        self.second = Separable(config.channels, config.causal, rngs=rngs)
        self.third = Separable(config.channels, config.causal, rngs=rngs) if config.subsampling == 8 else None

    def __call__(self, groups: Float[Array, "batch frames values"]) -> Float[Array, "batch frames out"]:
        """Returns the values per frame, over all remaining bins and channels.

        Args:
          groups: concatenated feature vectors of a frame, each followed by the number of its utterance in the row,
            from 1, or by 0 if it is padding.
        """
        vectors = groups.reshape(len(groups), groups.shape[1] * self.subsampling, -1)
        x, segment_BxT = vectors[..., :-1, None], vectors[..., -1]

        def first(x: Array, segment_BxT: Array) -> Array:
            return jax.nn.relu(self.first(jnp.concatenate(_neighbours(x, segment_BxT, self.causal), axis=-1)))

        for layer in [first, self.second] + ([] if self.third is None else [self.third]):
            x = layer(x, segment_BxT)
            # The bias makes padding nonzero, and the next convolution would mix it into real frames. Each convolution
            # keeps the frames at even positions, so half of an utterance's, rounded up; a causal one those that read
            # the utterance by their second value, too.
            first_BxT, second_BxT = segment_BxT[:, ::2], segment_BxT[:, 1::2]
            segment_BxT = jnp.maximum(first_BxT, second_BxT) if self.causal else first_BxT
            x = jnp.where((segment_BxT > 0)[..., None, None], x, 0)
        return x.reshape(*groups.shape[:2], -1)


def _neighbours(
    x: Float[Array, "batch time bins channels"], segment_BxT: Float[Array, "batch time"], causal: bool
) -> list[Float[Array, "batch half less_bins channels"]]:
    """Returns the nine shifted views of a 3 by 3 window with stride 2, with zeros before the first value.

    Time is even, and bins if not causal. An utterance starts at an even position, so its first window alone reaches
    beyond it. Causal windows have two zeros before the first bin, and one after the last.
    """
    _, time, bins, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 0), (2, 1) if causal else (1, 0), (0, 0)))
    bins += 2 * causal
    earlier = jnp.pad(segment_BxT, ((0, 0), (1, 0)))[:, : time - 1 : 2] == segment_BxT[:, ::2]
    views = [x[:, i : i + time - 1 : 2, j : j + bins - 1 : 2] for i in range(3) for j in range(3)]
    return [jnp.where(earlier[..., None, None], view, 0) if i < 3 else view for i, view in enumerate(views)]


class Subsampling(nnx.Module):
    """Subsamples feature vectors to frames of width `dim`."""

    def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.convolutions = Convolutions(config, rngs=rngs)
        # The bias is nonzero for the sake of frames that SpecAugment masks (see `Conformer`).
        values = config.num_bins, config.channels
        self.out = Linear(values, (config.dim,), (None, None, "embed"), bias_scale=0.5, rngs=rngs)

    def __call__(
        self, x_BxTxF: Float[Array, "batch time features"], lengths: Lengths
    ) -> Float[Array, "batch frames dim"]:
        config, num_vectors, lead = self.config, x_BxTxF.shape[1], self.config.lead_vectors
        num_frames = config.num_frames(num_vectors)
        vectors = _numbered(x_BxTxF, Segments.of(lengths).segment(num_vectors), config)
        after = num_frames * config.subsampling - num_vectors - lead if num_frames else 0
        vectors = jnp.pad(vectors, ((0, 0), (lead if num_frames else 0, after), (0, 0)))
        groups = shard_batch_and_time(sequence.pad_time(vectors.reshape(len(vectors), num_frames, -1)))
        return self._frames(groups, num_frames)

    def step(
        self,
        state: Float[Array, "batch 1 values"],
        x_BxVxF: Float[Array, "batch vectors features"],
        valid_BxV: Bool[Array, "batch vectors"],
    ) -> tuple[Float[Array, "batch 1 values"], Float[Array, "batch frames dim"]]:
        """Subsamples the next frames of a stream; the state is the last frame's vectors."""
        vectors = _numbered(x_BxVxF, valid_BxV.astype(jnp.int32), self.config)
        groups = vectors.reshape(len(vectors), vectors.shape[1] // self.config.subsampling, -1)
        groups = jnp.concatenate([state, groups], axis=1)
        return groups[:, -1:], self._frames(groups, groups.shape[1])[:, 1:]

    def _frames(
        self, groups: Float[Array, "batch frames values"], num_frames: int
    ) -> Float[Array, "batch {num_frames} dim"]:
        config = self.config
        graphdef, params = nnx.split(self.convolutions)

        def convolve(groups: Array, params: nnx.State) -> Array:
            return bind(graphdef, params)(groups)

        if config.remat != "none":
            convolve = jax.checkpoint(convolve)  # large activations that are cheap to recompute
        # A frame depends on its own vectors and on the previous frame's.
        x = sequence.with_context(convolve, groups, (params,), past=1)[:, :num_frames]
        return self.out(x.reshape(*x.shape[:2], -1, config.channels))


def _numbered(
    x_BxTxF: Float[Array, "batch time features"], segment_BxT: Int[Array, "batch time"], config: FastConformerConfig
) -> Float[Array, "batch time values"]:
    """Returns feature vectors, 0 at padding, each followed by the number of its utterance."""
    number = segment_BxT[..., None]
    return jnp.concatenate([jnp.where(number > 0, x_BxTxF, 0), number], axis=-1).astype(config.dtype)


class Convolution(nnx.Module):
    """LayerNorm -> pointwise (2x) -> GLU -> depthwise -> scale and offset a channel -> SiLU -> pointwise.

    The conformer's convolution module (Gulati et al. 2020, section 2.2); scale and offset replace its batch norm. Of
    the config it needs `dim`, `kernel_size`, `bias` and `dropout`.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
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
        self, x: Float[Array, "batch time dim"], segments: Segments, keys: FrameKeys | None
    ) -> Float[Array, "batch time dim"]:
        x = self.expand(self.norm(x))
        x = x[..., 0, :] * jax.nn.sigmoid(x[..., 1, :])
        x = jnp.where(segments.mask(x.shape[1])[..., None], x, 0)  # padding must not affect a real frame
        kernel, scale, offset = (array[...].astype(x.dtype) for array in (self.depthwise, self.scale, self.offset))
        x = convolve(x, kernel, segments, ahead=len(kernel) // 2)
        return dropout(self.contract(jax.nn.silu(x * scale + offset)), self.rate, keys)


class FastConformerLayer(MacaronLayer):
    """Layer of `FastConformer`."""

    def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
        rate, bias = config.attention_dropout, config.bias
        attention = partial(PositionalAttention, config.dim, config.num_heads, rate, bias=bias)
        convolution = partial(CausalConvolution, config, bias=bias) if config.causal else partial(Convolution, config)
        super().__init__(config, attention, convolution, bias=bias, rngs=rngs)


class FastConformer(Encoder):
    """Encodes log-mel frames to one hidden state for every `subsampling` of them, rounded up."""

    def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.subsampling = Subsampling(config, rngs=rngs)
        self.layers = stack(lambda rngs: FastConformerLayer(config, rngs=rngs), config.num_layers, rngs)

    def embed(self, x_BxTxF: Float[Array, "batch time features"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        """Returns the input of the layers, in the compute type; values at padding are arbitrary."""
        return self._scaled(self.subsampling(x_BxTxF, lengths))

    def _scaled(self, x: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames dim"]:
        return shard_batch_and_time(x * self.config.dim**0.5 if self.config.scale_input else x)

    def _context(self, chunk: Chunk | None, num_frames: int) -> PositionalContext:
        sinusoids = distance_sinusoids(num_frames, self.config.dim).astype(self.config.dtype)
        return PositionalContext(sinusoids, chunk if self.config.causal else None)

    def _init_embedding(self, batch: int) -> Float[Array, "batch 1 values"]:
        config = self.config
        return jnp.zeros((batch, 1, config.subsampling * (config.input_dim + 1)), config.dtype)

    def _embed_step(
        self, state: EncoderState, x_BxVxF: Array, num_vectors_B: Array
    ) -> tuple[Array, Float[Array, "batch chunk dim"], Int[Array, " batch"]]:
        config, place = self.config, jnp.arange(x_BxVxF.shape[1])
        lead_B = jnp.where(state.num_frames == 0, config.lead_vectors, 0)
        valid_BxV = (place >= lead_B[:, None]) & (place < num_vectors_B[:, None])
        embedding, x = self.subsampling.step(state.embedding, x_BxVxF, valid_BxV)
        return embedding, self._scaled(x), -(-num_vectors_B // config.subsampling)

    def _step_context(self, num_keys: int) -> PositionalContext:
        blocks = QueryBlocks(max_full=num_keys)
        return PositionalContext(distance_sinusoids(num_keys, self.config.dim, blocks).astype(self.config.dtype))


def forward_flops(config: FastConformerConfig, num_vectors: int, batch_size: int) -> float:
    """Returns the FLOPs of the products of one forward pass, padding included; a multiply-add is two."""
    dim, channels, frames = config.dim, config.channels, config.num_frames(num_vectors)
    linear = (4 * config.ffn_dim + (4 + 3) * dim) * dim  # two feed-forwards, attention's four maps, pointwise 2 + 1
    distances = 2 * frames - 1
    attention = (2 * frames + distances) * dim
    frame = config.num_layers * (linear + attention + config.kernel_size * dim)
    frame += config.num_bins * channels * dim
    # Values that each convolution outputs for one frame of the final rate; a causal one has a bin more.
    values = [
        config.input_dim * config.subsampling // 4**stage for stage in (1, 2, 3) if 2**stage <= config.subsampling
    ]
    frame += values[0] * 9 * channels + sum(values[1:]) * (9 + channels) * channels
    once = config.num_layers * distances * dim * dim  # the projection of distances is shared by all rows
    return 2.0 * (frame * frames * batch_size + once)
