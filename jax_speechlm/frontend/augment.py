"""Augmentation of waveforms and of log-mel features, drawn for each utterance from its own key.

It runs on device, inside the compiled step. Speed perturbation changes durations, which batches are planned by, so it
is part of the data pipeline instead.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float, Float32, Int, Int16, Key, PRNGKeyArray

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.frontend.channel import by_telephone, in_rooms
from jax_speechlm.nn.layers import split_keys

Keys = Key[Array, "*utterances"]
"""One key for each utterance: [batch], or in packed rows [batch, utterances]."""
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
      babble_probability: probability that a babble of the next utterances of the batch is added, all equally loud.
      babble_voices: number of these utterances.
      gain_db: greatest change of the level in dB, up or down.
      room_probability: probability of an utterance to be in a room.
      reverberation: range of the reverberation times of simulated rooms (0.25 s of their responses), in seconds.
      rooms: folder of recorded room impulse responses, in the place of simulated ones.
      telephone_probability: probability of the band of a telephone, and of the 8 bits of G.711's mu-law.
      vocal_tract: greatest change of the frequencies of a voice, as a share (VTLP; Jaitly and Hinton 2013): one of five
        warps of the mel filters, whose features are all computed.
      time_warp: greatest move of a point of the utterance by SpecAugment's time warp, as a share of its length.
      frame_jitter: probability of a feature vector to be repeated, and to be dropped.
      crop_seconds: longer utterances are cropped to a random segment of this length, for objectives without
        transcripts; not in packed rows, whose layout it would change.
    """

    time_masks: pydantic.NonNegativeInt = 0
    time_mask_ratio: Probability = 0.05
    freq_masks: pydantic.NonNegativeInt = 0
    freq_mask_bins: pydantic.NonNegativeInt = 27
    mix_probability: Probability = 0.0
    noise_probability: Probability = 0.0
    snr_db: tuple[float, float] = (5.0, 30.0)
    babble_probability: Probability = 0.0
    babble_voices: pydantic.PositiveInt = 4
    gain_db: pydantic.NonNegativeFloat = 0.0
    room_probability: Probability = 0.0
    reverberation: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat] = (0.1, 0.6)
    rooms: str | None = None
    telephone_probability: Probability = 0.0
    vocal_tract: pydantic.confloat(ge=0, le=0.3) = 0.0
    time_warp: pydantic.confloat(ge=0, le=0.4) = 0.0
    frame_jitter: pydantic.confloat(ge=0, lt=0.5) = 0.0
    crop_seconds: pydantic.PositiveFloat | None = None


SPEC_AUGMENT = Augment(time_masks=10, time_mask_ratio=0.05, freq_masks=2, freq_mask_bins=27)
"""SpecAugment as in the conformer's paper (Gulati et al. 2020, section 3.2), with spans in proportion to the utterance
(Park et al. 2020, "SpecAugment on Large Scale Datasets")."""


