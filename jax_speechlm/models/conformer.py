"""The conformer encoder (Gulati et al. 2020) in the form of Hugging Face's Wav2Vec2-BERT.

It has LayerNorm only, relative-key attention and a causal depthwise convolution, and takes stacked log-mel frames. With
the same weights it computes the same numbers as `Wav2Vec2BertModel` (`jax_speechlm.interop.hf.wav2vec2_bert` converts
the weights).

Parameters at 160 inputs (two stacked frames of 80 mel bins):

| size | layers | dim  | heads | parameters  |
|------|-------:|-----:|------:|------------:|
| XS   |      6 |   96 |     4 |   1,330,928 |
| S    |     10 |  192 |     4 |   8,654,432 |
| M    |     16 |  256 |     4 |  24,467,008 |
| L    |     17 |  512 |     8 | 103,156,608 |
| XL   |     24 | 1024 |    16 | 580,492,096 |
| 2B   |     36 | 1536 |    16 | 1,957,148,864 |

XL is the shape of w2v-BERT 2.0; 2B has the width of the larger encoder of Google USM (arXiv:2303.01037).
"""

from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments
from jax_speechlm.models.encoder_base import FeatureEncoder, FeatureEncoderConfig, LayerState, Make
from jax_speechlm.nn.attention.relative import Chunk, PositionalContext, RelativeAttention
from jax_speechlm.nn.functional import Remat, parameter
from jax_speechlm.nn.layers import FrameKeys, LayerNorm, Linear, depthwise, depthwise_step, dropout, split_keys
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import shard_batch_and_time


class ConformerConfig(FeatureEncoderConfig):
    """The shape of a conformer encoder.

    Attributes:
      input_dim: features a frame, after stacking.
      dim: width of the residual stream; a multiple of `num_heads`.
      num_layers: conformer layers.
      num_heads: attention heads.
      ffn_multiple: inner width of the feed-forward modules as a multiple of `dim`, rounded to whole units.
      kernel_size: taps of the depthwise convolution: the present frame and earlier ones.
      left_max: distance in frames before the query beyond which all keys share one distance vector.
      right_max: the same for keys after the query.
      dropout: rate after the input projection, inside and after each feed-forward, after attention and convolution.
      attention_dropout: rate on the attention weights.
      chunk_lengths: chunk lengths in frames that `draw_chunk` draws from in dynamic-chunk training; empty for none.
      left_context: frames before a chunk that its frames attend to, rounded down to whole chunks; None for all, which
        cannot stream.
      remat: activations that the forward pass keeps for the backward pass (see `functional.Remat`).
      dtype: compute type; parameters, norms, softmax and the output are float32.
    """

    kind: Literal["conformer"] = "conformer"
    input_dim: pydantic.PositiveInt = 160
    dim: pydantic.PositiveInt = 192
    num_layers: pydantic.PositiveInt = 10
    num_heads: pydantic.PositiveInt = 4
    ffn_multiple: pydantic.PositiveInt | Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] = 4
    kernel_size: pydantic.PositiveInt = 31
    left_max: pydantic.NonNegativeInt = 64
    right_max: pydantic.NonNegativeInt = 8
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    attention_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    chunk_lengths: tuple[pydantic.PositiveInt, ...] = ()
    left_context: pydantic.PositiveInt | None = None
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _heads_divide_dim(self):
        if self.dim % self.num_heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads})")
        return self

    @pydantic.model_validator(mode="after")
    def _left_context_holds_a_chunk(self):
        check_left_context(self)
        return self

    @property
    def ffn_dim(self) -> int:
        """Inner width of the feed-forward modules."""
        return round(self.ffn_multiple * self.dim)


def check_left_context(config: Config) -> None:
    """Raises ValueError if chunks are longer than the frames that are visible before them."""
    if config.left_context is not None and config.left_context < max(config.chunk_lengths, default=0):
        raise ValueError(
            f"left_context ({config.left_context}) must be at least the longest of chunk_lengths "
            f"({max(config.chunk_lengths)}), or None"
        )


SIZES = {
    "XS": ConformerConfig(dim=96, num_layers=6, num_heads=4),
    "S": ConformerConfig(dim=192, num_layers=10, num_heads=4),
    "M": ConformerConfig(dim=256, num_layers=16, num_heads=4),
    "L": ConformerConfig(dim=512, num_layers=17, num_heads=8),
    "XL": ConformerConfig(dim=1024, num_layers=24, num_heads=16),
    "2B": ConformerConfig(dim=1536, num_layers=36, num_heads=16),
}


