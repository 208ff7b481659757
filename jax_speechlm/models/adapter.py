"""Adapters: map an encoder's frames to fewer vectors of a language model's width.

`num_outputs(frames)` is the number of vectors for a number of frames. It does not depend on their values, so shapes are
known in advance, and the vectors of an utterance depend neither on padding nor on the other utterances of its row,
which start at multiples of `alignment` frames. `forward_flops(frames, dim, width)`
counts the matrix products for one row, from frames of width `dim` to vectors of width `width`.
"""

import itertools
from functools import partial
from typing import Annotated, Literal, TypeVar

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments, at_rate
from jax_speechlm.nn.attention.dot import masked_attention
from jax_speechlm.nn.functional import parameter, scan_layers, stack
from jax_speechlm.nn.layers import LayerNorm, Linear
from jax_speechlm.parallel.mesh import shard_batch_dim

Frames = TypeVar("Frames", int, Int[Array, "*utterances"])
Adapted = tuple[Float[Array, "batch outputs width"], Lengths]
"""Vectors, 0 at padding, and the utterances of packed rows in vectors, or vectors per row."""


_OUT_GAIN = 0.1
"""Gain of the last map, so that speech vectors initially have about the norm of token embeddings. The layers would
change a residual stream of a much larger norm only slightly."""


