"""Power spectra of centred windows, as matrix products that keep quiet frequencies next to loud ones exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int16

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.logmel import coarse_and_fine
from jax_speechlm.nn import stft

# Samples and spectra need more bits than bfloat16 products, the default of accelerators, keep.
product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
"""Matrix product in float32."""


def power(
    audio: Float[Array, "batch padded"], num_frames: stft.Size, hop: int, matrices: tuple[np.ndarray, np.ndarray]
) -> Float32[Array, "batch time frequencies"]:
    """Returns the powers of the windows of rows that half a window has been added to on each side.

    Args:
      matrices: as of `half_dfts`.
    """
    # A window is symmetric about its middle, and an amplitude does not depend on where time 0 is. Put there, the sums
    # of samples at equal distances have all of the real part and the differences all of the imaginary part.
    cosines, sines = matrices
    half = len(cosines)
    after = stft.frame(audio[:, half:], half, hop, num_frames)
    before = stft.frame(audio[:, 1:], half, hop, num_frames)[..., ::-1]
    middle = after[..., :1]
    before = before[..., 1:]
    even = jnp.concatenate([middle, after[..., 1:] + before], axis=-1)
    odd = jnp.concatenate([jnp.zeros_like(middle), after[..., 1:] - before], axis=-1)

    def transform(samples: Array, matrix: np.ndarray) -> Array:
        coarse, fine = jnp.split(product(jnp.diff(samples, prepend=0), matrix), 2, axis=-1)
        return coarse + fine

    return jnp.square(transform(even, cosines)) + jnp.square(transform(odd, sines))


def half_dfts(window: int, n_fft: int, frequencies: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns both halves of the DFT under a Hann window, float32 [window / 2, 2 x frequencies].

    They map samples on the int16 scale to spectra of samples in [-1, 1), with the precision of `logmel`: of the
    differences of samples, by coarse values of `bits` significant bits and a remainder.

    Args:
      frequencies: indices of the frequencies of the transform of `n_fft` samples.
    """
    sample = np.arange(window // 2)
    angle = 2 * np.pi * (np.outer(sample, frequencies) % n_fft) / n_fft
    hann = stft.hann(window)[window // 2 :, None] / 2**15
    # A sample is the sum of all differences up to it.
    parts = [np.cumsum((part * hann)[::-1], axis=0)[::-1] for part in (np.cos(angle), np.sin(angle))]
    cosines, sines = (coarse_and_fine(part, bits) for part in parts)
    return cosines, sines


def reflected(
    audio: Float[Array, "batch samples"] | Int16[Array, "batch samples"], segments: Segments, reach: int
) -> Float32[Array, "batch padded"]:
    """Returns rows with `reach` more samples on each side, where every utterance is reflected at its ends.

    Utterances shorter than that are reflected several times, as `numpy.pad(mode="reflect")` does.
    """
    length, start = segments.length[:, None], segments.start[:, None]
    at = jnp.arange(-reach, audio.shape[1] + reach, dtype=jnp.int32)[:, None] - start
    period = jnp.maximum(2 * (length - 1), 1)
    place = at % period
    place = start + jnp.where(place < length, place, period - place)
    belongs = (at >= -reach) & (at < length + reach) & (length > 0)
    source = jnp.sum(jnp.where(belongs, place, 0), axis=2)
    samples = jnp.take_along_axis(audio, source, axis=1).astype(jnp.float32)
    return jnp.where(jnp.any(belongs, axis=2), samples, 0)
