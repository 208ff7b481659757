"""Adapters: from an encoder's frames to fewer vectors of a language model's width.

Each gives `num_outputs(frames)` vectors for so many frames, whatever is in them, so that shapes are known ahead; what
an utterance gives does not depend on the padding behind it. `forward_flops(frames, dim, width)` counts the matrix
products of one row: from so many frames of width `dim` to vectors of width `width`.
"""

import itertools
from typing import Annotated, Literal, TypeVar

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.nn.attention.dot import masked_attention
from jax_speechlm.nn.functional import parameter, scan_layers, stack
from jax_speechlm.nn.layers import LayerNorm, Linear
from jax_speechlm.parallel.mesh import shard_batch_dim

Frames = TypeVar("Frames", int, Int[Array, " batch"])
Adapted = tuple[Float[Array, "batch outputs width"], Int[Array, " batch"]]
"""Vectors, 0 behind an utterance's last, and how many each utterance has."""


_OUT_GAIN = 0.1
"""Of the last map: speech then begins about as long as tokens' embeddings are. A residual stream that is much longer is
hardly moved by the layers that it passes."""


class Stacking(Config):
    """k frames side by side, through a feed-forward network of one hidden layer with ReLU (Ma et al. 2024, SLAM-ASR).

    Attributes:
      frames: how many frames become one vector.
      hidden_dim: width of the hidden layer.
      bias: whether the two maps add one; Hugging Face's Voxtral has none.
    """

    kind: Literal["stacking"] = "stacking"
    frames: pydantic.PositiveInt = 4
    hidden_dim: pydantic.PositiveInt = 512
    bias: bool = True

    def num_outputs(self, frames: Frames) -> Frames:
        return -(-frames // self.frames)

    def forward_flops(self, frames: int, dim: int, width: int) -> float:
        return 2.0 * self.num_outputs(frames) * self.hidden_dim * (self.frames * dim + width)

    def build(self, dim: int, width: int, rngs: nnx.Rngs) -> "StackingAdapter":
        return StackingAdapter(self, dim, width, rngs=rngs)


class Convolutional(Config):
    """Strided convolutions over time, each with a GELU behind it, then a linear map.

    Attributes:
      num_layers: convolutions.
      stride: of each, so that stride^num_layers frames become one vector.
      kernel_size: frames that each sees, around those that it steps over; odd.
      hidden_dim: channels.
    """

    kind: Literal["convolution"] = "convolution"
    num_layers: pydantic.PositiveInt = 2
    stride: pydantic.PositiveInt = 2
    kernel_size: pydantic.PositiveInt = 5
    hidden_dim: pydantic.PositiveInt = 512

    @pydantic.field_validator("kernel_size")
    @classmethod
    def _has_a_middle(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"kernel_size ({value}) must be odd: the kernel lies around its frame")
        return value

    def num_outputs(self, frames: Frames) -> Frames:
        for _ in range(self.num_layers):
            frames = -(-frames // self.stride)
        return frames

    def forward_flops(self, frames: int, dim: int, width: int) -> float:
        total = 0.0
        for _ in range(self.num_layers):
            frames = -(-frames // self.stride)
            total += 2.0 * frames * self.kernel_size * dim * self.hidden_dim
            dim = self.hidden_dim
        return total + 2.0 * frames * dim * width

    def build(self, dim: int, width: int, rngs: nnx.Rngs) -> "ConvolutionalAdapter":
        return ConvolutionalAdapter(self, dim, width, rngs=rngs)


class QFormer(Config):
    """A few learnt queries look at each window of frames (Li et al. 2023; in windows as Tang et al. 2024, SALMONN).

    Attributes:
      window: frames of a window.
      queries: vectors that each window gives.
      num_layers: blocks of self-attention, attention to the frames, and feed-forward.
      num_heads: of both; divides `dim`.
      dim: width inside.
    """

    kind: Literal["qformer"] = "qformer"
    window: pydantic.PositiveInt = 8
    queries: pydantic.PositiveInt = 2
    num_layers: pydantic.PositiveInt = 2
    num_heads: pydantic.PositiveInt = 4
    dim: pydantic.PositiveInt = 256

    @pydantic.model_validator(mode="after")
    def _heads_divide_dim(self):
        if self.dim % self.num_heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads})")
        return self

    def num_outputs(self, frames: Frames) -> Frames:
        return -(-frames // self.window) * self.queries

    def forward_flops(self, frames: int, dim: int, width: int) -> float:
        windows, inner = -(-frames // self.window), self.dim
        query = (4 + 2 + 2 * 4) * inner * inner + 2 * inner * (self.queries + self.window)
        block = self.queries * query + 2 * self.window * dim * inner
        return 2.0 * windows * (self.num_layers * block + self.queries * inner * width)

    def build(self, dim: int, width: int, rngs: nnx.Rngs) -> "QFormerAdapter":
        return QFormerAdapter(self, dim, width, rngs=rngs)


AdapterConfig = Annotated[Stacking | Convolutional | QFormer, pydantic.Field(discriminator="kind")]


class StackingAdapter(nnx.Module):
    def __init__(self, config: Stacking, dim: int, width: int, *, rngs: nnx.Rngs):
        self.config = config
        hidden, bias = (config.hidden_dim,), config.bias
        self.expand = Linear((config.frames * dim,), hidden, ("embed", "mlp"), bias=bias, rngs=rngs)
        self.contract = Linear(hidden, (width,), ("mlp", "embed"), bias=bias, gain=_OUT_GAIN, rngs=rngs)

    def __call__(self, x_BxTxD: Float[Array, "batch time dim"], length_B: Int[Array, " batch"]) -> Adapted:
        x = _windows(_masked(x_BxTxD, length_B), self.config.frames)
        x = self.contract(jax.nn.relu(self.expand(x.reshape(*x.shape[:2], -1))))
        return _finish(x, self.config.num_outputs(length_B))


class ConvolutionalAdapter(nnx.Module):
    def __init__(self, config: Convolutional, dim: int, width: int, *, rngs: nnx.Rngs):
        self.config = config
        dims = (dim, *(config.hidden_dim,) * config.num_layers)
        self.layers = nnx.Dict(
            {
                f"layer{number}": Linear((config.kernel_size, *sizes[:1]), sizes[1:], (None, "embed", "mlp"), rngs=rngs)
                for number, sizes in enumerate(itertools.pairwise(dims))
            }
        )
        self.out = Linear((config.hidden_dim,), (width,), ("mlp", "embed"), gain=_OUT_GAIN, rngs=rngs)

    def __call__(self, x_BxTxD: Float[Array, "batch time dim"], length_B: Int[Array, " batch"]) -> Adapted:
        x, stride = x_BxTxD, self.config.stride
        for layer in self.layers.values():
            x = jax.nn.gelu(layer(_around(_masked(x, length_B), self.config.kernel_size, stride)))
            length_B = -(-length_B // stride)
        return _finish(self.out(x), length_B)


class QFormerBlock(nnx.Module):
    """Self-attention of the queries, attention from them to the frames, feed-forward; each on a norm, and added."""

    def __init__(self, config: QFormer, dim_in: int, *, rngs: nnx.Rngs):
        dim, heads = config.dim, (config.num_heads, config.dim // config.num_heads)
        into = ("embed", "heads", "head_dim")
        norm = lambda: LayerNorm(dim, rngs=rngs)  # noqa: E731
        project = lambda size: Linear((size,), heads, into, rngs=rngs)  # noqa: E731
        back = lambda: Linear(heads, (dim,), ("heads", "head_dim", "embed"), rngs=rngs)  # noqa: E731
        self.self_norm, self.cross_norm, self.ffn_norm = norm(), norm(), norm()
        self.self_query, self.self_key, self.self_value, self.self_out = (
            project(dim),
            project(dim),
            project(dim),
            back(),
        )
        self.query, self.key, self.value, self.out = project(dim), project(dim_in), project(dim_in), back()
        self.expand = Linear((dim,), (4 * dim,), ("embed", "mlp"), rngs=rngs)
        self.contract = Linear((4 * dim,), (dim,), ("mlp", "embed"), rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "windows queries dim"],
        frames: Float[Array, "windows time dim_in"],
        mask: Bool[Array, "windows time"],
    ) -> Float[Array, "windows queries dim"]:
        normed = self.self_norm(x)
        each_other = jnp.ones((x.shape[0], x.shape[1], x.shape[1]), bool)
        mixed = masked_attention(self.self_query(normed), self.self_key(normed), self.self_value(normed), each_other)
        x = x + self.self_out(mixed)
        q, k, v = self.query(self.cross_norm(x)), self.key(frames), self.value(frames)
        sees = jnp.broadcast_to(mask[:, None], (*x.shape[:2], mask.shape[1]))
        x = x + self.out(masked_attention(q, k, v, sees))
        return x + self.contract(jax.nn.gelu(self.expand(self.ffn_norm(x))))


class QFormerAdapter(nnx.Module):
    def __init__(self, config: QFormer, dim: int, width: int, *, rngs: nnx.Rngs):
        self.config = config
        vectors = lambda count, size: parameter(  # noqa: E731
            rngs.params(), (count, size), (None, "embed"), jax.nn.initializers.normal(0.02)
        )
        self.queries = vectors(config.queries, config.dim)
        self.places = vectors(config.window, dim)  # of a frame in its window: attention alone knows no order
        self.layers = stack(lambda rngs: QFormerBlock(config, dim, rngs=rngs), config.num_layers, rngs)
        self.norm = LayerNorm(config.dim, rngs=rngs)
        self.out = Linear((config.dim,), (width,), (None, "embed"), gain=_OUT_GAIN, rngs=rngs)

    def __call__(self, x_BxTxD: Float[Array, "batch time dim"], length_B: Int[Array, " batch"]) -> Adapted:
        config, batch = self.config, len(length_B)
        frames = _windows(x_BxTxD, config.window) + self.places[...].astype(x_BxTxD.dtype)
        mask = _windows(frame_mask(length_B, x_BxTxD.shape[1])[..., None], config.window)[..., 0]
        frames, mask = (x.reshape(-1, *x.shape[2:]) for x in (frames, mask))
        x = jnp.broadcast_to(self.queries[...].astype(frames.dtype), (len(frames), config.queries, config.dim))
        x, _ = scan_layers(self.layers, lambda block, x, _: (block(x, frames, mask), None), x, None, "none")
        x = self.out(self.norm(x))
        return _finish(x.reshape(batch, -1, x.shape[-1]), config.num_outputs(length_B))


def _masked(x: Array, length_B: Array) -> Array:
    return jnp.where(frame_mask(length_B, x.shape[1])[..., None], x, 0)


def _windows(x_BxTxD: Array, size: int) -> Array:
    """[batch, windows, size, dim]: windows side by side, the last one filled up with zeros."""
    batch, time, dim = x_BxTxD.shape
    count = -(-time // size)
    return jnp.pad(x_BxTxD, ((0, 0), (0, count * size - time), (0, 0))).reshape(batch, count, size, dim)


def _around(x_BxTxD: Array, size: int, stride: int) -> Array:
    """[batch, ceil(time / stride), size, dim]: the frames around every stride-th frame, zeros beyond the ends."""
    count = -(-x_BxTxD.shape[1] // stride)
    x = jnp.pad(x_BxTxD, ((0, 0), (size // 2, size // 2 + stride), (0, 0)))
    return jnp.stack([x[:, k : k + count * stride : stride] for k in range(size)], axis=2)


def _finish(x: Array, length_B: Array) -> Adapted:
    return shard_batch_dim(_masked(x.astype(jnp.float32), length_B)), length_B
