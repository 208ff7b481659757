"""Channels that speech comes through, drawn for each utterance: a room, a telephone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.filters import fir_filter
from jax_speechlm.frontend.rooms import draw_response, read_responses

_BAND = 300.0, 3400.0  # Hz, of a telephone (ITU-T G.712)
_BAND_TAPS = 0.02  # seconds of the band's filter
_MU = 255.0


def in_rooms(
    audio: Float[Array, "batch samples"],
    segments: Segments,
    keys: Key[Array, "batch utterances"],
    probability: float,
    reverberation: tuple[float, float],
    folder: str | None,
    sample_rate: int,
) -> Float[Array, "batch samples"]:
    """Puts utterances into rooms; their powers and the time of the direct sound stay.

    Args:
      audio: 0 at padding.
      probability: of an utterance.
      reverberation: range of simulated rooms, in seconds.
      folder: of recorded responses, which take the place of simulated ones.
    """

    def draw(key: Array) -> Array:
        applies, room = jax.random.split(key)
        if folder is None:
            response = draw_response(room, reverberation, sample_rate)
        else:
            known = jnp.asarray(read_responses(folder, sample_rate))
            response = known[jax.random.randint(room, (), 0, len(known))]
        alone = jnp.zeros_like(response).at[0].set(1)
        return jnp.where(jax.random.uniform(applies) < probability, response, alone)

    # The utterances of a row one after the other, as the images of a room take megabytes.
    responses_NxBxK = jax.lax.map(jax.vmap(draw), jnp.swapaxes(keys, 0, 1))
    filtered = _filtered(audio, segments, responses_NxBxK)
    before, after = (segments.sum(jnp.square(x)) for x in (audio, filtered))
    scale = jnp.sqrt(before / jnp.where(after > 0, after, 1))
    return filtered * segments.spread(scale, audio.shape[1])


def by_telephone(
    audio: Float[Array, "batch samples"], segments: Segments, applies: Bool[Array, "batch utterances"], sample_rate: int
) -> Float[Array, "batch samples"]:
    """Sends utterances through a telephone: 300 to 3400 Hz, and samples of 8 bits on the mu-law scale of G.711.

    Args:
      audio: on the int16 scale, 0 at padding.
      applies: which utterances.
    """
    taps, reach = _band(sample_rate)
    responses_NxBxK = jnp.broadcast_to(taps, (*segments.length.T.shape, len(taps)))
    # The filter is symmetric: it comes from the front by what it delays.
    longer = jnp.pad(audio, ((0, 0), (0, reach)))
    filtered = _filtered(longer, segments, responses_NxBxK, reach)[:, : audio.shape[1]]
    x = jnp.clip(filtered / 2.0**15, -1, 1)
    companded = jnp.sign(x) * jnp.log1p(_MU * jnp.abs(x)) / np.log1p(_MU)
    rounded = jnp.round(companded * 127) / 127
    coded = 2.0**15 * jnp.sign(rounded) * jnp.expm1(jnp.abs(rounded) * np.log1p(_MU)) / _MU
    return jnp.where(segments.spread(applies, audio.shape[1]), coded, audio)


def _filtered(
    audio: Float[Array, "batch samples"],
    segments: Segments,
    responses_NxBxK: Float[Array, "utterances batch taps"],
    delay: int = 0,
) -> Float[Array, "batch samples"]:
    """Returns each utterance filtered by its own response, `delay` samples earlier; nothing reaches the next one."""
    belongs_NxBxT = jnp.moveaxis(segments.belongs(audio.shape[1]), 2, 0)

    def add(total: Array, utterance: tuple[Array, Array]) -> tuple[Array, None]:
        belongs_BxT, response_BxK = utterance
        filtered = fir_filter(jnp.where(belongs_BxT, audio, 0), response_BxK)
        return total + jnp.where(belongs_BxT, jnp.roll(filtered, -delay, axis=1), 0), None

    return jax.lax.scan(add, jnp.zeros(audio.shape, jnp.float32), (belongs_NxBxT, responses_NxBxK))[0]


@functools.cache
def _band(sample_rate: int) -> tuple[np.ndarray, int]:
    """Returns a linear-phase filter of the telephone's band, float32 [taps], and its delay in samples."""
    import scipy.signal

    reach = round(_BAND_TAPS * sample_rate / 2)
    high = min(_BAND[1], 0.47 * sample_rate)
    taps = scipy.signal.firwin(2 * reach + 1, (_BAND[0], high), pass_zero=False, fs=sample_rate)
    return taps.astype(np.float32), reach
