"""Layers that all models share: linear maps, norms, dropout and depthwise convolution.

Parameters are float32. A layer computes in the type of its input, except that normalisation statistics are float32, so
a model sets its compute type by casting its input once.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Integer, Key, UInt32

from jax_speechlm.core.segments import Segments
from jax_speechlm.nn.adapted_kernel import AdaptedKernel
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.int_weights import QuantizedKernel
from jax_speechlm.parallel import mesh as meshes

Count = TypeVar("Count", int, Array, np.ndarray)

Keys = Key[Array, " batch"]
"""One random key for each row of a batch, so that a row's draws depend only on its own key."""


class FrameKeys(NamedTuple):
    """Random keys of packed rows: an utterance's draws depend only on its own key and its frames' positions in it.

    Attributes:
      keys: one for each utterance of a row.
      segments: where the utterances lie, in frames.
    """

    keys: Key[Array, "batch utterances"]
    segments: Segments

    def frames(self, num_frames: int) -> Key[Array, "batch time"]:
        """Returns one key for each frame."""
        keys = spread_keys(self.keys, self.segments, num_frames)
        return fold_in(keys, self.segments.position(num_frames))

    def seed(self, num_frames: int) -> UInt32[Array, "batch time"]:
        """Returns the random seed of each frame's utterance."""
        seeds = jax.vmap(jax.random.bits)(self.keys.reshape(-1)).reshape(self.keys.shape)
        if self.segments.num == 1:
            return jnp.broadcast_to(seeds, (len(seeds), num_frames))
        return self.segments.spread(seeds, num_frames)


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
        applies = isinstance(kernel, QuantizedKernel | AdaptedKernel)
        y = kernel.apply(x) if applies else jnp.tensordot(x, kernel.astype(x.dtype), axes=self.num_in)
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
        y = standardized(x, self.epsilon) * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


def standardized(x: Float[Array, "*batch dim"], epsilon: float) -> Float32[Array, "*batch dim"]:
    """Returns the last dimension with zero mean and unit variance."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon)


class RMSNorm(nnx.Module):
    """Normalises the last dimension to unit root mean square, then scales it (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, *, axis: str | None = "embed", epsilon: float = 1e-6, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = parameter(rngs.params(), (dim,), (axis,), jax.nn.initializers.ones, decays=False)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


def spread_keys(
    keys_BxN: Key[Array, "batch utterances"], segments: Segments, num_frames: int
) -> Key[Array, "batch time"]:
    """Returns the key of each frame's utterance."""
    data = segments.spread(jax.random.key_data(keys_BxN), num_frames)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys_BxN))


def fold_in(keys: Key[Array, "*rows"], numbers: Int[Array, "*rows"]) -> Key[Array, "*rows"]:
    """Returns keys derived from each key and its number."""
    folded = jax.vmap(jax.random.fold_in)(keys.reshape(-1), numbers.reshape(-1))
    return folded.reshape(keys.shape)


def split_keys(
    keys: Key[Array, "*rows"] | FrameKeys | None, num: int
) -> Key[Array, "..."] | tuple[FrameKeys, ...] | tuple[None, ...]:
    """Returns `num` independent keys for each key, along a new first dimension; None for None, for evaluation."""
    if keys is None:
        return (None,) * num
    if isinstance(keys, FrameKeys):
        return tuple(FrameKeys(part, keys.segments) for part in split_keys(keys.keys, num))
    parts = jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys.reshape(-1))
    return parts.reshape(num, *keys.shape)


# Odd multipliers that map indices along each dimension to well-distributed 32-bit numbers: 2^32 over powers of the root
# of x^4 = x + 1, so that sums of a few multiples of them fill the range evenly.
_MULTIPLIERS = (0xD1B54A33, 0xABC98389, 0x8CB92BA7)


def dropout(x: Float[Array, "batch ..."], rate: float, keys: Keys | FrameKeys | None) -> Float[Array, "batch ..."]:
    """Zeroes elements with probability `rate` and divides the others by 1 - rate; the identity without `keys`.

    The draw of an element depends only on its row's key and its index in the row, or in packed rows [batch, time, ...]
    on its utterance's key and its frame's position in it, so padding does not change it.
    """
    if keys is None or rate == 0:
        return x
    indices = [jax.lax.broadcasted_iota(jnp.uint32, x.shape, d) for d in range(1, x.ndim)]
    if isinstance(keys, FrameKeys):
        seed, indices[0] = keys.seed(x.shape[1]), keys.segments.position(x.shape[1])
        seed, indices[0] = (per_frame.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)) for per_frame in (seed, indices[0]))
    else:
        seed = jax.vmap(jax.random.bits)(keys).reshape(-1, *(1,) * (x.ndim - 1))
    return drop(x, rate, seed, indices)


def drop(
    x: Float[Array, "..."], rate: float, seed: UInt32[Array, "..."], indices: Sequence[Integer[Array, "..."]]
) -> Float[Array, "..."]:
    """Zeroes elements by a hash of their seed and at most three indices.

    The hash (finaliser of MurmurHash3) fuses into the multiplication; JAX's own generator costs three times as much on
    CPU. Seeds and indices broadcast against x.
    """
    bits = sum(i.astype(jnp.uint32) * np.uint32(m) for i, m in zip(indices, _MULTIPLIERS, strict=False)) ^ seed
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    kept = bits ^ (bits >> 16) >= np.uint32(rate * 2**32)
    return jnp.where(kept, x / (1 - rate), 0)


