"""Clean-up of recordings without a trained model: noise, hum and what is not speech.

A spectrum of every window is multiplied by gains of 0 to 1 and transformed back. The noise is estimated from the
recording itself, by the minima of its power over time (Martin 2001). All functions take rows of any length, whose
samples depend neither on padding nor on other rows.
"""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float, Float32, Int, Int16

from data_pipelines.audio.clean_up import CleanUpMethod
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.filters import butterworth, sos_filter
from jax_speechlm.nn import stft

_SMOOTHED = 6  # windows (48 ms) on each side, over which power is averaged
_SEARCHED = 125  # windows (1 s) on each side, in which its minimum is the noise
_BIAS = 2.9
"""Mean power of stationary noise over the mean of its minima, measured on white noise: for these two constants."""
_DECIDED = 0.96  # weight of the window before in the a-priori SNR
_LEAST_SNR = 10**-2.5  # a-priori, in power
_SPEECH = 0.5  # nats; least mean log-likelihood ratio of a window of speech
_SPEECH_BAND = 100.0, 4000.0  # Hz
_HANGOVER = 12  # windows (100 ms) on each side of speech that count as speech
_FADE = 6  # windows on each side that the gate's gains are averaged over


class CleanUp(Config):
    """Settings of clean-up.

    Attributes:
      method: "wiener" is a Wiener filter with the decision-directed a-priori SNR (Ephraim and Malah 1984; Scalart and
        Filho 1996); "subtraction" subtracts a multiple of the noise's power, the more the lower the SNR (Berouti et al.
        1979); "gate" lowers windows without speech, by a likelihood ratio (Sohn et al. 1999), and leaves speech as it
        is; "none" only filters.
      most_reduction: of the level of noise, in dB; more leaves less noise and more of its fluctuations.
      high_pass: cut-off in Hz of a high-pass filter before it, which removes an offset and hum; 0 for none.
    """

    method: CleanUpMethod = "wiener"
    most_reduction: Annotated[float, pydantic.Field(gt=0, le=60)] = 18.0
    high_pass: pydantic.NonNegativeFloat = 60.0


