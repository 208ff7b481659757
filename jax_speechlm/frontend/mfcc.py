"""Mel-frequency cepstral coefficients with their differences, on device: what HuBERT's first units are made from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int16, Int32

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.frontend.logmel import LogMel, log_mel, normalize

COEFFICIENTS = 13
"""Of a window; with first and second differences 39, as in Hsu et al. 2021."""

_REACH = 2  # windows before and behind that a difference is fitted to


def mfcc(
    audio: Int16[Array, "batch samples"] | Float32[Array, "batch samples"],
    audio_length: Int[Array, " batch"],
    config: LogMel,
) -> tuple[Float32[Array, "batch time 39"], Int32[Array, " batch"]]:
    """One vector for each frame that `log_mel` gives: the mean of its `stack` windows' MFCCs and their differences.

    Orthonormal DCT-II of the log-mel bins, 13 coefficients; their slopes over five windows, the ends repeated; and the
    slopes of these. With `config.normalize` each of the 39 gets zero mean and unit variance over the utterance.

    Args:
      audio, audio_length: as `log_mel` takes them.

    Returns:
      The vectors, 0 at padding, and how many each row has.
    """
    windows_BxTxF, length_B = log_mel(audio, audio_length, config.replace(stack=1, normalize=False))
    highest = jax.lax.Precision.HIGHEST
    cepstra = jnp.matmul(windows_BxTxF, _dct(config.num_mel_bins), precision=highest)
    slopes = _slopes(cepstra, length_B)
    x = jnp.concatenate([cepstra, slopes, _slopes(slopes, length_B)], axis=-1)
    if config.normalize:
        x = normalize(x, frame_mask(length_B, x.shape[1])[..., None], length_B)
    frames, num_frames = length_B // config.stack, x.shape[1] // config.stack
    x = x[:, : num_frames * config.stack].reshape(len(x), num_frames, config.stack, x.shape[2]).mean(2)
    return jnp.where(frame_mask(frames, num_frames)[..., None], x, 0), frames


def _slopes(
    x_BxTxF: Float[Array, "batch windows features"], length_B: Int[Array, " batch"]
) -> Float[Array, "batch windows features"]:
    """The slope of the straight line through a window and its neighbours; beyond the ends the last values repeat."""
    num_windows = x_BxTxF.shape[1]

    def moved(by: int) -> Array:
        place = jnp.clip(jnp.arange(num_windows) + by, 0, jnp.maximum(length_B - 1, 0)[:, None])
        return jnp.take_along_axis(x_BxTxF, place[..., None], axis=1)

    reach = range(1, _REACH + 1)
    return sum(n * (moved(n) - moved(-n)) for n in reach) / (2 * sum(n * n for n in reach))


@functools.cache
def _dct(num_mel_bins: int) -> np.ndarray:
    """The orthonormal DCT-II, float32 [bins, coefficients]."""
    place, order = np.arange(num_mel_bins)[:, None], np.arange(COEFFICIENTS)
    scale = np.where(order == 0, np.sqrt(1 / num_mel_bins), np.sqrt(2 / num_mel_bins))
    return (scale * np.cos(np.pi * (place + 0.5) * order / num_mel_bins)).astype(np.float32)
