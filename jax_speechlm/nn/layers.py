"""Layers that all models share: linear maps, norms, dropout and depthwise convolution.

Parameters are float32. A layer computes in the type of its input, except that normalisation statistics are float32, so
a model sets its compute type by casting its input once.
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
"""One random key for each row of a batch, so that a row's draws depend only on its own key."""


class Linear(nnx.Module):
    """Linear map x @ kernel + bias over one or several last dimensions.

    Args:
      shape_in: sizes of the dimensions that are summed over.
      shape_out: sizes of the dimensions that replace them, such as (heads, head_dim).
      axes: logical names of all of these dimensions, inputs first.
      bias_scale: standard deviation of the bias's initial values.
      gain: factor on the kernel's initial values, which have the standard deviation fan_in^-0.5 without it.
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
        quantized = isinstance(kernel, QuantizedKernel)
        y = kernel.apply(x) if quantized else jnp.tensordot(x, kernel.astype(x.dtype), axes=self.num_in)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def linear_maps(module: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """Yields the linear maps of a module with the path of their parameters, such as "encoder/layers/ffn1/expand"."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, Linear):
            yield "/".join(map(str, path)), node


class LayerNorm(nnx.Module):
    """Normalises the last dimension to zero mean and unit variance, then scales and shifts it (Ba et al. 2016)."""

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
    """Normalises the last dimension to unit root mean square, then scales it (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, *, axis: str | None = "embed", epsilon: float = 1e-6, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = parameter(rngs.params(), (dim,), (axis,), jax.nn.initializers.ones, decays=False)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


def split_keys(keys: Keys | None, num: int) -> Key[Array, "num batch"] | tuple[None, ...]:
    """Returns `num` independent keys for each key; `num` times None for None, for evaluation."""
    if keys is None:
        return (None,) * num
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)


# Odd multipliers that map indices along each dimension to well-distributed 32-bit numbers: 2^32 over powers of the root
# of x^4 = x + 1, so that sums of a few multiples of them fill the range evenly.
_MULTIPLIERS = (0xD1B54A33, 0xABC98389, 0x8CB92BA7)


def dropout(
    x: Float[Array, "batch ..."], rate: float, keys: Keys | None, first: Sequence[int | Int[Array, ""]] = (0, 0, 0)
) -> Float[Array, "batch ..."]:
    """Zeroes elements with probability `rate` and divides the others by 1 - rate; the identity without `keys`.

    The draw of an element depends only on its row's key and its index in the row, so padding does not change it. It is
    a hash of the index, seeded by the key (finaliser of MurmurHash3), which fuses into the multiplication; JAX's own
    generator costs three times as much on CPU.

    Args:
      keys: one key a row, or None for evaluation.
      first: index of x's first element along each dimension after the batch, where x is a slice of a larger array.
    """
    if keys is None or rate == 0:
        return x
    seed = jax.vmap(jax.random.bits)(keys).reshape(-1, *(1,) * (x.ndim - 1))
    indices = [
        (jax.lax.broadcasted_iota(jnp.uint32, x.shape, d + 1) + jnp.uint32(first[d])) * np.uint32(_MULTIPLIERS[d])
        for d in range(x.ndim - 1)
    ]
    bits = sum(indices) ^ seed
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    kept = bits ^ (bits >> 16) >= np.uint32(rate * 2**32)
    return jnp.where(kept, x / (1 - rate), 0)


_BLOCK = 16  # frames summed in one step of the kernel's gradient; fastest of 8, 16 and 32 on CPU


@jax.custom_vjp
def causal_depthwise(x: Float[Array, "batch time dim"], kernel: Float[Array, "taps dim"]) -> Float[Array, "..."]:
    """Computes the causal depthwise convolution y[t] = sum_k kernel[k] x[t - taps + 1 + k].

    It is a sum of shifted products because XLA's grouped convolution is 20 times slower on CPU, and its gradient is
    slow on GPU. The gradient is written by hand because differentiating the sum gives one reduction over all frames for
    each tap, which XLA does not vectorise on CPU.
    """
    taps, num_frames = kernel.shape[0], x.shape[1]
    past = jnp.pad(_fence_on_gpu(x), ((0, 0), (taps - 1, 0), (0, 0)))
    return _fence_on_gpu(sum(past[:, k : k + num_frames] * kernel[k] for k in range(taps)))


def _fence_on_gpu(x: Array) -> Array:
    """Returns x with an optimization barrier on GPU, so that XLA does not fuse it.

    Fusion would recompute the input of the shifted products for every tap, and the sum for each of its uses; such
    programs take 15 minutes to compile.
    """
    return jax.lax.optimization_barrier(x) if meshes.platform() == "gpu" else x


def _forward(x, kernel):
    return causal_depthwise(x, kernel), (x, kernel)


def _backward(residuals, gradient):
    x, kernel = residuals
    (taps, dim), (batch, num_frames, _) = kernel.shape, x.shape
    gradient = _fence_on_gpu(gradient)
    future = jnp.pad(gradient, ((0, 0), (0, taps - 1), (0, 0)))
    to_x = _fence_on_gpu(sum(future[:, taps - 1 - k : taps - 1 - k + num_frames] * kernel[k] for k in range(taps)))

    blocks = math.ceil(num_frames / _BLOCK)
    extra = blocks * _BLOCK - num_frames
    past = jnp.pad(x, ((0, 0), (taps - 1, extra), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, extra), (0, 0)))

    def add_block(total, block):
        window = jax.lax.dynamic_slice_in_dim(past, block * _BLOCK, _BLOCK + taps - 1, axis=1)
        heads = jax.lax.dynamic_slice_in_dim(gradient, block * _BLOCK, _BLOCK, axis=1)
        return total + sum(window[:, i : i + taps] * heads[:, i : i + 1] for i in range(_BLOCK)), None

    to_kernel, _ = jax.lax.scan(add_block, jnp.zeros((batch, taps, dim), jnp.float32), jnp.arange(blocks))
    return to_x, to_kernel.sum(0).astype(kernel.dtype)


causal_depthwise.defvjp(_forward, _backward)


def centred_depthwise(x: Float[Array, "batch time dim"], kernel: Float[Array, "taps dim"]) -> Float[Array, "..."]:
    """Computes the centred depthwise convolution y[t] = sum_k kernel[k] x[t - taps // 2 + k].

    The number of taps is odd; x is 0 beyond both ends.
    """
    ahead = kernel.shape[0] // 2
    return causal_depthwise(jnp.pad(x, ((0, 0), (0, ahead), (0, 0))), kernel)[:, ahead:]


def unit_length(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Scales vectors along an axis to length 1, in float32; a vector of zeros (a frame of padding) stays 0."""
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axis, keepdims=True)
    return (x * jax.lax.rsqrt(square + 1e-12)).astype(x.dtype)
