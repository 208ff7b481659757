"""Changes of time within an utterance, of features: warps, and frames repeated or dropped. Lengths stay."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from jax_speechlm.core.segments import Lengths, Segments


def warp_time(
    features: Float[Array, "batch time features"],
    lengths: Lengths,
    keys: Key[Array, "*utterances"],
    share: float,
    jitter: float,
) -> Float[Array, "batch time features"]:
    """Moves frames within their utterances, of which the first and the last stay.

    Args:
      features: 0 at padding.
      lengths: feature vectors per row, or the utterances of packed rows.
      share: the warp of SpecAugment (Park et al. 2019): a point of the utterance moves by at most this share of the
        length, frames on both sides of it are interpolated linearly.
      jitter: probability that a frame is repeated, and that it is dropped.
    """
    num_frames, segments = features.shape[1], Segments.of(lengths)
    keys = keys.reshape(segments.length.shape)
    source = jax.vmap(jax.vmap(lambda key, length: _source(key, length, num_frames, share, jitter)))
    # Of every utterance, the frame that comes to each of its places; then of every frame of the row.
    at_BxNxT = source(keys, segments.length)
    position_BxT = segments.position(num_frames)
    belongs_BxTxN = segments.belongs(num_frames)
    own_BxNxT = jnp.take_along_axis(at_BxNxT, jnp.clip(position_BxT, 0, num_frames - 1)[:, None], axis=2)
    start_BxN = segments.start.astype(jnp.float32)
    at_BxT = jnp.sum(jnp.where(belongs_BxTxN, jnp.swapaxes(own_BxNxT, 1, 2) + start_BxN[:, None], 0), axis=2)
    low_BxT = jnp.floor(at_BxT).astype(jnp.int32)
    share_BxTx1 = (at_BxT - low_BxT)[..., None]
    before = jnp.take_along_axis(features, low_BxT[..., None], axis=1)
    after = jnp.take_along_axis(features, jnp.minimum(low_BxT + 1, num_frames - 1)[..., None], axis=1)
    # A weight of 0 must not carry a neighbour that is not finite.
    warped = jnp.where(share_BxTx1 > 0, (1 - share_BxTx1) * before + share_BxTx1 * after, before)
    return jnp.where(jnp.any(belongs_BxTxN, axis=2)[..., None], warped, 0)


def _source(
    key: PRNGKeyArray, length: Array, num_frames: int, share: float, jitter: float
) -> Float[Array, " num_frames"]:
    """Returns where the frames of one utterance come from, from 0 to its last frame, in ascending order."""
    warp_key, jitter_key = jax.random.split(key)
    last = jnp.maximum(length - 1, 0).astype(jnp.float32)
    place = jnp.minimum(jnp.arange(num_frames, dtype=jnp.float32), last)
    if share:
        draws = jax.random.uniform(warp_key, (2,))
        reach = share * last
        middle = reach + draws[0] * jnp.maximum(last - 2 * reach, 0)
        moved = jnp.clip(middle + (2 * draws[1] - 1) * reach, 1e-3 * last, 0.999 * last)
        early = place * middle / jnp.maximum(moved, 1e-6)
        late = last - (last - place) * (last - middle) / jnp.maximum(last - moved, 1e-6)
        place = jnp.clip(jnp.where(place <= moved, early, late), 0, last)
    if jitter:
        # Keys of the frames, not one draw for all, so that padding changes no draw.
        frame_keys = jax.vmap(lambda frame: jax.random.fold_in(jitter_key, frame))(jnp.arange(num_frames))
        draws = jax.vmap(jax.random.uniform)(frame_keys)
        steps = jnp.where(draws < jitter, 0, jnp.where(draws > 1 - jitter, 2, 1))
        index = jnp.cumsum(jnp.where(jnp.arange(num_frames) < last, steps, 0))
        index = jnp.concatenate([jnp.zeros(1, index.dtype), index[:-1]])
        # What repeated and dropped frames do not balance is spread over the utterance.
        total = index[jnp.minimum(jnp.maximum(length - 1, 0), num_frames - 1)]
        index = jnp.round(index * last / jnp.maximum(total, 1))
        place = jnp.interp(index, jnp.arange(num_frames, dtype=jnp.float32), place)
    return jnp.minimum(place, last)
