"""The macaron conformer, in the form of Hugging Face's Wav2Vec2-BERT encoder.

LayerNorm only, relative-key attention, causal depthwise convolution, stacked log-mel frames in. Given the same weights
it gives the same numbers as `Wav2Vec2BertModel` (`jax_speechlm.interop.hf.wav2vec2_bert` maps them both ways).

Parameters at 160 inputs (two stacked frames of 80 mel bins):

| size | layers | dim  | heads | parameters  |
|------|-------:|-----:|------:|------------:|
| XS   |      6 |   96 |     4 |   1,330,928 |
| S    |     10 |  192 |     4 |   8,654,432 |
| M    |     16 |  256 |     4 |  24,467,008 |
| L    |     17 |  512 |     8 | 103,156,608 |
| XL   |     24 | 1024 |    16 | 580,492,096 |
| 2B   |     36 | 1536 |    16 | 1,957,148,864 |

XL is w2v-BERT 2.0's shape; 2B is as wide as the larger encoder of Google USM (arXiv:2303.01037).
"""

from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.nn.attention.relative import Chunk, RelativeAttention
from jax_speechlm.nn.functional import Remat, parameter, scan_layers, stack
from jax_speechlm.nn.layers import Count, Keys, LayerNorm, Linear, causal_depthwise, dropout, split_keys
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import shard_batch_and_time