def augment_audio(
    audio: Int16[Array, "batch samples"] | Float32[Array, "batch samples"],
    lengths: Lengths,
    keys: Keys,
    config: Augment,
    noise: Int16[Array, "batch samples"] | None = None,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
) -> tuple[Float32[Array, "batch kept_samples"], Lengths]:
    """Crops utterances, puts them into rooms, adds noise, changes the level and sends them by telephone, in this order.

    All draws come from an utterance's own key. Only what is mixed in comes from elsewhere: the next row of the global
    batch, which depends on the plan's seed and step, not on the number of hosts.

    Args:
      lengths: samples per row, or the utterances of packed rows.
      noise: a segment of the noise set for each row; required if `noise_probability` is not 0.

    Returns:
      float32 samples on the int16 scale, not clipped, 0 at padding; and the lengths.

    Raises:
      ValueError: the config has a noise probability and the batch has no noise, or crops packed rows.
    """
    segments = Segments.of(lengths)
    crop, mix, background, gain = split_keys(keys.reshape(segments.length.shape), 4)
    audio = jnp.where(segments.mask(audio.shape[1]), audio.astype(jnp.float32), 0)
    if config.crop_seconds is not None:
        if isinstance(lengths, Segments) and lengths.num > 1:
            raise ValueError(
                "frontend.augment.crop_seconds would change the layout of packed rows: set it to None, or data.packed "
                "to False"
            )
        audio, segments = _crop(audio, segments, crop, round(config.crop_seconds * sample_rate))
    # Later additions draw from keys of their own, so that runs without them draw as they always did.
    room, babble, telephone = (_folded(keys.reshape(segments.length.shape), number) for number in (1, 2, 3))
    if config.room_probability:
        how = config.room_probability, config.reverberation, config.rooms
        audio = in_rooms(audio, segments, room, *how, sample_rate)
    if config.mix_probability:
        ends = jnp.max(segments.start + segments.length, axis=1)
        other = jnp.roll(audio, -1, axis=0), jnp.roll(ends, -1)
        audio = _add_noise(audio, segments, *other, mix, config.mix_probability, config.snr_db)
    if config.babble_probability:
        voices = _babble(audio, segments, config.babble_voices), jnp.full(len(audio), audio.shape[1])
        audio = _add_noise(audio, segments, *voices, babble, config.babble_probability, config.snr_db)
    if config.noise_probability:
        if noise is None:
            raise ValueError(
                "frontend.augment.noise_probability is not 0, but the batch has no noise: set data.noise_set to the "
                "name of a prepared set"
            )
        whole = jnp.full(len(audio), noise.shape[1])
        audio = _add_noise(audio, segments, noise, whole, background, config.noise_probability, config.snr_db)
    if config.gain_db:
        decibels = _uniform(gain, -config.gain_db, config.gain_db)
        audio = audio * segments.spread(10 ** (decibels / 20), audio.shape[1])
    if config.telephone_probability:
        audio = by_telephone(audio, segments, _uniform(telephone) < config.telephone_probability, sample_rate)
    segments = Segments(segments.start, segments.length.astype(jnp.int32))
    return audio, segments if isinstance(lengths, Segments) else segments.length[:, 0]


def spec_augment(
    features: Float[Array, "batch time features"], lengths: Lengths, keys: Keys, config: Augment, num_mel_bins: int
) -> Float[Array, "batch time features"]:
    """Sets random spans of time and bands of frequency to 0: SpecAugment without warping (Park et al. 2019).

    Args:
      features: normalised log-mel features, whose mean is 0; frames may be stacked.
      lengths: feature vectors per row, or the utterances of packed rows.
      num_mel_bins: mel bins of one frame. A band covers the same bins in all frames stacked in a vector.
    """
    _, num_frames, dim = features.shape
    segments = Segments.of(lengths)
    time, frequency = split_keys(keys.reshape(segments.length.shape), 2)
    longest = jnp.floor(segments.length * config.time_mask_ratio)
    start_BxNxM, width_BxNxM = _spans(time, config.time_masks, longest, segments.length)
    start_BxNxM = segments.start[..., None] + start_BxNxM
    in_span = in_spans(jnp.arange(num_frames), *(x.reshape(len(x), -1) for x in (start_BxNxM, width_BxNxM)))
    widest = jnp.full(segments.length.shape, min(config.freq_mask_bins, num_mel_bins))
    bands = _spans(frequency, config.freq_masks, widest, jnp.full(widest.shape, num_mel_bins))
    in_band_BxNxF = jnp.tile(in_spans(jnp.arange(num_mel_bins), *bands), dim // num_mel_bins)
    in_band = segments.spread(in_band_BxNxF.astype(features.dtype), num_frames) > 0
    return jnp.where(in_span[:, :, None] | in_band, 0, features)


def _spans(
    keys: Keys, num: int, longest: Array, size: Array
) -> tuple[Float[Array, "batch utterances num"], Float[Array, "batch utterances num"]]:
    """Draws start and width of `num` spans of 0 to `longest` positions within the first `size` positions."""
    draws = _per_utterance(lambda key: jax.random.uniform(key, (2, num)), keys)
    width = jnp.floor(draws[..., 0, :] * (longest[..., None] + 1))
    return jnp.floor(draws[..., 1, :] * (size[..., None] - width + 1)), width


def in_spans(
    position: Int[Array, " positions"], start: Float[Array, "*batch num"], width: Float[Array, "*batch num"]
) -> Bool[Array, "*batch positions"]:
    """Returns True at positions inside any of the spans."""
    after = position[:, None] - start[..., None, :]
    return jnp.any((after >= 0) & (after < width[..., None, :]), axis=-1)


def _per_utterance(draw: Callable[[PRNGKeyArray], Array], keys: Keys) -> Array:
    """Returns the draws of keys [batch, utterances], with these two dimensions first."""
    return jax.vmap(jax.vmap(draw))(keys)


def _uniform(keys: Keys, low: float = 0.0, high: float = 1.0) -> Float[Array, "batch utterances"]:
    return _per_utterance(lambda key: jax.random.uniform(key, (), minval=low, maxval=high), keys)


def _folded(keys: Keys, number: int) -> Keys:
    return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))(keys)


