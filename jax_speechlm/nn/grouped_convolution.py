"""Grouped convolution over time with many taps, by discrete Fourier transforms of blocks.

A block's transform, its inverse and the products of spectra with the kernel's are matrix products. With the 128 taps of
wav2vec 2.0 they are a third of the direct sum's multiplications, and their gradient takes no grouped convolution, which
is slow in XLA.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_speechlm.core.segments import Segments, move
from jax_speechlm.nn.functional import parameter
from jax_speechlm.parallel import sequence


class GroupedConvolution(nnx.Module):
    """Convolution of groups of channels, each by itself, over frames t - taps // 2 to t + (taps - 1) // 2 of a frame t.

    Frames beyond the ends of an utterance count as zeros. `kernel` is [taps, groups, in, out].

    Args:
      weight_norm: whether each tap of the kernel is divided by its norm and multiplied by a parameter, `scale`
        (Salimans and Kingma 2016).
    """

    def __init__(self, dim: int, taps: int, groups: int, *, weight_norm: bool, rngs: nnx.Rngs):
        size = dim // groups
        deviation = 2 * (taps * dim) ** -0.5
        shape, axes = (taps, groups, size, size), (None, "embed", None, None)
        self.taps = taps
        self.kernel = parameter(rngs.params(), shape, axes, jax.nn.initializers.normal(deviation))
        self.bias = parameter(rngs.params(), (dim,), ("embed",), jax.nn.initializers.zeros, decays=False)
        norm = jax.nn.initializers.constant(deviation * (dim * size) ** 0.5)
        self.scale = parameter(rngs.params(), (taps,), (None,), norm, decays=False) if weight_norm else None

    def __call__(self, x: Float[Array, "batch time dim"], segments: Segments) -> Float[Array, "batch time dim"]:
        """Returns as many frames; values at padding are arbitrary."""
        before, num_frames = self.taps // 2, x.shape[1]
        if segments.num > 1:  # zeros between the utterances of a row
            gaps = before * jnp.arange(segments.num, dtype=segments.start.dtype)
            apart = Segments(segments.start + gaps, segments.length)
            y = move(x, segments, apart, sequence.padded_time(num_frames + before * segments.num))
        else:
            y = jnp.where(segments.mask(num_frames)[..., None], x, 0)
        y = sequence.with_context(_convolve, y, (self._weights(),), past=before, future=self.taps - 1 - before)
        y = y if segments.num == 1 else move(y, apart, segments, num_frames)
        return y + self.bias[...].astype(x.dtype)

    def _weights(self) -> Float[Array, "taps groups in out"]:
        kernel = self.kernel[...]
        if self.scale is None:
            return kernel
        norm = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(1, 2, 3), keepdims=True))
        return kernel * (self.scale[...].reshape(norm.shape) / norm)


def _convolve(
    x: Float[Array, "batch time dim"], kernel: Float[Array, "taps groups in out"]
) -> Float[Array, "batch time dim"]:
    """Computes the convolution, with zeros beyond the row, in float32."""
    (batch, num_frames, dim), (taps, groups, *_) = x.shape, kernel.shape
    half, forward, inverse = _transforms(taps)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    num_blocks = -(-num_frames // half)
    # Padding by the largest amount needed and cutting the excess keeps sizes symbolic (`jax.export`).
    halves = jnp.pad(x.astype(jnp.float32), ((0, 0), (taps // 2, 2 * half), (0, 0)))[:, : (num_blocks + 1) * half]
    halves = halves.reshape(batch, num_blocks + 1, half, dim)
    blocks = jnp.concatenate([halves[:, :-1], halves[:, 1:]], axis=2)  # half of a block's outputs are whole
    spectrum = product("cfl,bnld->cfbnd", forward, blocks)
    real, imaginary = spectrum.reshape(2, half + 1, batch, num_blocks, groups, -1)
    kernel_real, kernel_imaginary = product("cfk,kgio->cfgio", forward[..., :taps], kernel)
    # The spectrum times the conjugate of the kernel's, as one real product.
    rows = [[kernel_real, -kernel_imaginary], [kernel_imaginary, kernel_real]]
    factors = jnp.concatenate([jnp.concatenate(row, axis=-1) for row in rows], axis=-2)
    mixed = product("fbngi,fgio->fbngo", jnp.concatenate([real, imaginary], axis=-1), factors)
    mixed = jnp.stack(jnp.split(mixed, 2, axis=-1)).reshape(2, half + 1, batch, num_blocks, dim)
    y = product("cfl,cfbnd->bnld", inverse, mixed)
    return y.reshape(batch, num_blocks * half, dim)[:, :num_frames].astype(x.dtype)


@functools.cache
def _transforms(taps: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns half the length of a block, a power of two, the matrix of its transform and that of the inverse.

    Both are float32 [2, frequencies, samples], real and imaginary parts; the inverse has the first half's samples.
    """
    half = 1 << max(taps - 2, 0).bit_length()
    frequency = np.arange(half + 1)[:, None]
    angle = np.pi * (frequency * np.arange(2 * half) % (2 * half)) / half
    forward = np.stack([np.cos(angle), -np.sin(angle)])
    inverse = forward[..., :half] * np.where(frequency % half == 0, 1, 2) / (2 * half)
    return half, forward.astype(np.float32), inverse.astype(np.float32)
