"""The encoder of wav2vec 2.0, HuBERT, WavLM and data2vec: convolutions over samples, then a transformer.

With the same weights it computes the same numbers as Hugging Face's `Wav2Vec2Model`, `HubertModel`, `WavLMModel` and
`Data2VecAudioModel` (`jax_speechlm.interop.hf.wav2vec2` converts the weights). References: Baevski et al. 2020 (wav2vec
2.0), Hsu et al. 2021 (HuBERT), Chen et al. 2022 (WavLM), Baevski et al. 2022 (data2vec).

| model    | layers | dim  | heads | norms                                       | parameters  |
|----------|-------:|-----:|------:|---------------------------------------------|------------:|
| BASE     |     12 |  768 |    12 | one over time, after layers                 |  94,370,944 |
| LARGE    |     24 | 1024 |    16 | of every convolution, before layers         | 315,437,696 |
| WAVLM    |     12 |  768 |    12 | as BASE, and a gated bias by distance       |  94,381,168 |
| DATA2VEC |     12 |  768 |    12 | of every convolution, after layers          |  93,163,520 |

Where a norm is over time, the original sees the padding of a batch too. Here it is over an utterance's own frames, as
for a row by itself, so that no batch changes a result; so are the zeros around each of data2vec's convolutions of
positions.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Key

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments, at_rate
from jax_speechlm.models.encoder_base import Encoder
from jax_speechlm.models.whisper import FeedForward
from jax_speechlm.nn.attention.dot import Kernel, attend
from jax_speechlm.nn.attention.gated import GatedAttention, bias_by_distance
from jax_speechlm.nn.attention.multi_head import MultiHeadMaps
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.nn.convolution import StridedConvolution
from jax_speechlm.nn.functional import Remat, parameter, rematerialised, stack
from jax_speechlm.nn.grouped_convolution import GroupedConvolution
from jax_speechlm.nn.layers import Count, FrameKeys, LayerNorm, Linear, dropout, split_keys, standardized
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import (
    gather_residual,
    scatter_residual,
    shard_batch_and_time,
    shard_batch_dim,
    shard_residual,
)

_EPSILON = 1e-5


class RelativeBias(Config):
    """Settings of WavLM's gated bias of attention by distance (see `nn.attention.gated`).

    Attributes:
      buckets: values of a head; half of them for keys after the query.
      longest: distance in frames from which on all share a value.
    """

    buckets: int = pydantic.Field(320, ge=4, multiple_of=4)
    longest: pydantic.PositiveInt = 800

    @pydantic.model_validator(mode="after")
    def _has_steps(self):
        if self.longest <= self.buckets // 4:
            raise ValueError(f"longest ({self.longest}) must exceed a quarter of buckets ({self.buckets // 4})")
        return self


class Wav2Vec2EncoderConfig(Config):
    """The shape of an encoder of samples.

    Attributes:
      channels, kernels, strides: outputs, taps and stride of each convolution over time, of samples first.
      convolution_norm: "group" normalises each channel of the first convolution over time, "layer" the channels of
        every convolution.
      convolution_bias: whether the convolutions have a bias.
      input_norm: whether the last convolution's channels are normalised before they become vectors of width `dim`.
      dim: width of the residual stream; a multiple of `num_heads` and of `position_groups`.
      num_layers: transformer layers.
      num_heads: attention heads.
      ffn_dim: inner width of the feed-forwards.
      pre_norm: whether norms are before attention and feed-forward, and one at the end; otherwise after each, and one
        before the layers.
      position_kernel: taps of a convolution of positions.
      position_groups: its groups of channels.
      position_layers: convolutions of positions one after the other, each normalised, as in data2vec; None for a single
        one with weight normalisation.
      relative: WavLM's bias of attention by distance, or None.
      family: class of exports, where the form is the same in both.
      dropout: rate on the input of the layers, inside and after each feed-forward, and after attention.
      attention: implementation of attention (see `nn.attention.dot.Kernel`); of no effect with `relative`.
      remat: activations that the forward pass keeps for the backward pass (see `functional.Remat`).
      dtype: compute type; parameters, norms, softmax and the output are float32.
    """

    kind: Literal["wav2vec2_encoder"] = "wav2vec2_encoder"
    channels: tuple[pydantic.PositiveInt, ...] = (512,) * 7
    kernels: tuple[pydantic.PositiveInt, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[pydantic.PositiveInt, ...] = (5, 2, 2, 2, 2, 2, 2)
    convolution_norm: Literal["group", "layer"] = "group"
    convolution_bias: bool = False
    input_norm: bool = True
    dim: pydantic.PositiveInt = 768
    num_layers: pydantic.PositiveInt = 12
    num_heads: pydantic.PositiveInt = 12
    ffn_dim: pydantic.PositiveInt = 3072
    pre_norm: bool = False
    position_kernel: pydantic.PositiveInt = 128
    position_groups: pydantic.PositiveInt = 16
    position_layers: pydantic.PositiveInt | None = None
    relative: RelativeBias | None = None
    family: Literal["wav2vec2", "hubert"] = "wav2vec2"
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    attention: Kernel = "auto"
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self):
        if not len(self.channels) == len(self.kernels) == len(self.strides) > 0:
            raise ValueError(
                f"channels, kernels and strides must have one entry a convolution, got {len(self.channels)}, "
                f"{len(self.kernels)} and {len(self.strides)}"
            )
        if any(stride > kernel for kernel, stride in zip(self.kernels, self.strides, strict=True)):
            raise ValueError(f"strides ({self.strides}) longer than kernels ({self.kernels}) would leave out samples")
        for name in ("num_heads", "position_groups"):
            if self.dim % getattr(self, name):
                raise ValueError(f"dim ({self.dim}) must be a multiple of {name} ({getattr(self, name)})")
        return self

    @property
    def input_dim(self) -> int:
        """Values of a feature vector, which is a sample: 1."""
        return 1

    @property
    def subsampling(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    @property
    def reach(self) -> int:
        """Samples that a frame depends on before the transformer."""
        steps = (math.prod(self.strides[:layer]) for layer in range(len(self.strides)))
        return 1 + sum((kernel - 1) * step for kernel, step in zip(self.kernels, steps, strict=True))

    @property
    def sees_padding(self) -> bool:
        """Whether the original's results depend on the padding of a batch: of a norm over time, or of data2vec's
        convolutions of positions."""
        return self.convolution_norm == "group" or self.position_layers is not None

    def num_frames(self, num_vectors: Count) -> Count:
        """Returns the number of frames of `num_vectors` samples: as many as lie wholly among them."""
        outside = self.reach - self.subsampling
        return (num_vectors - outside) // self.subsampling * (num_vectors >= self.reach)


BASE = Wav2Vec2EncoderConfig()
LARGE = Wav2Vec2EncoderConfig(
    convolution_norm="layer", convolution_bias=True, dim=1024, num_layers=24, num_heads=16, ffn_dim=4096, pre_norm=True
)
WAVLM = Wav2Vec2EncoderConfig(relative=RelativeBias())
DATA2VEC = Wav2Vec2EncoderConfig(convolution_norm="layer", position_kernel=19, position_layers=5)
SIZES = {"BASE": BASE, "LARGE": LARGE, "WAVLM": WAVLM, "DATA2VEC": DATA2VEC}


class TimeNorm(nnx.Module):
    """Normalises each channel to zero mean and unit variance over an utterance's frames, then scales and shifts it."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros
        self.scale = parameter(rngs.params(), (dim,), ("embed",), ones, decays=False)
        self.bias = parameter(rngs.params(), (dim,), ("embed",), zeros, decays=False)

    def __call__(self, x: Float[Array, "batch time dim"], segments: Segments) -> Float[Array, "batch time dim"]:
        """Returns the normalised frames; those at padding are arbitrary."""
        y, num_frames = x.astype(jnp.float32), x.shape[1]
        y = y - segments.spread(segments.mean(y), num_frames)
        scale = jax.lax.rsqrt(segments.mean(jnp.square(y)) + _EPSILON) * self.scale[...]
        return (y * segments.spread(scale, num_frames) + self.bias[...]).astype(x.dtype)