def clean_up(
    audio: Int16[Array, "batch samples"] | Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    config: CleanUp,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
) -> Float32[Array, "batch samples"]:
    """Removes an offset, hum and noise.

    Args:
      audio: samples, int16 or float32 on the same scale (-32768 to 32767).
      lengths: samples per row, which may be 0.

    Returns:
      float32 samples on the int16 scale, as many; 0 at padding.
    """
    mask = frame_mask(lengths, audio.shape[1])
    audio = jnp.where(mask, audio.astype(jnp.float32), 0)
    if config.high_pass:
        audio = high_pass(audio, lengths, config.high_pass, sample_rate)
    if config.method == "none":
        return audio
    spectrum = _analyse(audio, lengths, sample_rate)
    floor = 10 ** (-config.most_reduction / 20)
    if config.method == "wiener":
        gain_BxTxF = jnp.maximum(_wiener(spectrum).gain, floor)
    elif config.method == "subtraction":
        gain_BxTxF = _subtraction(spectrum, floor)
    else:
        gain_BxTxF = _gate(spectrum, floor, sample_rate)
    size = _window(sample_rate)
    parts = (spectrum.real * gain_BxTxF, spectrum.imaginary * gain_BxTxF)
    cleaned = stft.istft(*parts, size // 4, length=audio.shape[1], lengths=spectrum.frames)
    return jnp.where(mask, cleaned, 0)


def high_pass(
    audio: Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    hertz: float,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
) -> Float32[Array, "batch samples"]:
    """Subtracts each row's mean and applies a Butterworth high-pass filter of order 4; 0 at padding."""
    mask = frame_mask(lengths, audio.shape[1])
    mean_B = jnp.sum(audio, axis=1, where=mask) / jnp.maximum(lengths, 1)
    # Without the mean, an offset does not begin as a step that the filter responds to.
    centred = jnp.where(mask, audio - mean_B[:, None], 0)
    return jnp.where(mask, sos_filter(centred, butterworth("highpass", hertz, sample_rate)), 0)


def speech_frames(
    audio: Int16[Array, "batch samples"] | Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    sample_rate: int = DEFAULT_SAMPLE_RATE,
) -> Bool[Array, "batch time"]:
    """Detects speech in windows of 32 ms, centred every 8 ms, by the likelihood ratio of Sohn et al. 1999.

    Unlike the models of `frame_classification`, it takes any sound for speech that is louder than the noise.

    Args:
      audio: as of `clean_up`.
    """
    audio = jnp.where(frame_mask(lengths, audio.shape[1]), audio.astype(jnp.float32), 0)
    return _is_speech(_analyse(audio, lengths, sample_rate), sample_rate)


class _Spectrum(NamedTuple):
    """Spectra of centred windows, and the noise in them; `frames` are the windows of each row."""

    real: Float[Array, "batch time frequencies"]
    imaginary: Float[Array, "batch time frequencies"]
    power: Float[Array, "batch time frequencies"]
    noise: Float[Array, "batch time frequencies"]
    frames: Int[Array, " batch"]


class _Filter(NamedTuple):
    gain: Float[Array, "batch time frequencies"]
    prior_snr: Float[Array, "batch time frequencies"]
    posterior_snr: Float[Array, "batch time frequencies"]


def _window(sample_rate: int) -> int:
    """Returns the samples of a window: 32 ms, a multiple of four."""
    return 4 * max(1, round(sample_rate * 0.008))


def _analyse(audio: Float[Array, "batch samples"], lengths: Int[Array, " batch"], sample_rate: int) -> _Spectrum:
    size = _window(sample_rate)
    real, imaginary = stft.stft(audio, size, size // 4, mode="constant")
    frames = (lengths // (size // 4) + 1) * (lengths > 0)
    power = jnp.square(real) + jnp.square(imaginary)
    # Nothing is quieter than the rounding of samples to int16, whose variance is 1/12: where a recording is digital
    # silence, the SNR of the rest stays finite.
    rounding = float((stft.hann(size) ** 2).sum() / 12)
    noise = jnp.maximum(noise_power(power, frames), rounding)
    return _Spectrum(real, imaginary, power, noise, frames)


def noise_power(
    power: Float[Array, "batch time frequencies"], frames: Int[Array, " batch"]
) -> Float32[Array, "batch time frequencies"]:
    """Estimates the power of noise by minimum statistics (Martin 2001), with a fixed smoothing.

    Power is averaged over 0.1 s, its minimum is taken over two seconds, both around a window,
    and multiplied by what the minimum is below the mean.

    Args:
      power: of windows of 32 ms every 8 ms.
      frames: windows per row.
    """
    mask = frame_mask(frames, power.shape[1])
    smoothed = jnp.where(mask[..., None], _moving_mean(power, mask, _SMOOTHED), jnp.inf)
    return _BIAS * _around(smoothed, jnp.inf, jax.lax.min, _SEARCHED)


def _moving_mean(x: Float[Array, "batch time *bins"], mask: Bool[Array, "batch time"], reach: int) -> Array:
    """Returns means over the valid windows up to `reach` away."""
    mask = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2))
    total = _around(jnp.where(mask, x, 0), 0.0, jax.lax.add, reach)
    return total / jnp.maximum(_around(mask.astype(jnp.float32), 0.0, jax.lax.add, reach), 1)


def _around(x: Float[Array, "batch time *bins"], start: float, operation, reach: int) -> Array:
    """Reduces the windows up to `reach` before and after each."""
    span = (1, 2 * reach + 1, *(1,) * (x.ndim - 2))
    padding = ((0, 0), (reach, reach), *((0, 0),) * (x.ndim - 2))
    return jax.lax.reduce_window(x, start, operation, span, (1,) * x.ndim, padding)


def _wiener(spectrum: _Spectrum) -> _Filter:
    """Returns the gains xi / (1 + xi) of a Wiener filter.

    The a-priori SNR xi of a window is mostly the SNR of the window before after filtering: where there is noise alone,
    it fluctuates much less than the window's own SNR, so that no tones remain ("musical noise"; Cappe 1994).
    """
    posterior = spectrum.power / spectrum.noise

    def step(before_BxF: Array, posterior_BxF: Array) -> tuple[Array, Array]:
        prior_BxF = _DECIDED * before_BxF + (1 - _DECIDED) * jnp.maximum(posterior_BxF - 1, 0)
        prior_BxF = jnp.maximum(prior_BxF, _LEAST_SNR)
        return jnp.square(prior_BxF / (1 + prior_BxF)) * posterior_BxF, prior_BxF

    start_BxF = jnp.maximum(posterior[:, 0] - 1, 0)
    _, prior_TxBxF = jax.lax.scan(step, start_BxF, jnp.swapaxes(posterior, 0, 1))
    prior = jnp.swapaxes(prior_TxBxF, 0, 1)
    return _Filter(prior / (1 + prior), prior, posterior)


def _subtraction(spectrum: _Spectrum, floor: float) -> Float[Array, "batch time frequencies"]:
    """Returns the gains of spectral subtraction: 4 times the noise at 0 dB, 1 time from 20 dB on, at most 4.75 times.

    What remains is at least the noise times the floor (Berouti et al. 1979, equations 3 to 5).
    """
    power, noise = spectrum.power, spectrum.noise
    decibels = 10 * jnp.log10(jnp.maximum(power.sum(-1, keepdims=True), 1e-6) / noise.sum(-1, keepdims=True))
    over = 4 - 3 / 20 * jnp.clip(decibels, -5, 20)
    rest = jnp.maximum(power - over * noise, floor**2 * noise)
    return jnp.sqrt(jnp.minimum(rest / jnp.maximum(power, 1e-6), 1))


def _is_speech(spectrum: _Spectrum, sample_rate: int) -> Bool[Array, "batch time"]:
    filtered = _wiener(spectrum)
    ratio = filtered.posterior_snr * filtered.gain - jnp.log1p(filtered.prior_snr)
    low, high = (math.ceil(hertz * _window(sample_rate) / sample_rate) for hertz in _SPEECH_BAND)
    mask = frame_mask(spectrum.frames, ratio.shape[1])
    is_loud = mask & (ratio[..., low:high].mean(-1) > _SPEECH)
    return mask & (_around(is_loud.astype(jnp.float32), 0.0, jax.lax.max, _HANGOVER) > 0)


def _gate(spectrum: _Spectrum, floor: float, sample_rate: int) -> Float[Array, "batch time 1"]:
    """Returns 1 for speech and the floor elsewhere, and what is between them at the edges."""
    mask = frame_mask(spectrum.frames, spectrum.power.shape[1])
    gain = jnp.where(_is_speech(spectrum, sample_rate), 1.0, floor)
    return _moving_mean(gain, mask, _FADE)[..., None]
