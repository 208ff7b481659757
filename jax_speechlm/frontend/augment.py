"""Augmentation of waveforms and of log-mel features, drawn for each utterance from its own key.

It runs on device, inside the compiled step. Speed perturbation changes durations, which batches are planned by, so it
is part of the data pipeline instead.
"""

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float, Float32, Int, Int16, Int32, Key

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.nn.layers import split_keys

Keys = Key[Array, " batch"]
Probability = pydantic.confloat(ge=0, le=1)


class Augment(Config):
    """Settings of augmentation. `Augment()` is none.

    Attributes:
      time_masks: number of spans of feature vectors that are set to zero, the features' mean; they may overlap.
      time_mask_ratio: longest span as a share of the utterance; lengths are uniform from 0 to that.
      freq_masks: number of bands of mel bins that are set to zero; they may overlap.
      freq_mask_bins: widest band in mel bins; widths are uniform from 0 to that.
      mix_probability: probability that the next utterance of the batch is added as noise.
      noise_probability: probability that a segment of the noise set (`data.noise_set`) is added.
      snr_db: range of the signal-to-noise ratio in dB, for both kinds of noise.
      gain_db: greatest change of the level in dB, up or down.
      crop_seconds: longer utterances are cropped to a random segment of this length, for objectives without
        transcripts.
    """

    time_masks: pydantic.NonNegativeInt = 0
    time_mask_ratio: Probability = 0.05
    freq_masks: pydantic.NonNegativeInt = 0
    freq_mask_bins: pydantic.NonNegativeInt = 27
    mix_probability: Probability = 0.0
    noise_probability: Probability = 0.0
    snr_db: tuple[float, float] = (5.0, 30.0)
    gain_db: pydantic.NonNegativeFloat = 0.0
    crop_seconds: pydantic.PositiveFloat | None = None


SPEC_AUGMENT = Augment(time_masks=10, time_mask_ratio=0.05, freq_masks=2, freq_mask_bins=27)
"""SpecAugment as in the conformer's paper (Gulati et al. 2020, section 3.2), with spans in proportion to the utterance
(Park et al. 2020, "SpecAugment on Large Scale Datasets")."""


def augment_audio(
    audio: Int16[Array, "batch samples"],
    audio_length: Int[Array, " batch"],
    keys: Keys,
    config: Augment,
    noise: Int16[Array, "batch samples"] | None = None,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
) -> tuple[Float32[Array, "batch kept_samples"], Int32[Array, " batch"]]:
    """Crops utterances, adds noise and changes the level, in this order.

    All draws come from a row's own key. Only the utterance that is mixed in comes from another row: the next one of the
    global batch, which depends on the plan's seed and step, not on the number of hosts.

    Args:
      noise: a segment of the noise set for each row; required if `noise_probability` is not 0.

    Returns:
      float32 samples on the int16 scale, not clipped, 0 at padding; and samples per row.

    Raises:
      ValueError: the config has a noise probability and the batch has no noise.
    """
    crop, mix, background, gain = split_keys(keys, 4)
    audio = jnp.where(frame_mask(audio_length, audio.shape[1]), audio.astype(jnp.float32), 0)
    if config.crop_seconds is not None:
        audio, audio_length = _crop(audio, audio_length, crop, round(config.crop_seconds * sample_rate))
    if config.mix_probability:
        clean, length = audio, audio_length
        audio = _add_noise(
            audio, length, jnp.roll(clean, -1, axis=0), jnp.roll(length, -1), mix, config.mix_probability, config.snr_db
        )
    if config.noise_probability:
        if noise is None:
            raise ValueError(
                "frontend.augment.noise_probability is not 0, but the batch has no noise: set data.noise_set to the "
                "name of a prepared set"
            )
        length = jnp.full(len(audio), noise.shape[1])
        audio = _add_noise(audio, audio_length, noise, length, background, config.noise_probability, config.snr_db)
    if config.gain_db:
        decibels = _uniform(gain, -config.gain_db, config.gain_db)
        audio = audio * 10 ** (decibels[:, None] / 20)
    return audio, audio_length.astype(jnp.int32)


def spec_augment(
    features: Float[Array, "batch time features"],
    length: Int[Array, " batch"],
    keys: Keys,
    config: Augment,
    num_mel_bins: int,
) -> Float[Array, "batch time features"]:
    """Sets random spans of time and bands of frequency to 0: SpecAugment without warping (Park et al. 2019).

    Args:
      features: normalised log-mel features, whose mean is 0; frames may be stacked.
      num_mel_bins: mel bins of one frame. A band covers the same bins in all frames stacked in a vector.
    """
    _, num_frames, dim = features.shape
    time, frequency = split_keys(keys, 2)
    longest = jnp.floor(length * config.time_mask_ratio)
    in_span = _spans(time, config.time_masks, longest, length, num_frames)
    widest = jnp.full(len(features), min(config.freq_mask_bins, num_mel_bins))
    in_band = _spans(frequency, config.freq_masks, widest, jnp.full(len(features), num_mel_bins), num_mel_bins)
    in_band = jnp.tile(in_band, dim // num_mel_bins)
    return jnp.where(in_span[:, :, None] | in_band[:, None, :], 0, features)


def _spans(keys: Keys, num: int, longest: Array, size: Array, positions: int) -> Bool[Array, "batch positions"]:
    """Returns True inside any of `num` spans of 0 to `longest` positions within the first `size` positions."""
    draws = jax.vmap(lambda key: jax.random.uniform(key, (2, num, 1)))(keys)
    width = jnp.floor(draws[:, 0] * (longest[:, None, None] + 1))
    start = jnp.floor(draws[:, 1] * (size[:, None, None] - width + 1))
    position = jnp.arange(positions)
    return jnp.any((position >= start) & (position < start + width), axis=1)


def _uniform(keys: Keys, low: float = 0.0, high: float = 1.0) -> Float[Array, " batch"]:
    return jax.vmap(lambda key: jax.random.uniform(key, (), minval=low, maxval=high))(keys)


def _crop(audio: Array, length: Array, keys: Keys, samples: int) -> tuple[Array, Array]:
    if samples >= audio.shape[1]:
        return audio, length
    start = jnp.floor(_uniform(keys) * (jnp.maximum(length - samples, 0) + 1)).astype(jnp.int32)
    cut = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, samples))
    return cut(audio, start), jnp.minimum(length, samples)


def _add_noise(
    audio: Float[Array, "batch samples"],
    length: Int[Array, " batch"],
    noise: Array,
    noise_length: Int[Array, " batch"],
    keys: Keys,
    probability: float,
    snr_db: tuple[float, float],
) -> Float[Array, "batch samples"]:
    """Adds noise from a random offset on, looped, at a random ratio of mean powers over the utterance."""
    applies, offset, ratio = split_keys(keys, 3)
    mask = frame_mask(length, audio.shape[1])
    start = jnp.floor(_uniform(offset) * noise_length).astype(jnp.int32)
    index = (start[:, None] + jnp.arange(audio.shape[1])) % jnp.maximum(noise_length, 1)[:, None]
    noise = jnp.where(mask, jnp.take_along_axis(noise, index, axis=1).astype(jnp.float32), 0)
    signal_power, noise_power = (jnp.square(x).sum(1) for x in (audio, noise))
    target_power = signal_power / 10 ** (_uniform(ratio, *snr_db) / 10)
    scale = jnp.where(noise_power > 0, jnp.sqrt(target_power / jnp.maximum(noise_power, 1)), 0)
    scale = jnp.where((_uniform(applies) < probability) & (noise_length > 0), scale, 0)
    return audio + scale[:, None] * noise
