"""Masked prediction: span masks, and augmented and clean features of a batch."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, Shaped

from jax_speechlm.core.batch import Batch, example_keys
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models.conformer import ConformerConfig, draw_chunk
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.parallel.mesh import shard_batch_and_time

PROBE_STRIDE = 16
"""Accuracy on unmasked frames uses every 16th frame, which is cheap enough for every step."""


class Views(NamedTuple):
    """Two views of a batch, with the mask and keys of a masked prediction.

    Attributes:
      x_BxTxF: augmented features, the encoder's input at unmasked frames.
      clean_BxTxF: features for the targets: cropped like `x`, otherwise not augmented.
      length_B: frames per row.
      mask_BxT: frames to hide; never padding.
      keys_B: one per row, for the objective's own draws; fixed in evaluation.
      dropout_keys: for the encoder; None in evaluation.
      chunk: for the encoder; None for full attention.
    """

    x_BxTxF: Float[Array, "batch time features"]
    clean_BxTxF: Float[Array, "batch time features"]
    length_B: Int[Array, " batch"]
    mask_BxT: Bool[Array, "batch time"]
    keys_B: Key[Array, " batch"]
    dropout_keys: Key[Array, " batch"] | None
    chunk: Chunk | None


def draw_views(
    batch: Batch, key: PRNGKeyArray | None, frontend: FrontEnd, encoder: ConformerConfig, span: int, ratio: float
) -> Views:
    """Draws the views and masks of a batch.

    Args:
      key: the step's; None for evaluation, in which a row's mask is always the same.
      span, ratio: as for `draw_mask`.
    """
    if key is None:
        x_BxTxF, length_B = clean_BxTxF, _ = features(batch, frontend, None)
        mask_key, dropout_keys, chunk = jax.random.key(0), None, None
    else:
        augment_key, mask_key, dropout_key, chunk_key = jax.random.split(key, 4)
        x_BxTxF, length_B = features(batch, frontend, augment_key)
        crop_only = frontend.replace(augment=Augment(crop_seconds=frontend.augment.crop_seconds))
        clean_BxTxF, _ = features(batch, crop_only, augment_key)  # the same key draws the same crop
        dropout_keys = example_keys(dropout_key, batch["example_id"])
        chunk = draw_chunk(encoder, chunk_key)
    span_keys, own_keys = (example_keys(part, batch["example_id"]) for part in jax.random.split(mask_key))
    mask_BxT = draw_mask(span_keys, length_B, x_BxTxF.shape[1], span, ratio)
    return Views(x_BxTxF, clean_BxTxF, length_B, mask_BxT, own_keys, dropout_keys, chunk)


def masked_places(mask_BxT: Bool[Array, "batch time"], most: int) -> Int[Array, "batch {most}"]:
    """Returns the indices of `most` frames per row: the masked ones in order of time, then others.

    The fixed shape does not depend on the mask.
    """
    return jnp.argsort(~mask_BxT, axis=1)[:, :most]


def take_frames(
    x: Shaped[Array, "batch time *shape"], places_BxN: Int[Array, "batch places"]
) -> Shaped[Array, "batch places *shape"]:
    """Gathers the frames of every row at the given indices."""
    return shard_batch_and_time(
        jnp.take_along_axis(x, places_BxN.reshape(*places_BxN.shape, *(1,) * (x.ndim - 2)), axis=1)
    )


def span_frames(seconds: float, frontend: FrontEnd) -> int:
    """Returns the number of front-end frames closest to a duration in seconds; at least 1."""
    return max(1, round(seconds * frontend.mel.sample_rate / frontend.mel.frame_samples))


def most_spans(num_frames: int, span: int, ratio: float) -> int:
    """Returns the maximum number of spans that `draw_mask` draws for an utterance of `num_frames`."""
    return math.floor(_span_density(span, ratio) * num_frames) + 1


def most_masked(num_frames: int, span: int, ratio: float) -> int:
    """Returns the maximum number of frames that `draw_mask` masks in an utterance of `num_frames`."""
    return min(num_frames, most_spans(num_frames, span, ratio) * span)


def _span_density(span: int, ratio: float) -> float:
    """Returns the number of spans per frame whose union covers `ratio` of the frames on average."""
    return -math.log1p(-ratio) / span


def draw_mask(
    keys_B: Key[Array, " batch"], length_B: Int[Array, " batch"], num_frames: int, span: int, ratio: float
) -> Bool[Array, "batch {num_frames}"]:
    """Masks spans of frames: about `ratio` of each utterance, and at least one span.

    The number of spans is rounded up or down at random; starts are independent, so spans may overlap. The number is
    bounded, so that the loss can gather the masked frames into a fixed shape (`most_masked`). In an utterance shorter
    than two spans the span is half the utterance, which leaves context; a single frame is never masked.

    Args:
      keys_B: one per row; a row's mask depends on its key and length only, not on padding.
      length_B: frames per row.
      span: frames of a span.
      ratio: average share of masked frames.

    Returns:
      True at masked frames.
    """

    def draw(key: PRNGKeyArray, length: Int[Array, ""]) -> Bool[Array, " time"]:
        count_key, start_key = jax.random.split(key)
        width = jnp.minimum(span, length // 2)
        count = jnp.maximum(1, jnp.floor(_span_density(span, ratio) * length + jax.random.uniform(count_key)))
        slots = jnp.arange(most_spans(num_frames, span, ratio))
        # One key per slot: additional slots due to padding must not change the others.
        chance = jax.vmap(lambda slot: jax.random.uniform(jax.random.fold_in(start_key, slot)))(slots)
        offset = jnp.arange(num_frames) - jnp.floor(chance * (length - width + 1))[:, None]
        return jnp.any((slots < count)[:, None] & (offset >= 0) & (offset < width), axis=0)

    return jax.vmap(draw)(keys_B, length_B)