class FeedForward(nnx.Module):
    """LayerNorm -> linear (to `ffn_dim`) -> SiLU -> linear, for the config of any conformer."""

    def __init__(self, config: Config, *, bias: bool = True, rngs: nnx.Rngs):
        dim, inner = config.dim, config.ffn_dim
        self.rate = config.dropout
        self.norm = LayerNorm(dim, rngs=rngs)
        self.expand = Linear((dim,), (inner,), ("embed", "mlp"), bias=bias, rngs=rngs)
        self.contract = Linear((inner,), (dim,), ("mlp", "embed"), bias=bias, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], segments: Segments, keys: FrameKeys | None
    ) -> Float[Array, "batch time dim"]:
        del segments  # frames are independent
        inner, outer = split_keys(keys, 2)
        x = dropout(jax.nn.silu(self.expand(self.norm(x))), self.rate, inner)
        return dropout(self.contract(x), self.rate, outer)


class CausalConvolution(nnx.Module):
    """LayerNorm -> pointwise (2x) -> GLU -> causal depthwise -> LayerNorm -> SiLU -> pointwise.

    The conformer's convolution module (Gulati et al. 2020, section 2.2), causal and without batch normalisation: the
    output does not depend on the batch, on padding or on later frames. Of the config it needs `dim`, `kernel_size` and
    `dropout`.

    Args:
      bias: whether its maps have one, the depthwise convolution included.
    """

    def __init__(self, config: Config, *, bias: bool = False, rngs: nnx.Rngs):
        dim, taps = config.dim, config.kernel_size
        self.rate = config.dropout
        self.norm_in = LayerNorm(dim, rngs=rngs)
        # Value and gate are a separate axis, so that sharding "mlp" keeps the two of a channel on one device.
        self.expand = Linear((dim,), (2, dim), ("embed", None, "mlp"), bias=bias, rngs=rngs)
        self.depthwise = parameter(
            rngs.params(), (taps, dim), (None, "mlp"), jax.nn.initializers.truncated_normal(taps**-0.5)
        )
        zeros = jax.nn.initializers.zeros
        self.offset = parameter(rngs.params(), (dim,), ("mlp",), zeros, decays=False) if bias else None
        self.norm_mid = LayerNorm(dim, axis="mlp", rngs=rngs)
        self.contract = Linear((dim,), (dim,), ("mlp", "embed"), bias=bias, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], segments: Segments, keys: FrameKeys | None
    ) -> Float[Array, "batch time dim"]:
        # A causal convolution over padding at the end of a row needs no mask; it keeps the reference's order of
        # operations.
        x = self._gated(jnp.where(segments.mask(x.shape[1])[..., None], self.norm_in(x), 0))
        x = convolve(x, self.depthwise[...].astype(x.dtype), segments, ahead=0)
        return dropout(self._contracted(x), self.rate, keys)

    def init_state(self, batch: int, dtype: jnp.dtype) -> Float[Array, "batch past dim"]:
        """Returns the inputs of the depthwise convolution before the first frame."""
        taps, dim = self.depthwise.shape
        return jnp.zeros((batch, taps - 1, dim), dtype)

    def step(
        self, state: Float[Array, "batch past dim"], x: Float[Array, "batch chunk dim"]
    ) -> tuple[Float[Array, "batch past dim"], Float[Array, "batch chunk dim"]]:
        """Processes the next frames of a stream."""
        x = self._gated(self.norm_in(x))
        state, x = depthwise_step(state, x, self.depthwise[...].astype(x.dtype))
        return state, self._contracted(x)

    def _gated(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        x = self.expand(x)
        return x[..., 0, :] * jax.nn.sigmoid(x[..., 1, :])

    def _contracted(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        x = x if self.offset is None else x + self.offset[...].astype(x.dtype)
        return self.contract(jax.nn.silu(self.norm_mid(x)))


def convolve(
    x: Float[Array, "batch time dim"], kernel: Float[Array, "taps dim"], segments: Segments, *, ahead: int
) -> Float[Array, "batch time dim"]:
    """Computes `layers.depthwise` of each utterance by itself, with time sharded."""
    context = {"past": len(kernel) - 1 - ahead, "future": ahead}
    if segments.num == 1:
        return sequence.with_context(lambda x, kernel: depthwise(x, kernel, None, ahead), x, (kernel,), **context)
    segment = segments.segment(x.shape[1])
    return sequence.with_context(
        lambda x, kernel: depthwise(x[0], kernel, x[1], ahead), (x, segment), (kernel,), **context
    )


class MacaronLayer(nnx.Module):
    """One layer of any conformer (Gulati et al. 2020).

    Half a feed-forward, attention, convolution, half a feed-forward, each residual; then LayerNorm.

    Args:
      make_attention: `(rngs=) -> (x, segments, context, keys) -> x`.
      make_convolution: `(rngs=) -> (x, segments, keys) -> x`.
      bias: whether the linear maps of the feed-forwards have one.
      feed_forward: class of the feed-forwards, `(config, bias=, rngs=) -> (x, segments, keys) -> x`.
    """

    def __init__(
        self,
        config: Config,
        make_attention: Make,
        make_convolution: Make,
        *,
        bias: bool,
        feed_forward: Make = FeedForward,
        rngs: nnx.Rngs,
    ):
        self.rate = config.dropout
        self.ffn1 = feed_forward(config, bias=bias, rngs=rngs)
        self.attention_norm = LayerNorm(config.dim, rngs=rngs)
        self.attention = make_attention(rngs=rngs)
        self.convolution = make_convolution(rngs=rngs)
        self.ffn2 = feed_forward(config, bias=bias, rngs=rngs)
        self.norm = LayerNorm(config.dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        segments: Segments,
        context: Chunk | PositionalContext | None,
        keys: FrameKeys | None,
    ) -> Float[Array, "batch time dim"]:
        """Returns the residual stream after the layer. `context` is passed to attention."""
        ffn1, weights, attention, convolution, ffn2 = split_keys(keys, 5)
        x = shard_batch_and_time(x + 0.5 * self.ffn1(x, segments, ffn1))
        x = x + dropout(self.attention(self.attention_norm(x), segments, context, weights), self.rate, attention)
        x = shard_batch_and_time(x)
        x = shard_batch_and_time(x + self.convolution(x, segments, convolution))
        x = shard_batch_and_time(x + 0.5 * self.ffn2(x, segments, ffn2))
        return shard_batch_and_time(self.norm(x))

    def init_state(self, batch: int, left: int, dtype: jnp.dtype) -> "LayerState":
        """Returns the state before the first frame, for `left` frames of attention's context."""
        return LayerState(self.attention.init_state(batch, left, dtype), self.convolution.init_state(batch, dtype))

    def step(
        self,
        state: "LayerState",
        x: Float[Array, "batch chunk dim"],
        visible_BxS: Bool[Array, "batch left_and_chunk"],
        context: PositionalContext | None,
    ) -> tuple["LayerState", Float[Array, "batch chunk dim"]]:
        """Processes the next chunk of a stream; `visible_BxS` and `context` are passed to attention."""
        segments = Segments.of(jnp.full(len(x), x.shape[1]))
        x = x + 0.5 * self.ffn1(x, segments, None)
        attention, y = self.attention.step(state.attention, self.attention_norm(x), visible_BxS, context)
        convolution, y = self.convolution.step(state.convolution, x := x + y)
        x = x + y
        return LayerState(attention, convolution), self.norm(x + 0.5 * self.ffn2(x, segments, None))


class ConformerLayer(MacaronLayer):
    """Layer of `Conformer`."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs):
        reach = config.left_max, config.right_max
        attention = partial(RelativeAttention, config.dim, config.num_heads, *reach, config.attention_dropout)
        super().__init__(config, attention, partial(CausalConvolution, config), bias=True, rngs=rngs)


class Conformer(FeatureEncoder):
    """Encodes stacked log-mel frames; a feature vector is a frame."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs):
        super().__init__(config, partial(ConformerLayer, config), rngs=rngs)


def draw_chunk(config: Config, key: PRNGKeyArray) -> Chunk | None:
    """Draws the chunk of one training step (Zhang et al. 2020, unified streaming and non-streaming training).

    Returns:
      None without `chunk_lengths`; else full attention with probability 0.5, or one of `chunk_lengths` with the chunks
      of `left_context`. The values are traced, so that one compiled step serves every draw.
    """
    if not config.chunk_lengths:
        return None
    which, full = jax.random.split(key)
    length = jax.random.choice(which, jnp.asarray(config.chunk_lengths, jnp.int32))
    everything = jnp.iinfo(jnp.int32).max
    length = jnp.where(jax.random.bernoulli(full), everything, length)
    return length, -1 if config.left_context is None else config.left_context // length


def forward_flops(config: ConformerConfig, num_frames: int, batch_size: int) -> float:
    """Returns the FLOPs of the matrix products of one forward pass, padding included; a multiply-add is two."""
    dim, distances = config.dim, config.left_max + 1 + config.right_max
    linear = (4 * config.ffn_dim + (4 + 3) * dim) * dim  # two feed-forwards, attention's four maps, pointwise 2 + 1
    attention = (2 * num_frames + distances) * dim
    convolution = config.kernel_size * dim
    frame = config.num_layers * (linear + attention + convolution) + config.input_dim * dim
    return 2.0 * frame * num_frames * batch_size
