"""Duration of recordings: speech faster or slower at the same pitch, by a phase vocoder."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int16, Int32

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.batch import frame_mask
from jax_speechlm.nn import stft


def change_tempo(
    audio: Int16[Array, "batch samples"] | Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    tempo: Float[Array, " batch"],
    num_samples: int,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
) -> tuple[Float32[Array, "batch {num_samples}"], Int32[Array, " batch"]]:
    """Plays every row at a multiple of its speed, with its pitch as it is.

    A phase vocoder (Flanagan and Golden 1966) in the form of `librosa.effects.time_stretch`: amplitudes between two
    windows are interpolated, and phases advance as they do from one of them to the other.

    Args:
      audio: samples of any scale.
      lengths: samples per row, which may be 0.
      tempo: 2 plays twice as fast. With `lengths / wanted`, rows get a wanted length.
      num_samples: samples of the result's rows; longer ones are cut.

    Returns:
      float32 samples, 0 at padding, and their number per row, round(lengths / tempo).
    """
    size = _window(sample_rate)
    hop = size // 4
    audio = jnp.where(frame_mask(lengths, audio.shape[1]), audio.astype(jnp.float32), 0)
    real, imaginary = stft.stft(audio, size, hop, mode="constant")
    frames_B = (lengths // hop + 1) * (lengths > 0)
    is_own = frame_mask(frames_B, real.shape[1])[..., None]
    amplitude = jnp.where(is_own, jnp.sqrt(jnp.square(real) + jnp.square(imaginary)), 0)
    phase = jnp.where(is_own, jnp.arctan2(imaginary, real), 0)

    at_BxT = jnp.arange(num_samples // hop + 1) * tempo[:, None]
    index_BxT = jnp.floor(at_BxT).astype(jnp.int32)

    def of(x_BxTxF: Array, later: int) -> Array:
        padded = jnp.pad(x_BxTxF, ((0, 0), (0, 2), (0, 0)))
        index = jnp.minimum(index_BxT + later, padded.shape[1] - 1)
        return jnp.take_along_axis(padded, index[..., None], axis=1)

    share = (at_BxT - index_BxT)[..., None]
    amplitude = (1 - share) * of(amplitude, 0) + share * of(amplitude, 1)
    expected = np.float32(2 * np.pi * hop * np.arange(real.shape[2]) / size)
    advance = expected + _wrapped(of(phase, 1) - of(phase, 0) - expected)

    def step(now_BxF: Array, advance_BxF: Array) -> tuple[Array, Array]:
        return _wrapped(now_BxF + advance_BxF), now_BxF

    _, phase_TxBxF = jax.lax.scan(step, phase[:, 0], jnp.swapaxes(advance, 0, 1))
    phase = jnp.swapaxes(phase_TxBxF, 0, 1)
    lengths = jnp.minimum(jnp.round(lengths / tempo), num_samples).astype(jnp.int32)
    parts = (amplitude * jnp.cos(phase), amplitude * jnp.sin(phase))
    own = jnp.ceil(frames_B / tempo).astype(jnp.int32)
    changed = stft.istft(*parts, hop, length=num_samples, lengths=jnp.minimum(own, at_BxT.shape[1]))
    return jnp.where(frame_mask(lengths, num_samples), changed, 0), lengths


def _window(sample_rate: int) -> int:
    """Returns the samples of a window: 64 ms, long enough to tell the harmonics of low voices apart."""
    return 4 * max(1, round(sample_rate * 0.016))


def _wrapped(phase: Array) -> Array:
    return phase - 2 * jnp.pi * jnp.round(phase / (2 * jnp.pi))
