"""The small layers that every model here is made of.

Parameters are float32. A layer computes in the type of its input, except that normalisation statistics are float32, so
that a model chooses its compute type once, by casting what it is given.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jax_speechlm.models.functional import parameter

Keys = Key[Array, "*batch"]
"""One random key for each row of a batch, so that what a row draws depends on nothing but its own key."""


class Linear(nnx.Module):
    """x @ kernel + bias over the last dimensions, for inputs and outputs of one dimension or several.

    Args:
      shape_in: sizes of the dimensions that are summed over.
      shape_out: sizes of the dimensions that replace them; (heads, head_dim) for attention.
      axes: logical names of all of these dimensions, inputs first.
      bias: whether to add one.
    """

    def __init__(
        self,
        shape_in: Sequence[int],
        shape_out: Sequence[int],
        axes: Sequence[str | None],
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        num_in, shape = len(shape_in), (*shape_in, *shape_out)
        dims = tuple(range(len(shape)))
        initializer = jax.nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=dims[:num_in], out_axis=dims[num_in:]
        )
        self.num_in = num_in
        self.kernel = parameter(rngs.params(), shape, tuple(axes), initializer)
        self.bias = (
            parameter(rngs.params(), shape[num_in:], tuple(axes[num_in:]), jax.nn.initializers.zeros) if bias else None
        )

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = jnp.tensordot(x, self.kernel[...].astype(x.dtype), axes=self.num_in)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Zero mean and unit variance over the last dimension, then a learnt scale and offset (Ba et al. 2016)."""

    def __init__(self, dim: int, *, axis: str | None = "embed", epsilon: float = 1e-5, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = parameter(rngs.params(), (dim,), (axis,), jax.nn.initializers.ones)
        self.bias = parameter(rngs.params(), (dim,), (axis,), jax.nn.initializers.zeros)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def frame_mask(length: Int[Array, " batch"], num_frames: int) -> Bool[Array, "batch time"]:
    """True where a frame belongs to its utterance, False where it is padding."""
    return jnp.arange(num_frames) < length[:, None]


def split_keys(keys: Keys | None, num: int) -> Key[Array, "num *batch"] | tuple[None, ...]:
    """`num` independent keys from each key; `num` times None from None, so that evaluation reads as training does."""
    if keys is None:
        return (None,) * num
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0)


def random_bytes(keys: Keys, shape: Sequence[int]) -> UInt8[Array, "..."]:
    """Uniform random bytes of `shape` for each key.

    Four bytes come from each 32-bit word, which makes them four times as cheap as floats. With JAX's (default)
    partitionable generator a word depends on its position alone: a longer first dimension leaves the shared part as is.
    """
    words = (*shape[:-1], -(-shape[-1] // 4))
    draw = lambda key: jax.random.bits(key, words, jnp.uint32)  # noqa: E731
    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    drawn = jax.lax.bitcast_convert_type(draw(keys), jnp.uint8)
    return drawn.reshape(*keys.shape, *shape[:-1], -1)[..., : shape[-1]]


def dropout(x: Float[Array, "..."], rate: float, keys: Keys | None) -> Float[Array, "..."]:
    """Zeroes elements with probability `rate` and scales the others up; the identity when `keys` is None.

    The leading dimensions of `x` are those of `keys`. The rate is rounded to a multiple of 1/256, and the scale is that
    of the rounded rate, so the expectation is exact.
    """
    dropped = round(rate * 256)
    if keys is None or dropped == 0:
        return x
    kept = random_bytes(keys, x.shape[keys.ndim :]) >= dropped
    return jnp.where(kept, x * (256 / (256 - dropped)), 0)


_BLOCK = 16  # frames that one step of the kernel's gradient sums; fastest of 8, 16 and 32 on CPU


@jax.custom_vjp
def causal_depthwise(x: Float[Array, "batch time dim"], kernel: Float[Array, "taps dim"]) -> Float[Array, "..."]:
    """Each channel convolved with its own taps over the present frame and the `taps - 1` frames before it.

    y[t] = sum_k kernel[k] x[t - taps + 1 + k]. A sum of shifted products, because XLA's grouped convolution is ten
    times as slow on CPU, and slow on GPU backwards. The gradient is written out for the same reason: differentiating
    the sum leaves one reduction over all frames for each tap, which XLA does not vectorise on CPU.
    """
    taps, num_frames = kernel.shape[0], x.shape[1]
    past = jnp.pad(x, ((0, 0), (taps - 1, 0), (0, 0)))
    return sum(past[:, k : k + num_frames] * kernel[k] for k in range(taps))


def _forward(x, kernel):
    return causal_depthwise(x, kernel), (x, kernel)


def _backward(residuals, gradient):
    x, kernel = residuals
    (taps, dim), (batch, num_frames, _) = kernel.shape, x.shape
    future = jnp.pad(gradient, ((0, 0), (0, taps - 1), (0, 0)))
    to_x = sum(future[:, taps - 1 - k : taps - 1 - k + num_frames] * kernel[k] for k in range(taps))

    blocks = math.ceil(num_frames / _BLOCK)
    rest = blocks * _BLOCK - num_frames
    past = jnp.pad(x, ((0, 0), (taps - 1, rest), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, rest), (0, 0)))

    def add_block(total, block):
        window = jax.lax.dynamic_slice_in_dim(past, block * _BLOCK, _BLOCK + taps - 1, axis=1)
        heads = jax.lax.dynamic_slice_in_dim(gradient, block * _BLOCK, _BLOCK, axis=1)
        return total + sum(window[:, i : i + taps] * heads[:, i : i + 1] for i in range(_BLOCK)), None

    to_kernel, _ = jax.lax.scan(add_block, jnp.zeros((batch, taps, dim), jnp.float32), jnp.arange(blocks))
    return to_x, to_kernel.sum(0).astype(kernel.dtype)


causal_depthwise.defvjp(_forward, _backward)
