"""Levels of recordings: peak, RMS, and loudness by ITU-R BS.1770."""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int16

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.batch import frame_mask
from jax_speechlm.frontend.filters import Sections, sos_filter

Measure = Literal["peak", "rms", "loudness"]

_FULL_SCALE = 32_768.0
_MOST_PEAK = 10 ** (-1 / 20)  # of full scale; no gain brings a peak above it
_MOST_GAIN = 10 ** (30 / 20)  # more would turn noise into speech
_SMALLEST = 1e-10  # mean square that counts as silence
_ABSOLUTE_GATE, _RELATIVE_GATE, _OFFSET = -70.0, -10.0, -0.691  # LUFS, LU, LU


def normalise_level(
    audio: Int16[Array, "batch samples"] | Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    measure: Measure,
    target: float,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
) -> Float32[Array, "batch samples"]:
    """Multiplies every row by the gain that brings it to a level.

    A row gets less than that where its peak would exceed -1 dB of full scale or the gain 30 dB; silence stays as it is.

    Args:
      audio: samples, int16 or float32 on the same scale (-32768 to 32767).
      lengths: samples per row, which may be 0.
      measure: "peak" or "rms", in dB of full scale (of a constant at full scale), or "loudness", in LUFS.
      target: the level.

    Returns:
      float32 samples on the int16 scale; 0 at padding.
    """
    audio = jnp.where(frame_mask(lengths, audio.shape[1]), audio.astype(jnp.float32), 0)
    peak_B = jnp.max(jnp.abs(audio), axis=1, initial=0) / _FULL_SCALE
    level_B = level(audio, lengths, measure, sample_rate)
    wanted_B = 10 ** ((target - level_B) / 20)
    gain_B = jnp.minimum(wanted_B, jnp.minimum(_MOST_PEAK / jnp.maximum(peak_B, 1e-5), _MOST_GAIN))
    return audio * jnp.where(peak_B > 0, gain_B, 1)[:, None]


def level(
    audio: Int16[Array, "batch samples"] | Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    measure: Measure,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
) -> Float32[Array, " batch"]:
    """Returns the level of every row; arguments as of `normalise_level`. Silence has -100 dB, or -70 LUFS."""
    audio = jnp.where(frame_mask(lengths, audio.shape[1]), audio.astype(jnp.float32), 0) / _FULL_SCALE
    if measure == "loudness":
        return loudness(audio, lengths, sample_rate)
    squares = jnp.square(audio)
    if measure == "peak":
        return _decibels(jnp.max(squares, axis=1, initial=0))
    return _decibels(jnp.sum(squares, axis=1) / jnp.maximum(lengths, 1))


def loudness(
    audio: Float[Array, "batch samples"], lengths: Int[Array, " batch"], sample_rate: int = DEFAULT_SAMPLE_RATE
) -> Float32[Array, " batch"]:
    """Computes the integrated loudness of rows by ITU-R BS.1770-4.

    The mean square after the K-weighting filter, over blocks of 0.4 s every 0.1 s that are louder than -70 LUFS and
    than 10 LU below the mean of those. A row under 0.4 s is one block.

    Args:
      audio: one channel, in [-1, 1), 0 at padding.
      lengths: samples per row.
      sample_rate: in Hz; a multiple of 10, so that blocks are whole samples.

    Returns:
      LUFS, at least -70.
    """
    if sample_rate % 10:
        raise ValueError(f"loudness takes a sample rate that is a multiple of 10 Hz, not {sample_rate}")
    mask = frame_mask(lengths, audio.shape[1])
    squares = jnp.where(mask, jnp.square(sos_filter(audio, k_weighting(sample_rate))), 0)
    hop = sample_rate // 10
    num_hops = max(-(-audio.shape[1] // hop), 4)
    by_hop = jnp.pad(squares, ((0, 0), (0, num_hops * hop - audio.shape[1]))).reshape(-1, num_hops, hop).sum(-1)
    blocks = sum(by_hop[:, i : num_hops - 3 + i] for i in range(4)) / (4 * hop)
    blocks = blocks.at[:, 0].multiply(4 * hop / jnp.clip(lengths, 1, 4 * hop))
    is_whole = frame_mask(jnp.maximum(lengths // hop - 3, 1) * (lengths > 0), blocks.shape[1])

    def mean_of(chosen: Array) -> Array:
        return jnp.sum(blocks, axis=1, where=chosen) / jnp.maximum(jnp.sum(chosen, axis=1), 1)

    lufs = _OFFSET + _decibels(blocks)
    loud = is_whole & (lufs > _ABSOLUTE_GATE)
    relative = _OFFSET + _decibels(mean_of(loud)) + _RELATIVE_GATE
    return jnp.maximum(_OFFSET + _decibels(mean_of(loud & (lufs > relative[:, None]))), _ABSOLUTE_GATE)


def k_weighting(sample_rate: int) -> Sections:
    """Returns the standard's two filters: a shelf of 4 dB for the head, and a high-pass.

    The standard states coefficients at 48 kHz; these are the analogue filters that they come from (De Man 2018,
    "Evaluation of implementations of the EBU R128 loudness measurement").
    """
    gain, shelf_q, shelf_hertz = 3.99984385397, 0.7071752369554193, 1681.9744509555319
    pass_q, pass_hertz = 0.5003270373253953, 38.13547087613982
    k = math.tan(math.pi * shelf_hertz / sample_rate)
    high, band = 10 ** (gain / 20), 10 ** (gain / 20 * 0.499666774155)
    a0 = 1 + k / shelf_q + k * k
    shelf = (
        (high + band * k / shelf_q + k * k) / a0,
        2 * (k * k - high) / a0,
        (high - band * k / shelf_q + k * k) / a0,
        1.0,
        2 * (k * k - 1) / a0,
        (1 - k / shelf_q + k * k) / a0,
    )
    k = math.tan(math.pi * pass_hertz / sample_rate)
    a0 = 1 + k / pass_q + k * k
    return shelf, (1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / a0, (1 - k / pass_q + k * k) / a0)


def _decibels(mean_square: Array) -> Array:
    return 10 * jnp.log10(jnp.maximum(mean_square, _SMALLEST))
