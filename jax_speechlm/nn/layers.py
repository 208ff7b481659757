"""The small layers that every model here is made of.

Parameters are float32. A layer computes in the type of its input, except that normalisation statistics are float32, so
that a model chooses its compute type once, by casting what it is given.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.int_weights import QuantizedKernel
from jax_speechlm.parallel import mesh as meshes

Count = TypeVar("Count", int, Array, np.ndarray)

Keys = Key[Array, " batch"]
"""One random key for each row of a batch, so that what a row draws depends on nothing but its own key."""


class Linear(nnx.Module):
    """x @ kernel + bias over the last dimensions, for inputs and outputs of one dimension or several.

    Args:
      shape_in: sizes of the dimensions that are summed over.
      shape_out: sizes of the dimensions that replace them; (heads, head_dim) for attention.
      axes: logical names of all of these dimensions, inputs first.
      bias: whether to add one.
      bias_scale: standard deviation of its initial values.
      gain: factor on the kernel's initial values, whose standard deviation is fan_in^-0.5 without it.
    """

    def __init__(
        self,
        shape_in: Sequence[int],
        shape_out: Sequence[int],
        axes: Sequence[str | None],
        *,
        bias: bool = True,
        bias_scale: float = 0.0,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        num_in, shape = len(shape_in), (*shape_in, *shape_out)
        dims = tuple(range(len(shape)))
        initializer = jax.nn.initializers.variance_scaling(
            gain**2, "fan_in", "truncated_normal", in_axis=dims[:num_in], out_axis=dims[num_in:]
        )
        self.num_in = num_in
        self.kernel = parameter(rngs.params(), shape, tuple(axes), initializer)
        offset = jax.nn.initializers.normal(bias_scale) if bias_scale else jax.nn.initializers.zeros
        self.bias = (
            parameter(rngs.params(), shape[num_in:], tuple(axes[num_in:]), offset, decays=False) if bias else None
        )

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel = self.kernel[...]
        rounded = isinstance(kernel, QuantizedKernel)
        y = kernel.apply(x) if rounded else jnp.tensordot(x, kernel.astype(x.dtype), axes=self.num_in)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def linear_maps(module: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """Every linear map of a module, by the path of its parameters: "encoder/layers/ffn1/expand"."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, Linear):
            yield "/".join(map(str, path)), node


class LayerNorm(nnx.Module):
    """Zero mean and unit variance over the last dimension, then a learnt scale and offset (Ba et al. 2016)."""

    def __init__(
        self, dim: int, *, axis: str | None = "embed", epsilon: float = 1e-5, bias: bool = True, rngs: nnx.Rngs
    ):
        self.epsilon = epsilon
        self.scale = parameter(rngs.params(), (dim,), (axis,), jax.nn.initializers.ones, decays=False)
        zeros = jax.nn.initializers.zeros
        self.bias = parameter(rngs.params(), (dim,), (axis,), zeros, decays=False) if bias else None

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon) * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Unit root mean square over the last dimension, then a learnt scale (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, *, axis: str | None = "embed", epsilon: float = 1e-6, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = parameter(rngs.params(), (dim,), (axis,), jax.nn.initializers.ones, decays=False)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


def split_keys(keys: Keys | None, num: int) -> Key[Array, "num batch"] | tuple[None, ...]:
    """`num` independent keys from each key; `num` times None from None, so that evaluation reads as training does."""
    if keys is None:
        return (None,) * num
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)


# Odd multipliers that spread the places along each dimension over all 32-bit numbers: 2^32 over powers of the root of
# x^4 = x + 1, which makes sums of a few multiples of them fill the range evenly.
_SPREAD = (0xD1B54A33, 0xABC98389, 0x8CB92BA7)


def dropout(
    x: Float[Array, "batch ..."], rate: float, keys: Keys | None, first: Sequence[int | Int[Array, ""]] = (0, 0, 0)
) -> Float[Array, "batch ..."]:
    """Zeroes elements with probability `rate` and scales the others up; the identity when `keys` is None.

    What an element draws depends on its row's key and its place in the row alone, so padding changes nothing. The draw
    is a hash of the place, seeded by the key (the finaliser of MurmurHash3): it fuses into the multiplication, while
    JAX's own generator costs three times as much on CPU.

    Args:
      x: up to three dimensions after the batch.
      first: the place of x's first element along each of them, where x is a part of something larger.
    """
    if keys is None or rate == 0:
        return x
    seed = jax.vmap(jax.random.bits)(keys).reshape(-1, *(1,) * (x.ndim - 1))
    places = [
        (jax.lax.broadcasted_iota(jnp.uint32, x.shape, d + 1) + jnp.uint32(first[d])) * np.uint32(_SPREAD[d])
        for d in range(x.ndim - 1)
    ]
    bits = sum(places) ^ seed
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    kept = bits ^ (bits >> 16) >= np.uint32(rate * 2**32)
    return jnp.where(kept, x / (1 - rate), 0)


_BLOCK = 16  # frames that one step of the kernel's gradient sums; fastest of 8, 16 and 32 on CPU


@jax.custom_vjp
def causal_depthwise(x: Float[Array, "batch time dim"], kernel: Float[Array, "taps dim"]) -> Float[Array, "..."]:
    """Each channel convolved with its own taps over the present frame and the `taps - 1` frames before it.

    y[t] = sum_k kernel[k] x[t - taps + 1 + k]. A sum of shifted products, because XLA's grouped convolution is 20
    times as slow on CPU, and slow on GPU backwards. The gradient is written out for the same reason: differentiating
    the sum leaves one reduction over all frames for each tap, which XLA does not vectorise on CPU.
    """
    taps, num_frames = kernel.shape[0], x.shape[1]
    past = jnp.pad(_apart_on_gpu(x), ((0, 0), (taps - 1, 0), (0, 0)))
    return _apart_on_gpu(sum(past[:, k : k + num_frames] * kernel[k] for k in range(taps)))


def _apart_on_gpu(x: Array) -> Array:
    """The same, which XLA for GPUs fuses with nothing.

    What enters a sum of shifted products it would compute anew for every tap, and the sum for each of its uses: such
    programs take it a quarter of an hour to compile.
    """
    return jax.lax.optimization_barrier(x) if meshes.platform() == "gpu" else x


def _forward(x, kernel):
    return causal_depthwise(x, kernel), (x, kernel)


def _backward(residuals, gradient):
    x, kernel = residuals
    (taps, dim), (batch, num_frames, _) = kernel.shape, x.shape
    gradient = _apart_on_gpu(gradient)
    future = jnp.pad(gradient, ((0, 0), (0, taps - 1), (0, 0)))
    to_x = _apart_on_gpu(sum(future[:, taps - 1 - k : taps - 1 - k + num_frames] * kernel[k] for k in range(taps)))

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


def centred_depthwise(x: Float[Array, "batch time dim"], kernel: Float[Array, "taps dim"]) -> Float[Array, "..."]:
    """The same with the present frame in the middle of an odd number of taps; zeros lie beyond both ends.

    y[t] = sum_k kernel[k] x[t - taps // 2 + k].
    """
    ahead = kernel.shape[0] // 2
    return causal_depthwise(jnp.pad(x, ((0, 0), (0, ahead), (0, 0))), kernel)[:, ahead:]
