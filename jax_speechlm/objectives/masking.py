"""What masked prediction is given of a batch: the frames it hides, what it shows, and what its targets come from."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, Shaped

from data_pipelines.core.audio_format import SAMPLE_RATE
from jax_speechlm.core.batch import Batch, example_keys
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models.conformer import ConformerConfig, draw_chunk
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.parallel.mesh import shard_batch_and_time

PROBE_STRIDE = 16
"""Accuracy on unmasked frames is measured on every 16th: often enough for a gauge, cheap enough for every step."""


class Views(NamedTuple):
    """Two views of a batch, and what else a masked prediction draws for it.

    Attributes:
      x_BxTxF: augmented features, which the encoder is shown where they are not masked.
      clean_BxTxF: the features that targets are made from: cropped as `x` is, and otherwise as they were.
      length_B: frames of each row.
      mask_BxT: the frames to hide, none of them padding.
      keys_B: one a row, for whatever the objective draws itself; there in evaluation too, always the same ones.
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
    """The views of a batch under the step's key, or for evaluation: then a row's mask is the same every time.

    Args:
      span, ratio: as `draw_mask` takes them.
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
    """`most` frames of each row: the masked ones in order of time, then others. A shape that no mask changes."""
    return jnp.argsort(~mask_BxT, axis=1)[:, :most]


def take_frames(
    x: Shaped[Array, "batch time *shape"], places_BxN: Int[Array, "batch places"]
) -> Shaped[Array, "batch places *shape"]:
    """The frames of each row at its places."""
    return shard_batch_and_time(
        jnp.take_along_axis(x, places_BxN.reshape(*places_BxN.shape, *(1,) * (x.ndim - 2)), axis=1)
    )


def span_frames(seconds: float, frontend: FrontEnd) -> int:
    """The whole frames of a front end nearest to so many seconds; at least one."""
    return max(1, round(seconds * SAMPLE_RATE / frontend.mel.frame_samples))


def most_spans(num_frames: int, span: int, ratio: float) -> int:
    """The most spans that `draw_mask` draws for an utterance of `num_frames`."""
    return math.floor(_span_density(span, ratio) * num_frames) + 1


def most_masked(num_frames: int, span: int, ratio: float) -> int:
    """The most frames that `draw_mask` masks in an utterance of `num_frames`."""
    return min(num_frames, most_spans(num_frames, span, ratio) * span)


def _span_density(span: int, ratio: float) -> float:
    """Spans a frame for which the spans, which may overlap, cover `ratio` of the frames on average."""
    return -math.log1p(-ratio) / span


def draw_mask(
    keys_B: Key[Array, " batch"], length_B: Int[Array, " batch"], num_frames: int, span: int, ratio: float
) -> Bool[Array, "batch {num_frames}"]:
    """Masks whole spans of frames: about `ratio` of each utterance, and at least one span.

    The number of spans is rounded up or down at random, their starts are independent. So many spans at most fit into
    `num_frames` that the loss can gather the masked frames into a fixed shape (`most_masked`). In an utterance shorter
    than two spans a span is half the utterance, so that something stays to predict from; one of a single frame has no
    masked frame. What a row draws depends on its key and length only.
    """

    def draw(key: PRNGKeyArray, length: Int[Array, ""]) -> Bool[Array, " time"]:
        count_key, start_key = jax.random.split(key)
        width = jnp.minimum(span, length // 2)
        count = jnp.maximum(1, jnp.floor(_span_density(span, ratio) * length + jax.random.uniform(count_key)))
        slots = jnp.arange(most_spans(num_frames, span, ratio))
        # One key a slot, not one draw for all: the slots that padding adds must not change the others.
        chance = jax.vmap(lambda slot: jax.random.uniform(jax.random.fold_in(start_key, slot)))(slots)
        offset = jnp.arange(num_frames) - jnp.floor(chance * (length - width + 1))[:, None]
        return jnp.any((slots < count)[:, None] & (offset >= 0) & (offset < width), axis=0)

    return jax.vmap(draw)(keys_B, length_B)