class ConformerConfig(Config):
    """The shape of a conformer encoder.

    Attributes:
      input_dim: features a frame, after stacking.
      dim: width of the residual stream; a multiple of `num_heads`.
      num_layers: conformer blocks.
      num_heads: attention heads.
      ffn_multiple: inner width of the feed-forward modules over `dim`; their product, rounded.
      kernel_size: frames that the depthwise convolution sees: the present one and those before it.
      left_max: distance in frames at which keys before the query stop being told apart.
      right_max: the same for keys after the query.
      dropout: rate after the input projection, inside and after each feed-forward, after attention and convolution.
      attention_dropout: rate on the attention weights.
      chunk_lengths: chunk lengths in frames that `draw_chunk` chooses from in dynamic-chunk training; empty: none.
      remat: what the forward pass keeps for the backward pass (see `functional.Remat`).
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
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _heads_divide_dim(self):
        if self.dim % self.num_heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads})")
        return self

    @property
    def ffn_dim(self) -> int:
        """Inner width of the feed-forward modules."""
        return round(self.ffn_multiple * self.dim)

    @property
    def subsampling(self) -> int:
        """Feature vectors that become one frame."""
        return 1

    def num_frames(self, num_vectors: Count) -> Count:
        """Frames that come from so many feature vectors."""
        return num_vectors


SIZES = {
    "XS": ConformerConfig(dim=96, num_layers=6, num_heads=4),
    "S": ConformerConfig(dim=192, num_layers=10, num_heads=4),
    "M": ConformerConfig(dim=256, num_layers=16, num_heads=4),
    "L": ConformerConfig(dim=512, num_layers=17, num_heads=8),
    "XL": ConformerConfig(dim=1024, num_layers=24, num_heads=16),
    "2B": ConformerConfig(dim=1536, num_layers=36, num_heads=16),
}


class FeedForward(nnx.Module):
    """LayerNorm -> linear (ffn_multiple x) -> SiLU -> linear. Takes the config of any conformer."""

    def __init__(self, config: Config, *, bias: bool = True, rngs: nnx.Rngs):
        dim, inner = config.dim, config.ffn_dim
        self.rate = config.dropout
        self.norm = LayerNorm(dim, rngs=rngs)
        self.expand = Linear((dim,), (inner,), ("embed", "mlp"), bias=bias, rngs=rngs)
        self.contract = Linear((inner,), (dim,), ("mlp", "embed"), bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time dim"], keys: Keys | None) -> Float[Array, "batch time dim"]:
        inner, outer = split_keys(keys, 2)
        x = dropout(jax.nn.silu(self.expand(self.norm(x))), self.rate, inner)
        return dropout(self.contract(x), self.rate, outer)


class CausalConvolution(nnx.Module):
    """LayerNorm -> pointwise (2x) -> GLU -> causal depthwise -> LayerNorm -> SiLU -> pointwise.

    The conformer's convolution module (Gulati et al. 2020, section 2.2) without batch normalisation and without a view
    of the future: nothing in it depends on the batch, on padding, or on frames to come.
    """

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs):
        dim, taps = config.dim, config.kernel_size
        self.rate = config.dropout
        self.norm_in = LayerNorm(dim, rngs=rngs)
        # The halves of the gated unit are an axis of their own, so that sharding "mlp" keeps value and gate together.
        self.expand = Linear((dim,), (2, dim), ("embed", None, "mlp"), bias=False, rngs=rngs)
        self.depthwise = parameter(
            rngs.params(), (taps, dim), (None, "mlp"), jax.nn.initializers.truncated_normal(taps**-0.5)
        )
        self.norm_mid = LayerNorm(dim, axis="mlp", rngs=rngs)
        self.contract = Linear((dim,), (dim,), ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], mask_BxT: Bool[Array, "batch time"], keys: Keys | None
    ) -> Float[Array, "batch time dim"]:
        # Padding must not reach a real frame. It lies after them and the convolution looks back, so this guards what a
        # later layout might change, and costs nothing: it is the reference's order of operations.
        x = jnp.where(mask_BxT[..., None], self.norm_in(x), 0)
        x = self.expand(x)
        x = x[..., 0, :] * jax.nn.sigmoid(x[..., 1, :])
        kernel = self.depthwise[...].astype(x.dtype)
        x = sequence.with_context(causal_depthwise, x, (kernel,), past=len(kernel) - 1)
        return dropout(self.contract(jax.nn.silu(self.norm_mid(x))), self.rate, keys)


class ConformerLayer(nnx.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each residual; then LayerNorm."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs):
        self.rate = config.dropout
        self.ffn1 = FeedForward(config, rngs=rngs)
        self.attention_norm = LayerNorm(config.dim, rngs=rngs)
        self.attention = RelativeAttention(
            config.dim, config.num_heads, config.left_max, config.right_max, config.attention_dropout, rngs=rngs
        )
        self.convolution = CausalConvolution(config, rngs=rngs)
        self.ffn2 = FeedForward(config, rngs=rngs)
        self.norm = LayerNorm(config.dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        mask_BxT: Bool[Array, "batch time"],
        chunk: Chunk | None,
        keys: Keys | None,
    ) -> Float[Array, "batch time dim"]:
        ffn1, weights, attention, convolution, ffn2 = split_keys(keys, 5)
        x = shard_batch_and_time(x + 0.5 * self.ffn1(x, ffn1))
        x = x + dropout(self.attention(self.attention_norm(x), mask_BxT, chunk, weights), self.rate, attention)
        x = shard_batch_and_time(x)
        x = shard_batch_and_time(x + self.convolution(x, mask_BxT, convolution))
        x = shard_batch_and_time(x + 0.5 * self.ffn2(x, ffn2))
        return shard_batch_and_time(self.norm(x))


class Conformer(nnx.Module):
    """Stacked log-mel frames in, hidden states out, one for each frame.

    A frame's output depends on its own utterance's frames only: not on padding, batch size or row order.
    """

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.input_norm = LayerNorm(config.input_dim, axis=None, rngs=rngs)
        # A frame that SpecAugment blanks is 0 and becomes this bias: were that 0 too, the first layer's norms would
        # divide by nearly nothing and its gradient would drown all others.
        self.input = Linear((config.input_dim,), (config.dim,), (None, "embed"), bias_scale=0.5, rngs=rngs)
        self.layers = stack(lambda rngs: ConformerLayer(config, rngs=rngs), config.num_layers, rngs)

    def __call__(
        self,
        x_BxTxF: Float[Array, "batch time features"],
        length_B: Int[Array, " batch"],
        *,
        keys: Key[Array, " batch"] | None = None,
        chunk: Chunk | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """Encodes a batch.

        Args:
          x_BxTxF: features.
          length_B: valid frames of each row; may be 0.
          keys: one key a row (`jax_speechlm.core.batch.example_keys`) for dropout, or None for evaluation.
          chunk: limits what attention sees (see `chunk_mask`); None for all of the utterance.
          taps: layer counts after which hidden states are wanted too, up to `num_layers`; 0 is what enters the layers.

        Returns:
          float32 hidden states after the last layer, and those after each tap. Both are 0 at padding.
        """
        return self.encode(self.embed(x_BxTxF), length_B, keys=keys, chunk=chunk, taps=taps)

    def embed(self, x_BxTxF: Float[Array, "batch time features"]) -> Float[Array, "batch time dim"]:
        """Features as the layers take them: normalised and projected, in the compute type."""
        return shard_batch_and_time(self.input(self.input_norm(x_BxTxF).astype(self.config.dtype)))

    def encode(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        length_B: Int[Array, " batch"],
        *,
        keys: Key[Array, " batch"] | None = None,
        chunk: Chunk | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """The layers, over what `embed` gave or anything else of their width; arguments and result as of the call."""
        run = lambda layer, x, mask_BxT, keys: layer(x, mask_BxT, chunk, keys)  # noqa: E731
        return run_layers(self.layers, run, self.config, x_BxTxD, length_B, keys=keys, taps=taps)


def run_layers(
    layers: nnx.Module,
    call: Callable[[nnx.Module, Array, Array, Keys | None], Array],
    config: Config,
    x_BxTxD: Float[Array, "batch time dim"],
    length_B: Int[Array, " batch"],
    *,
    keys: Key[Array, " batch"] | None,
    taps: tuple[int, ...],
) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
    """A conformer's stacked layers, dropout before the first; other arguments and result as of `Conformer`.

    Args:
      call: `(layer, x, mask [B, T], keys) -> x`; time is filled up to `sequence.padded_time`.
      config: of any conformer.
    """
    if not all(0 <= tap <= config.num_layers for tap in taps):
        raise ValueError(f"taps must lie between 0 and num_layers ({config.num_layers}); got {taps}")
    num_frames = x_BxTxD.shape[1]
    x_BxTxD = shard_batch_and_time(sequence.pad_time(x_BxTxD))
    mask_BxT = frame_mask(length_B, x_BxTxD.shape[1])

    *keys_L, key_in = split_keys(keys, config.num_layers + 1)
    x = jnp.where(mask_BxT[..., None], dropout(x_BxTxD, config.dropout, key_in), 0)
    inner = any(tap > 0 for tap in taps)

    def run(layer: nnx.Module, x: Array, keys: Keys | None) -> tuple[Array, Array | None]:
        x = call(layer, x, mask_BxT, keys)
        return x, x if inner else None

    keys_L = None if keys is None else jnp.stack(keys_L)
    x, every_x = scan_layers(layers, run, x, keys_L, config.remat)
    finish = lambda x: jnp.where(mask_BxT[..., None], x.astype(jnp.float32), 0)[:, :num_frames]  # noqa: E731
    return finish(x), {tap: finish(every_x[tap - 1] if tap else x_BxTxD) for tap in taps}


def draw_chunk(config: ConformerConfig, key: PRNGKeyArray) -> Chunk | None:
    """The chunk of one training step: full attention half of the time, else one of `chunk_lengths` and all before it.

    Values are traced, so that one compiled step serves every draw (Zhang et al. 2020, unified streaming training).
    """
    if not config.chunk_lengths:
        return None
    which, full = jax.random.split(key)
    length = jax.random.choice(which, jnp.asarray(config.chunk_lengths, jnp.int32))
    everything = jnp.iinfo(jnp.int32).max
    return jnp.where(jax.random.bernoulli(full), everything, length), -1


def forward_flops(config: ConformerConfig, num_frames: int, batch_size: int) -> float:
    """FLOPs of the matrix products of one forward pass, padding included; a multiply-add is two."""
    dim, distances = config.dim, config.left_max + 1 + config.right_max
    linear = (4 * config.ffn_dim + (4 + 3) * dim) * dim  # two feed-forwards, attention's four maps, pointwise 2 + 1
    attention = (2 * num_frames + distances) * dim
    convolution = config.kernel_size * dim
    frame = config.num_layers * (linear + attention + convolution) + config.input_dim * dim
    return 2.0 * frame * num_frames * batch_size