_BLOCK = 16  # frames summed in one step of the kernel's gradient; fastest of 8, 16 and 32 on CPU


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def depthwise(
    x: Float[Array, "batch time dim"],
    kernel: Float[Array, "taps dim"],
    segment: Int[Array, "batch time"] | None = None,
    ahead: int = 0,
) -> Float[Array, "batch time dim"]:
    """Computes the depthwise convolution y[t] = sum_k kernel[k] x[t + ahead - taps + 1 + k].

    It is a sum of shifted products because XLA's grouped convolution is 20 times slower on CPU, and its gradient is
    slow on GPU. The gradient is written by hand because differentiating the sum gives one reduction over all frames for
    each tap, which XLA does not vectorise on CPU.

    Args:
      segment: utterance of each frame in packed rows, where a frame's sum leaves out the frames of other utterances;
        None for rows of one utterance.
      ahead: later frames that a frame's sum includes; 0 is a causal convolution.
    """
    taps = kernel.shape[0]
    shifted = _shifted(_fence_on_gpu(x), taps - 1 - ahead, ahead)
    same = _same_segment(segment, taps - 1 - ahead, ahead)
    return _fence_on_gpu(sum(same(shifted(k), k) * kernel[k] for k in range(taps)))


def depthwise_step(
    past: Float[Array, "batch past dim"], x: Float[Array, "batch time dim"], kernel: Float[Array, "taps dim"]
) -> tuple[Float[Array, "batch past dim"], Float[Array, "batch time dim"]]:
    """Computes the causal `depthwise` of the next frames of a stream.

    Args:
      past: the `taps` - 1 frames before them; zeros before the first.

    Returns:
      The new `past`, and the output.
    """
    window = jnp.concatenate([past, x], axis=1)
    return window[:, x.shape[1] :], depthwise(window, kernel)[:, past.shape[1] :]


def _shifted(x: Array, before: int, after: int) -> Callable[[int], Array]:
    """Returns the function of k that gives x[t - before + k] for all t, 0 beyond both ends."""
    padded, num_frames = jnp.pad(x, ((0, 0), (before, after)) + ((0, 0),) * (x.ndim - 2)), x.shape[1]
    return lambda k: padded[:, k : k + num_frames]


def _same_segment(segment: Array | None, before: int, after: int) -> Callable[[Array, int], Array]:
    """Returns the function that sets x[t - before + k], given with k, to 0 where it is of another segment than t."""
    if segment is None:
        return lambda x, k: x
    shifted = _shifted(segment, before, after)
    return lambda x, k: x if k == before else jnp.where((shifted(k) == segment)[..., None], x, 0)


def _fence_on_gpu(x: Array) -> Array:
    """Returns x with an optimization barrier on GPU, so that XLA does not fuse it.

    Fusion would recompute the input of the shifted products for every tap, and the sum for each of its uses; such
    programs take 15 minutes to compile.
    """
    return jax.lax.optimization_barrier(x) if meshes.platform() == "gpu" else x


def _forward(x, kernel, segment, ahead):
    return depthwise(x, kernel, segment, ahead), (x, kernel, segment)


def _backward(ahead, residuals, gradient):
    x, kernel, segment = residuals
    (taps, dim), (batch, num_frames, _) = kernel.shape, x.shape
    before = taps - 1 - ahead
    gradient = _fence_on_gpu(gradient)
    shifted, same = _shifted(gradient, ahead, before), _same_segment(segment, ahead, before)
    to_x = _fence_on_gpu(sum(same(shifted(taps - 1 - k), taps - 1 - k) * kernel[k] for k in range(taps)))

    blocks = math.ceil(num_frames / _BLOCK)
    extra = blocks * _BLOCK - num_frames
    around = jnp.pad(x, ((0, 0), (before, ahead + extra), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, extra), (0, 0)))
    if segment is not None:
        segment_around = jnp.pad(segment, ((0, 0), (before, ahead + extra)))

    def add_block(total, block):
        def cut(x, size):
            return jax.lax.dynamic_slice_in_dim(x, block * _BLOCK, size, axis=1)

        window, heads = cut(around, _BLOCK + taps - 1), cut(gradient, _BLOCK)
        if segment is None:
            return total + sum(window[:, i : i + taps] * heads[:, i : i + 1] for i in range(_BLOCK)), None
        numbers = cut(segment_around, _BLOCK + taps - 1)
        for i in range(_BLOCK):
            same = numbers[:, i : i + taps] == numbers[:, i + before, None]
            total = total + jnp.where(same[..., None], window[:, i : i + taps], 0) * heads[:, i : i + 1]
        return total, None

    to_kernel, _ = jax.lax.scan(add_block, jnp.zeros((batch, taps, dim), jnp.float32), jnp.arange(blocks))
    return to_x, to_kernel.sum(0).astype(kernel.dtype), None


depthwise.defvjp(_forward, _backward)


def unit_length(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Scales vectors along an axis to length 1, in float32; a vector of zeros (a frame of padding) stays 0."""
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axis, keepdims=True)
    return (x * jax.lax.rsqrt(square + 1e-12)).astype(x.dtype)