def _babble(audio: Float[Array, "batch samples"], segments: Segments, voices: int) -> Float[Array, "batch samples"]:
    """Returns the sum of the next rows of the batch, each looped and as loud as the others; silent rows add nothing."""
    num_samples = audio.shape[1]
    ends = jnp.max(segments.start + segments.length, axis=1)
    total = jnp.zeros(audio.shape)
    for number in range(1, voices + 1):
        other, end = jnp.roll(audio, -number, axis=0), jnp.roll(ends, -number)[:, None]
        looped = jnp.take_along_axis(other, jnp.arange(num_samples) % jnp.maximum(end, 1), axis=1)
        power = jnp.mean(jnp.square(looped), axis=1, keepdims=True)
        total += 1000 * looped * jax.lax.rsqrt(jnp.maximum(power, 1))
    return total


def _crop(audio: Array, segments: Segments, keys: Keys, samples: int) -> tuple[Array, Segments]:
    if samples >= audio.shape[1]:
        return audio, segments
    start = jnp.floor(_uniform(keys) * (jnp.maximum(segments.length - samples, 0) + 1)).astype(jnp.int32)
    cut = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, samples))
    return cut(audio, start[:, 0]), Segments(segments.start, jnp.minimum(segments.length, samples))


def _add_noise(
    audio: Float[Array, "batch samples"],
    segments: Segments,
    noise: Array,
    noise_length: Int[Array, " batch"],
    keys: Keys,
    probability: float,
    snr_db: tuple[float, float],
) -> Float[Array, "batch samples"]:
    """Adds a row's noise from a random offset on, looped, at a random ratio of mean powers over the utterance."""
    applies, offset, ratio = split_keys(keys, 3)
    num_samples, noise_length = audio.shape[1], noise_length[:, None]
    start = jnp.floor(_uniform(offset) * noise_length).astype(jnp.int32)
    index = segments.spread(start, num_samples) + segments.position(num_samples)
    noise = jnp.take_along_axis(noise, index % jnp.maximum(noise_length, 1), axis=1).astype(jnp.float32)
    noise = jnp.where(segments.mask(num_samples), noise, 0)
    signal_power, noise_power = (segments.sum(jnp.square(x)) for x in (audio, noise))
    target_power = signal_power / 10 ** (_uniform(ratio, *snr_db) / 10)
    scale = jnp.where(noise_power > 0, jnp.sqrt(target_power / jnp.maximum(noise_power, 1)), 0)
    scale = jnp.where((_uniform(applies) < probability) & (noise_length > 0), scale, 0)
    return audio + segments.spread(scale, num_samples) * noise
