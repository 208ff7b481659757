"""Mel-frequency cepstral coefficients with first and second differences, the features of HuBERT's first units."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int16, Int32

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.logmel import LogMel, log_mel, normalize

COEFFICIENTS = 13
"""Coefficients of a window; 39 values with first and second differences, as in Hsu et al. 2021."""

_REACH = 2  # windows on each side that a slope is fitted to


def mfcc(
    audio: Int16[Array, "batch samples"] | Float32[Array, "batch samples"],
    audio_length: Int[Array, " batch"],
    config: LogMel,
) -> tuple[Float32[Array, "batch time 39"], Int32[Array, " batch"]]:
    """Computes MFCCs at the frames of `log_mel`: the mean over the `stack` windows of a frame.

    13 coefficients of the orthonormal DCT-II of the log-mel bins, their slopes over five windows (with the ends
    repeated), and the slopes of the slopes. With `config.normalize` all 39 values are normalised to zero mean and unit
    variance over the utterance.

    Returns:
      The vectors, 0 at padding, and the number of vectors per row.
    """
    windows_BxTxF, length_B = log_mel(audio, audio_length, config.replace(stack=1, normalize=False))
    highest = jax.lax.Precision.HIGHEST
    cepstra = jnp.matmul(windows_BxTxF, dct(config.num_mel_bins, COEFFICIENTS), precision=highest)
    first = slopes(cepstra, Segments.of(length_B))
    x = jnp.concatenate([cepstra, first, slopes(first, Segments.of(length_B))], axis=-1)
    if config.normalize:
        x = normalize(x, length_B)
    frames, num_frames = length_B // config.stack, x.shape[1] // config.stack
    x = x[:, : num_frames * config.stack].reshape(len(x), num_frames, config.stack, x.shape[2]).mean(2)
    return jnp.where(frame_mask(frames, num_frames)[..., None], x, 0), frames


def slopes(
    x_BxTxF: Float[Array, "batch windows features"], segments: Segments
) -> Float[Array, "batch windows features"]:
    """Returns the slope of the line fitted to a window and its neighbours; the ends of utterances are repeated."""
    num_windows = x_BxTxF.shape[1]
    first_BxT = segments.spread(segments.start, num_windows)
    last_BxT = segments.spread(segments.start + jnp.maximum(segments.length - 1, 0), num_windows)

    def shifted(by: int) -> Array:
        index = jnp.clip(jnp.arange(num_windows) + by, first_BxT, last_BxT)
        return jnp.take_along_axis(x_BxTxF, index[..., None], axis=1)

    reach = range(1, _REACH + 1)
    return sum(n * (shifted(n) - shifted(-n)) for n in reach) / (2 * sum(n * n for n in reach))


@functools.cache
def dct(num_mel_bins: int, coefficients: int) -> np.ndarray:
    """Returns the orthonormal DCT-II, float32 [bins, coefficients]."""
    bins, order = np.arange(num_mel_bins)[:, None], np.arange(coefficients)
    scale = np.where(order == 0, np.sqrt(1 / num_mel_bins), np.sqrt(2 / num_mel_bins))
    return (scale * np.cos(np.pi * (bins + 0.5) * order / num_mel_bins)).astype(np.float32)
