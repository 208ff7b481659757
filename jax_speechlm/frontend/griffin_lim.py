"""Speech from mel spectrograms without a trained model: amplitudes by the mel filters, phases by Griffin-Lim.

The lower bound that trained vocoders are compared with. Everything is jnp, one compiled program for a batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.nn.stft import istft, stft

_SMALLEST = float(np.finfo(np.float32).tiny)


def mel_to_audio(
    mel: Float[Array, "batch time bins"],
    lengths: Int[Array, " batch"],
    config: SynthesisMel,
    *,
    num_samples: Int[Array, " batch"] | None = None,
    iterations: int = 32,
    momentum: float = 0.99,
) -> Float32[Array, "batch samples"]:
    """Computes samples whose mel spectrograms are near to these.

    Args:
      mel: base-10 logarithms of mel amplitudes, as of `synthesis_mel`.
      lengths: frames per row; neither padding nor other rows change a row's samples.
      num_samples, iterations, momentum: as of `griffin_lim`.

    Returns:
      float32 samples, time x hop, of amplitude about 1 at most, not clipped; 0 at padding.
    """
    amplitude = amplitude_of_mel(mel, config)
    return griffin_lim(
        amplitude,
        lengths,
        config.hop,
        config.window,
        num_samples=num_samples,
        iterations=iterations,
        momentum=momentum,
    )


def amplitude_of_mel(
    mel: Float[Array, "batch time bins"], config: SynthesisMel, updates: int = 32
) -> Float32[Array, "batch time frequencies"]:
    """Returns amplitudes of at least 0 whose mel spectrogram is this one.

    Starts from the pseudo-inverse of the filters and continues by multiplicative updates, which lower the divergence
    between the mel amplitudes (Lee and Seung 2001): quiet bins count as much as loud ones. Frequencies that no filter
    passes are 0.

    Args:
      updates: number of multiplicative updates.
    """
    filters, inverse, inverse_sum = _matrices(config)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    target = 10 ** mel.astype(jnp.float32)
    smooth = product(target, filters.T) * inverse_sum
    start = jnp.maximum(product(target, inverse), 0.01 * smooth)

    def update(amplitude: Array, _: None) -> tuple[Array, None]:
        ratio = target / jnp.maximum(product(amplitude, filters), _SMALLEST)
        return amplitude * product(ratio, filters.T) * inverse_sum, None

    return jax.lax.scan(update, start, length=updates)[0]


def griffin_lim(
    amplitude: Float[Array, "batch time frequencies"],
    lengths: Int[Array, " batch"],
    hop: int,
    window_length: int | None = None,
    *,
    num_samples: Int[Array, " batch"] | None = None,
    iterations: int = 32,
    momentum: float = 0.99,
    phase: Float[Array, "#batch #time frequencies"] | None = None,
) -> Float32[Array, "batch samples"]:
    """Computes samples of a spectrogram, as `librosa.griffinlim` does: fast Griffin-Lim (Perraudin et al. 2013).

    Args:
      amplitude: of centred Hann windows.
      lengths: frames per row; neither padding nor other rows change a row's samples.
      hop: samples from one window to the next.
      window_length: samples of a window; those of the Fourier transform by default.
      num_samples: samples per row, at most lengths x hop, the default.
      iterations: number of times that phases are replaced by those of the samples.
      momentum: weight of the last step in the next; 0 is the method of Griffin and Lim 1984.
      phase: at the start, in radians. By default every frequency continues from window to window, from a fixed point
        of its period: deterministic, and the same whatever the padding.

    Returns:
      float32 samples, time x hop; 0 at padding.
    """
    num_frames, frequencies = amplitude.shape[1:]
    n_fft = 2 * (frequencies - 1)
    num_samples = lengths * hop if num_samples is None else jnp.minimum(num_samples, lengths * hop)
    is_sample = frame_mask(num_samples, num_frames * hop)
    amplitude = jnp.where(frame_mask(lengths, num_frames)[..., None], amplitude.astype(jnp.float32), 0)
    if phase is None:
        phase = _steady_phase(num_frames, n_fft, hop)

    def samples_of(real: Array, imaginary: Array) -> Array:
        audio = istft(real, imaginary, hop, window_length, length=num_frames * hop, lengths=lengths)
        return jnp.where(is_sample, audio, 0)

    def iterate(state: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        audio = samples_of(*state[:2])
        rebuilt = tuple(part[:, :num_frames] for part in stft(audio, n_fft, hop, window_length, mode="constant"))
        real, imaginary = (
            part - momentum / (1 + momentum) * last for part, last in zip(rebuilt, state[2:], strict=True)
        )
        scale = amplitude / (jnp.sqrt(jnp.square(real) + jnp.square(imaginary)) + _SMALLEST)
        return (real * scale, imaginary * scale, *rebuilt), None

    start = amplitude * jnp.cos(phase), amplitude * jnp.sin(phase)
    nothing = jnp.zeros_like(amplitude)
    state, _ = jax.lax.scan(iterate, (*start, nothing, nothing), length=iterations)
    return samples_of(*state[:2])


def _steady_phase(num_frames: int, n_fft: int, hop: int) -> Float32[Array, "1 time frequencies"]:
    """Returns the phases of tones at the centres of the frequencies, which start at fixed random points."""
    frequencies = n_fft // 2 + 1
    turns = jnp.arange(num_frames)[:, None] * hop % n_fft * jnp.arange(frequencies) % n_fft / n_fft
    start = np.random.default_rng(0).random(frequencies, np.float32)
    return (2 * jnp.pi * (turns + start))[None]


@functools.cache
def _matrices(config: SynthesisMel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mel filters [frequencies, bins], their pseudo-inverse and, per frequency, 1 / sum (0 of none)."""
    filters = config.filters()
    total = filters.sum(axis=1)
    inverse_sum = np.divide(1, total, out=np.zeros_like(total), where=total > 0)
    return tuple(array.astype(np.float32) for array in (filters, np.linalg.pinv(filters), inverse_sum))
