"""Short-time Fourier transform and its inverse, as matrix products.

XLA gathers a batch-sharded FFT onto every device (openxla/xla#24), and an inverse transform by scatter-add is slow on
accelerators. So a frame's spectrum is `frame @ dft`, frames are concatenated from slices of whole hops, and their
overlap is added by reshaping. Spectra are pairs of real arrays, which every runtime of an export has. All functions
take symbolic sizes (`jax.export`) and have finite gradients.
"""

import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from jax_speechlm.core.segments import Lengths, Segments

Padding: TypeAlias = Literal["center", "same", "none"]
"""What lies beyond the ends: half of `n_fft` on each side (librosa's `center=True`, 1 + samples // hop frames); `(n_fft
- hop) / 2` (HiFi-GAN's and Vocos's "same", samples // hop frames); or nothing."""

Size: TypeAlias = Any
"""An int, or a symbolic size (`jax.export.symbolic_shape`), which has no public class."""

_SMALLEST = float(np.finfo(np.float32).tiny)


def stft(
    audio: Float[Array, "batch samples"],
    n_fft: int,
    hop: int,
    window_length: int | None = None,
    padding: Padding = "center",
    mode: Literal["reflect", "constant"] = "reflect",
) -> tuple[Float32[Array, "batch frames frequencies"], Float32[Array, "batch frames frequencies"]]:
    """Computes the spectra of frames under a periodic Hann window, as `librosa.stft` does.

    Args:
      audio: rows of samples; with `mode="reflect"` more samples than are padded on a side.
      n_fft: samples of a frame; even.
      hop: samples from one frame to the next.
      window_length: samples of the window, in the middle of the frame; even, `n_fft` by default.
      padding: samples added at the ends of a row; see `Padding`.
      mode: whether that is the row reflected in its first and last sample, or zeros.

    Returns:
      Real and imaginary parts, [batch, frames, n_fft / 2 + 1].
    """
    window_length = _check(n_fft, hop, window_length)
    audio = audio.astype(jnp.float32)
    pad = _padded(n_fft, hop, padding)
    if pad and mode == "reflect":
        audio = reflect(audio, pad)
    elif pad:
        audio = jnp.pad(audio, ((0, 0), (pad, pad)))
    num_frames = (audio.shape[1] - n_fft) // hop + 1
    frames = frame(audio[:, (n_fft - window_length) // 2 :], window_length, hop, num_frames)
    return dft(frames, n_fft)


def istft(
    real: Float[Array, "batch frames frequencies"],
    imaginary: Float[Array, "batch frames frequencies"],
    hop: int,
    window_length: int | None = None,
    padding: Padding = "center",
    length: Size | None = None,
    lengths: Lengths | None = None,
) -> Float32[Array, "batch samples"]:
    """Computes the samples whose spectra are nearest to these in the least-squares sense, as `librosa.istft` does.

    Windowed inverse transforms are added where they overlap and divided by the sum of the squared windows (Griffin and
    Lim 1984).

    Args:
      real: real parts, for a DFT of 2 x (frequencies - 1) samples.
      imaginary: imaginary parts; those of the lowest and the highest frequency have no effect.
      hop: samples from one frame to the next.
      window_length: as of `stft`.
      padding: as of `stft`: the samples cut off on each side.
      length: samples to return, cut or filled with zeros. By default the samples between the paddings: (frames - 1) x
        hop for "center", frames x hop for "same".
      lengths: valid frames of each row. Frames at padding are then neither added nor counted, so that a row's samples
        do not depend on its padding; in packed rows, samples within a window of a neighbour are a mixture of both.

    Returns:
      float32 samples; those that no window reaches are 0.
    """
    n_fft = 2 * (real.shape[2] - 1)
    window_length = _check(n_fft, hop, window_length)
    num_frames, offset = real.shape[1], (n_fft - window_length) // 2
    frames = inverse_dft(real, imaginary, window_length)
    weight = jnp.broadcast_to(jnp.asarray(hann(window_length) ** 2, jnp.float32), (1, num_frames, window_length))
    if lengths is not None:
        mask = Segments.of(lengths).mask(num_frames)[..., None]
        frames, weight = jnp.where(mask, frames, 0), jnp.where(mask, weight, 0)
    total, weight = overlap_add(frames, hop), overlap_add(weight, hop)
    audio = jnp.where(weight > _SMALLEST, total / jnp.where(weight > _SMALLEST, weight, 1), 0)
    pad = _padded(n_fft, hop, padding)
    if length is None:
        length = n_fft - 2 * pad + hop * (num_frames - 1)
    before, after = max(offset - pad, 0), max(pad - offset, 0)
    # Filling by the largest amount needed and cutting the excess keeps sizes symbolic (`jax.export`).
    return jnp.pad(audio, ((0, 0), (before, length + n_fft)))[:, after : after + length]


def frame(
    audio: Float[Array, "batch samples"], size: int, hop: int, num_frames: Size
) -> Float[Array, "batch frames size"]:
    """Returns overlapping frames, concatenated from slices of whole hops, which is faster than a gather.

    Args:
      audio: rows of samples; zeros follow them where frames need more.
      num_frames: frames to return, the first from the first sample on.
    """
    hops = -(-size // hop)
    # Padding by the largest amount needed and cutting the excess keeps sizes symbolic (`jax.export`).
    audio = jnp.pad(audio, ((0, 0), (0, hops * hop)))[:, : (num_frames + hops - 1) * hop]
    blocks = audio.reshape(audio.shape[0], num_frames + hops - 1, hop)
    return jnp.concatenate([blocks[:, i : i + num_frames] for i in range(hops)], axis=-1)[..., :size]


def reflect(audio: Float[Array, "batch samples"], reach: int) -> Float[Array, "batch padded"]:
    """Returns rows with `reach` more samples on each side, reflected in the first and in the last sample.

    Raises:
      ValueError: there are at most `reach` samples.
    """
    last = audio.shape[1] - 1
    if isinstance(last, int) and last < reach:
        raise ValueError(f"a row of {last + 1} samples cannot be reflected by {reach} on each side: use longer rows")
    return jnp.concatenate([audio[:, 1 : reach + 1][:, ::-1], audio, audio[:, last - reach : last][:, ::-1]], axis=1)


def overlap_add(frames: Float[Array, "batch frames size"], hop: int) -> Float[Array, "batch samples"]:
    """Returns the sum of frames, each `hop` samples after the one before: (frames - 1) x hop + size samples."""
    batch, num_frames, size = frames.shape
    hops = -(-size // hop)
    blocks = jnp.pad(frames, ((0, 0), (0, 0), (0, hops * hop - size))).reshape(batch, num_frames, hops, hop)
    shifted = (jnp.pad(blocks[:, :, i], ((0, 0), (i, hops - 1 - i), (0, 0))) for i in range(hops))
    total = functools.reduce(jnp.add, shifted).reshape(batch, (num_frames + hops - 1) * hop)
    return total[:, : (num_frames - 1) * hop + size]


def dft(
    frames: Float[Array, "*batch size"], n_fft: int
) -> tuple[Float32[Array, "*batch frequencies"], Float32[Array, "*batch frequencies"]]:
    """Returns real and imaginary parts of frames under a Hann window, in the middle of `n_fft` samples."""
    # About its middle a window is symmetric. Sums of samples at equal distances have all of the real part, differences
    # all of the imaginary part: half of the multiplications.
    middle = frames.shape[-1] // 2
    before, after = frames[..., 1:middle][..., ::-1], frames[..., middle + 1 :]
    even = jnp.concatenate([frames[..., middle : middle + 1], after + before], axis=-1)
    cosines, sines = _matrices(n_fft, frames.shape[-1])[0]
    return _product(even, cosines), _product(after - before, sines)


def inverse_dft(
    real: Float[Array, "*batch frequencies"], imaginary: Float[Array, "*batch frequencies"], window_length: int
) -> Float32[Array, "*batch size"]:
    """Returns the samples of spectra, times a Hann window in their middle; those outside the window are left out."""
    cosines, sines = _matrices(2 * (real.shape[-1] - 1), window_length)[1]
    even, odd = _product(real.astype(jnp.float32), cosines), _product(imaginary.astype(jnp.float32), sines)
    middle, even = even[..., :1], even[..., 1:]
    # The window is 0 at its first sample.
    return jnp.concatenate([jnp.zeros_like(middle), (even - odd)[..., ::-1], middle, even + odd], axis=-1)


def _product(x: Array, matrix: np.ndarray) -> Array:
    """Returns a product in float32: samples and spectra need more bits than accelerators keep by default."""
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def hann(size: int) -> np.ndarray:
    """Returns a periodic Hann window, float64."""
    return np.sin(np.pi * np.arange(size) / size) ** 2


@functools.cache
def _matrices(n_fft: int, window_length: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Returns cosines and sines of the DFT and of its inverse, by distance from the middle, with the window in both.

    The DFT has [distances, frequencies], its inverse [frequencies, distances]; sines leave out the distance 0.
    """
    middle = window_length // 2
    distance, frequency = np.arange(middle), np.arange(n_fft // 2 + 1)
    # Time 0 is the start of the frame, n_fft / 2 samples before its middle.
    angle = 2 * np.pi * (np.outer(distance + n_fft // 2, frequency) % n_fft) / n_fft
    window = hann(window_length)[middle:, None]
    cosines, sines = window * np.cos(angle), -(window * np.sin(angle))[1:]
    # All frequencies but the lowest and the highest stand for their negative ones too.
    counted = np.where((frequency == 0) | (frequency == n_fft // 2), 1, 2) / n_fft
    forward, inverse = (cosines, sines), ((cosines * counted).T, (sines * counted).T)
    return tuple(tuple(part.astype(np.float32) for part in pair) for pair in (forward, inverse))


def _check(n_fft: int, hop: int, window_length: int | None) -> int:
    window_length = n_fft if window_length is None else window_length
    if n_fft % 2 or window_length % 2 or not 0 < window_length <= n_fft or not 0 < hop <= window_length:
        raise ValueError(
            f"n_fft ({n_fft}) and the window ({window_length}) must be even; the window at most n_fft, at least the "
            f"hop ({hop})"
        )
    return window_length


def _padded(n_fft: int, hop: int, padding: Padding) -> int:
    """Returns the samples beyond each end."""
    if padding == "same" and (n_fft - hop) % 2:
        raise ValueError(f'padding="same" needs n_fft - hop ({n_fft} - {hop}) to be even')
    return {"center": n_fft // 2, "same": (n_fft - hop) // 2, "none": 0}[padding]