class Stacking(Config):
    """Concatenated frames through a feed-forward network of one hidden layer (Ma et al. 2024, SLAM-ASR).

    Attributes:
      frames: frames of one vector.
      hidden_dim: width of the hidden layer.
      bias: whether the two linear maps have one; in Hugging Face's Voxtral they have not.
      activation: of the hidden layer; GELU is the exact one.
    """

    kind: Literal["stacking"] = "stacking"
    frames: pydantic.PositiveInt = 4
    hidden_dim: pydantic.PositiveInt = 512
    bias: bool = True
    activation: Literal["relu", "gelu"] = "relu"

    @property
    def alignment(self) -> int:
        """Divisor of the frame at which an utterance of a packed row starts."""
        return self.frames

    def num_outputs(self, frames: Frames) -> Frames:
        """Returns the number of vectors for `frames` frames."""
        return -(-frames // self.frames)

    def forward_flops(self, frames: int, dim: int, width: int) -> float:
        """Returns the FLOPs for one row."""
        return 2.0 * self.num_outputs(frames) * self.hidden_dim * (self.frames * dim + width)

    def build(self, dim: int, width: int, rngs: nnx.Rngs) -> "StackingAdapter":
        """Declares the module from frames of width `dim` to vectors of width `width`."""
        return StackingAdapter(self, dim, width, rngs=rngs)


class Convolutional(Config):
    """Strided convolutions over time, each followed by GELU, then a linear map.

    Attributes:
      num_layers: number of convolutions.
      stride: of every convolution; stride^num_layers frames become one vector.
      kernel_size: taps of every convolution, centred; odd.
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
            raise ValueError(f"kernel_size ({value}) must be odd: the kernel is centred on its frame")
        return value

    @property
    def alignment(self) -> int:
        """Divisor of the frame at which an utterance of a packed row starts."""
        return self.stride**self.num_layers

    def num_outputs(self, frames: Frames) -> Frames:
        """Returns the number of vectors for `frames` frames."""
        for _ in range(self.num_layers):
            frames = -(-frames // self.stride)
        return frames

    def forward_flops(self, frames: int, dim: int, width: int) -> float:
        """Returns the FLOPs for one row."""
        total = 0.0
        for _ in range(self.num_layers):
            frames = -(-frames // self.stride)
            total += 2.0 * frames * self.kernel_size * dim * self.hidden_dim
            dim = self.hidden_dim
        return total + 2.0 * frames * dim * width

    def build(self, dim: int, width: int, rngs: nnx.Rngs) -> "ConvolutionalAdapter":
        """Declares the module from frames of width `dim` to vectors of width `width`."""
        return ConvolutionalAdapter(self, dim, width, rngs=rngs)


class QFormer(Config):
    """Learnt queries that attend to each window of frames (Li et al. 2023; windows as in SALMONN, Tang et al. 2024).

    Attributes:
      window: frames of a window.
      queries: vectors of a window.
      num_layers: blocks of self-attention, attention to the frames, and feed-forward.
      num_heads: of both attentions; divides `dim`.
      dim: width of the blocks.
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

    @property
    def alignment(self) -> int:
        """Divisor of the frame at which an utterance of a packed row starts."""
        return self.window

    def num_outputs(self, frames: Frames) -> Frames:
        """Returns the number of vectors for `frames` frames."""
        return -(-frames // self.window) * self.queries

    def forward_flops(self, frames: int, dim: int, width: int) -> float:
        """Returns the FLOPs for one row."""
        windows, inner = -(-frames // self.window), self.dim
        query = (4 + 2 + 2 * 4) * inner * inner + 2 * inner * (self.queries + self.window)
        block = self.queries * query + 2 * self.window * dim * inner
        return 2.0 * windows * (self.num_layers * block + self.queries * inner * width)

    def build(self, dim: int, width: int, rngs: nnx.Rngs) -> "QFormerAdapter":
        """Declares the module from frames of width `dim` to vectors of width `width`."""
        return QFormerAdapter(self, dim, width, rngs=rngs)


AdapterConfig = Annotated[Stacking | Convolutional | QFormer, pydantic.Field(discriminator="kind")]


class StackingAdapter(nnx.Module):
    """Module of `Stacking`."""

    def __init__(self, config: Stacking, dim: int, width: int, *, rngs: nnx.Rngs):
        self.config = config
        hidden, bias = (config.hidden_dim,), config.bias
        self.expand = Linear((config.frames * dim,), hidden, ("embed", "mlp"), bias=bias, rngs=rngs)
        self.contract = Linear(hidden, (width,), ("mlp", "embed"), bias=bias, gain=_OUT_GAIN, rngs=rngs)

    def __call__(self, x_BxTxD: Float[Array, "batch time dim"], lengths: Lengths) -> Adapted:
        x = _windows(_masked(x_BxTxD, lengths), self.config.frames)
        x = self.expand(x.reshape(*x.shape[:2], -1))
        x = self.contract(jax.nn.relu(x) if self.config.activation == "relu" else jax.nn.gelu(x, approximate=False))
        return _finish(x, at_rate(lengths, self.config.alignment, self.config.num_outputs))


class ConvolutionalAdapter(nnx.Module):
    """Module of `Convolutional`."""

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

    def __call__(self, x_BxTxD: Float[Array, "batch time dim"], lengths: Lengths) -> Adapted:
        x, step = x_BxTxD, self.config.stride
        for layer in self.layers.values():
            x = jax.nn.gelu(layer(_around(_masked(x, lengths), lengths, self.config.kernel_size, step)))
            lengths = at_rate(lengths, step, lambda length: -(-length // step))
        return _finish(self.out(x), lengths)


class QFormerBlock(nnx.Module):
    """Self-attention of the queries, attention to the frames, feed-forward; each after a norm, and residual."""

    def __init__(self, config: QFormer, dim_in: int, *, rngs: nnx.Rngs):
        dim, heads = config.dim, (config.num_heads, config.dim // config.num_heads)
        into = ("embed", "heads", "head_dim")
        out_of = ("heads", "head_dim", "embed")
        project = partial(Linear, shape_out=heads, axes=into, rngs=rngs)
        merge = partial(Linear, heads, (dim,), out_of, rngs=rngs)
        self.self_norm, self.cross_norm, self.ffn_norm = (LayerNorm(dim, rngs=rngs) for _ in range(3))
        self.self_query, self.self_key, self.self_value = (project((dim,)) for _ in range(3))
        self.self_out = merge()
        self.query, self.key, self.value = (project((size,)) for size in (dim, dim_in, dim_in))
        self.out = merge()
        self.expand = Linear((dim,), (4 * dim,), ("embed", "mlp"), rngs=rngs)
        self.contract = Linear((4 * dim,), (dim,), ("mlp", "embed"), rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "windows queries dim"],
        frames: Float[Array, "windows time dim_in"],
        mask: Bool[Array, "windows time"],
    ) -> Float[Array, "windows queries dim"]:
        normed = self.self_norm(x)
        full = jnp.ones((x.shape[0], x.shape[1], x.shape[1]), bool)
        mixed = masked_attention(self.self_query(normed), self.self_key(normed), self.self_value(normed), full)
        x = x + self.self_out(mixed)
        q, k, v = self.query(self.cross_norm(x)), self.key(frames), self.value(frames)
        visible = jnp.broadcast_to(mask[:, None], (*x.shape[:2], mask.shape[1]))
        x = x + self.out(masked_attention(q, k, v, visible))
        return x + self.contract(jax.nn.gelu(self.expand(self.ffn_norm(x))))


class QFormerAdapter(nnx.Module):
    """Module of `QFormer`."""

    def __init__(self, config: QFormer, dim: int, width: int, *, rngs: nnx.Rngs):
        self.config = config
        table = partial(parameter, axes=(None, "embed"), initializer=jax.nn.initializers.normal(0.02))
        self.queries = table(rngs.params(), (config.queries, config.dim))
        self.places = table(rngs.params(), (config.window, dim))  # position embeddings of the frames in a window
        self.layers = stack(lambda rngs: QFormerBlock(config, dim, rngs=rngs), config.num_layers, rngs)
        self.norm = LayerNorm(config.dim, rngs=rngs)
        self.out = Linear((config.dim,), (width,), (None, "embed"), gain=_OUT_GAIN, rngs=rngs)

    def __call__(self, x_BxTxD: Float[Array, "batch time dim"], lengths: Lengths) -> Adapted:
        config, batch = self.config, len(x_BxTxD)
        frames = _windows(x_BxTxD, config.window) + self.places[...].astype(x_BxTxD.dtype)
        mask = _windows(Segments.of(lengths).mask(x_BxTxD.shape[1])[..., None], config.window)[..., 0]
        frames, mask = (x.reshape(-1, *x.shape[2:]) for x in (frames, mask))
        x = jnp.broadcast_to(self.queries[...].astype(frames.dtype), (len(frames), config.queries, config.dim))
        x, _ = scan_layers(self.layers, lambda block, x, _: (block(x, frames, mask), None), x, None, "none")
        x = self.out(self.norm(x))
        windows = at_rate(lengths, config.alignment, config.num_outputs)
        if isinstance(windows, Segments):
            windows = Segments(windows.start * config.queries, windows.length)
        return _finish(x.reshape(batch, -1, x.shape[-1]), windows)


def _masked(x: Array, lengths: Lengths) -> Array:
    return jnp.where(Segments.of(lengths).mask(x.shape[1])[..., None], x, 0)


def _windows(x_BxTxD: Array, size: int) -> Array:
    """Returns [batch, windows, size, dim]: adjacent windows, the last one padded with zeros."""
    batch, time, dim = x_BxTxD.shape
    count = -(-time // size)
    return jnp.pad(x_BxTxD, ((0, 0), (0, count * size - time), (0, 0))).reshape(batch, count, size, dim)


def _around(x_BxTxD: Array, lengths: Lengths, size: int, step: int) -> Array:
    """Returns [batch, ceil(time / step), size, dim]: the frames around every step-th frame, 0 beyond its utterance."""
    count = -(-x_BxTxD.shape[1] // step)

    def shifted(x: Array, k: int) -> Array:
        padded = jnp.pad(x, [(0, 0), (size // 2, size // 2 + step)] + [(0, 0)] * (x.ndim - 2))
        return padded[:, k : k + count * step : step]

    segment_BxT = Segments.of(lengths).segment(x_BxTxD.shape[1])
    own = shifted(segment_BxT, size // 2)
    return jnp.stack(
        [jnp.where((shifted(segment_BxT, k) == own)[..., None], shifted(x_BxTxD, k), 0) for k in range(size)], axis=2
    )


def _finish(x: Array, lengths: Lengths) -> Adapted:
    return shard_batch_dim(_masked(x.astype(jnp.float32), lengths)), lengths