class SampleConvolution(nnx.Module):
    """Convolution -> norm, if it has one -> GELU.

    Args:
      layer: its number.
    """

    def __init__(self, config: Wav2Vec2EncoderConfig, layer: int, *, rngs: nnx.Rngs):
        inputs, outputs = (1, *config.channels)[layer : layer + 2]
        sizes = inputs, outputs, config.kernels[layer], config.strides[layer]
        self.convolution = StridedConvolution(*sizes, bias=config.convolution_bias, gain=2**0.5, rngs=rngs)
        make_norm = {"layer": LayerNorm, "group": TimeNorm if layer == 0 else None}[config.convolution_norm]
        self.norm = make_norm and make_norm(outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time in"], lengths: Lengths
    ) -> tuple[Float[Array, "batch outputs out"], Lengths]:
        """Returns the outputs, arbitrary at padding, and their lengths."""
        taps, stride = self.convolution.taps, self.convolution.stride
        x = self.convolution(x)
        lengths = at_rate(lengths, stride, lambda length: (length - taps + stride) // stride * (length >= taps))
        if isinstance(self.norm, TimeNorm):
            x = self.norm(x, Segments.of(lengths))
        elif self.norm is not None:
            x = self.norm(x)
        return jax.nn.gelu(x, approximate=False), lengths


class Positions(nnx.Module):
    """Convolutions whose output is added to the residual stream, so that it depends on what is where."""

    def __init__(self, config: Wav2Vec2EncoderConfig, *, rngs: nnx.Rngs):
        sizes, num_layers = (config.dim, config.position_kernel, config.position_groups), config.position_layers
        self.has_norms = num_layers is not None
        self.layers = nnx.Dict(
            {
                f"layer{number}": GroupedConvolution(*sizes, weight_norm=num_layers is None, rngs=rngs)
                for number in range(num_layers or 1)
            }
        )

    def __call__(self, x: Float[Array, "batch time dim"], segments: Segments) -> Float[Array, "batch time dim"]:
        """Returns what to add to x; values at padding are arbitrary."""
        for number in range(len(self.layers)):  # by name, because the dict sorts layer10 before layer2
            x = self.layers[f"layer{number}"](x, segments)
            if self.has_norms:
                x = standardized(x, _EPSILON).astype(x.dtype)
            x = jax.nn.gelu(x, approximate=False)
        return x


class PlainAttention(MultiHeadMaps):
    """Multi-head self-attention without positions."""

    def __init__(self, config: Wav2Vec2EncoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config.dim, config.num_heads, key_bias=True, rngs=rngs)
        self.kernel = config.attention

    def __call__(
        self, x: Float[Array, "batch time dim"], segments: Segments, context: None, keys: FrameKeys | None
    ) -> Float[Array, "batch time dim"]:
        del context, keys
        operands = self.query(x), self.key(x), self.value(x), segments.segment(x.shape[1])
        return self.out(attend(*operands, causal=False, window=None, kernel=self.kernel))


class Wav2Vec2Layer(nnx.Module):
    """Self-attention and feed-forward, with norms before or after each."""

    def __init__(self, config: Wav2Vec2EncoderConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.rate, self.pre_norm = config.dropout, config.pre_norm
        self.attention_norm = LayerNorm(dim, rngs=rngs)
        gated = config.relative is not None
        self.attention = (
            GatedAttention(dim, config.num_heads, rngs=rngs) if gated else PlainAttention(config, rngs=rngs)
        )
        self.ffn_norm = LayerNorm(dim, rngs=rngs)
        self.ffn = FeedForward(dim, config.ffn_dim, config.dropout, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        segments: Segments,
        context: Float[Array, "heads distances"] | None,
        keys: FrameKeys | None,
    ) -> Float[Array, "batch time dim"]:
        """Returns the residual stream after the layer; `context` is passed to attention."""
        weights_key, mixed_key, inner_key, out_key = split_keys(keys, 4)
        mixed = self.attention(gather_residual(self._before(self.attention_norm, x)), segments, context, weights_key)
        x = self._after(self.attention_norm, shard_residual(x + dropout(scatter_residual(mixed), self.rate, mixed_key)))
        out = self.ffn(gather_residual(self._before(self.ffn_norm, x)), inner_key)
        return self._after(self.ffn_norm, shard_residual(x + dropout(scatter_residual(out), self.rate, out_key)))

    def _before(self, norm: LayerNorm, x: Array) -> Array:
        return norm(x) if self.pre_norm else x

    def _after(self, norm: LayerNorm, x: Array) -> Array:
        return x if self.pre_norm else norm(x)


class Wav2Vec2Encoder(Encoder):
    """Encodes samples to one hidden state for every `config.subsampling` of them.

    Over the mesh axis "sequence" the transformer's frames are sharded; the convolutions over samples are not.
    """

    def __init__(self, config: Wav2Vec2EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, channels = config.dim, config.channels[-1]
        self.convolutions = nnx.Dict(
            {f"layer{layer}": SampleConvolution(config, layer, rngs=rngs) for layer in range(len(config.channels))}
        )
        self.input_norm = LayerNorm(channels, rngs=rngs) if config.input_norm else None
        self.input = Linear((channels,), (dim,), (None, "embed"), rngs=rngs)
        self.positions = Positions(config, rngs=rngs)
        self.norm = LayerNorm(dim, rngs=rngs)
        self.layers = stack(lambda rngs: Wav2Vec2Layer(config, rngs=rngs), config.num_layers, rngs)
        self.distance = config.relative and parameter(
            rngs.params(),
            (config.relative.buckets, config.num_heads),
            (None, "heads"),
            jax.nn.initializers.normal(0.02),
        )

    def latents(self, x_BxTxF: Float[Array, "batch time 1"], lengths: Lengths) -> Float[Array, "batch frames channels"]:
        """Returns the output of the convolutions, normalised if `config.input_norm`; arbitrary at padding."""
        config = self.config
        x = shard_batch_dim(x_BxTxF.astype(config.dtype))
        if isinstance(x.shape[1], int) and x.shape[1] < config.reach:  # too short for a frame
            x = jnp.pad(x, ((0, 0), (0, config.reach - x.shape[1]), (0, 0)))
        for layer in range(len(self.convolutions)):
            convolution = self.convolutions[f"layer{layer}"]
            x, lengths = rematerialised(convolution, config.remat)(x, lengths)
        return x if self.input_norm is None else self.input_norm(x)

    def targets(self, x_BxTxF: Float[Array, "batch time 1"], lengths: Lengths) -> Float[Array, "batch frames channels"]:
        """Returns what wav2vec 2.0 quantizes: `latents`, before the projection."""
        return sequence.pad_time(self.latents(x_BxTxF, lengths))

    def embed(self, x_BxTxF: Float[Array, "batch time 1"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        """Returns frames before positions, in the compute type; values at padding are arbitrary."""
        return self.embed_targets(self.targets(x_BxTxF, lengths))

    def embed_targets(self, x: Float[Array, "batch frames channels"]) -> Float[Array, "batch frames dim"]:
        """Returns `embed`'s output from that of `targets`: its projection."""
        return shard_batch_and_time(self.input(x))

    def encode(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        lengths: Lengths,
        *,
        keys: Key[Array, "*utterances"] | None = None,
        chunk: Chunk | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """As of `Encoder`; with norms before the layers, the hidden states have a final norm, those of taps have not.

        Tap 0 is the sum of the frames and their positions, normalised if norms are after the layers.
        """
        config, segments = self.config, Segments.of(lengths)
        num_frames = x_BxTxD.shape[1]
        x = shard_batch_and_time(sequence.pad_time(x_BxTxD))
        x = shard_batch_and_time(x + self.positions(x, segments))[:, :num_frames]
        x = x if config.pre_norm else self.norm(x)
        x, tapped = super().encode(x, lengths, keys=keys, taps=taps)
        if config.pre_norm:
            x = jnp.where(segments.mask(num_frames)[..., None], self.norm(x), 0)
        return x, tapped

    def _context(self, chunk: None, num_frames: int) -> Float[Array, "heads distances"] | None:
        if self.distance is None:
            return None
        return bias_by_distance(self.distance[...], num_frames, self.config.relative.longest)


def forward_flops(config: Wav2Vec2EncoderConfig, num_vectors: int, batch_size: int) -> float:
    """Returns the FLOPs of the products of one forward pass, padding included; a multiply-add is two.

    Convolutions of positions count as the direct sums that they stand for.
    """
    dim, frames = config.dim, config.num_frames(num_vectors)
    inputs, samples, total = (1, *config.channels), num_vectors, 0
    for layer, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True)):
        samples = max((samples - kernel) // stride + 1, 0)
        total += samples * kernel * inputs[layer] * inputs[layer + 1]
    positions = (config.position_layers or 1) * config.position_kernel * dim // config.position_groups
    layer = (4 * dim + 2 * config.ffn_dim + 2 * frames) * dim
    total += frames * (inputs[-1] * dim + positions * dim + config.num_layers * layer)
    return 2.0 * total * batch_size
