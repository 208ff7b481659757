"""Masked prediction: span masks, and augmented and clean features of a batch."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, Shaped

from jax_speechlm.core.batch import Batch, example_keys, frame_mask
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models.conformer import Conformer, ConformerConfig, draw_chunk
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.parallel.mesh import shard_batch_and_time

PROBE_STRIDE = 16
"""Accuracy on unmasked frames uses every 16th frame, which is cheap enough for every step."""


class Views(NamedTuple):
    """Two views of a batch, with the mask and keys of a masked prediction."""

    x_BxTxF: Float[Array, "batch time features"]  # augmented: the encoder's input at unmasked frames
    clean_BxTxF: Float[Array, "batch time features"]  # for the targets: cropped like `x`, otherwise not augmented
    length_B: Int[Array, " batch"]
    mask_BxT: Bool[Array, "batch time"]  # frames to hide; never padding
    keys_B: Key[Array, " batch"]  # for the objective's own draws; fixed in evaluation
    dropout_keys: Key[Array, " batch"] | None
    chunk: Chunk | None

    def weight(self, weight_B: Float[Array, " batch"]) -> Float[Array, "batch time"]:
        """Returns the weight of each frame, 0 in padding."""
        return frame_mask(self.length_B, self.mask_BxT.shape[1]) * weight_B[:, None]

    def encode(
        self, encoder: Conformer, mask_D: Float[Array, " dim"], taps: tuple[int, ...] = ()
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """Encodes `x` with one vector in place of masked frames' embeddings; returns the encoder's output."""
        x_BxTxD = encoder.embed(self.x_BxTxF)
        x_BxTxD = jnp.where(self.mask_BxT[..., None], mask_D.astype(x_BxTxD.dtype), x_BxTxD)
        return encoder.encode(x_BxTxD, self.length_B, keys=self.dropout_keys, chunk=self.chunk, taps=taps)


class MaskedPrediction(ObjectiveConfig):
    """Base of objectives with the settings `mask_ratio`, average share of masked frames, and `mask_span` in seconds."""

    def span(self, frontend: FrontEnd) -> int:
        """Returns the front end's frames of a span."""
        return span_frames(self.mask_span, frontend)

    def most_masked(self, num_frames: int, frontend: FrontEnd) -> int:
        """Returns the maximum number of masked frames in a row of `num_frames`."""
        return most_masked(num_frames, self.span(frontend), self.mask_ratio)

    def views(self, batch: Batch, key: PRNGKeyArray | None, frontend: FrontEnd, encoder: ConformerConfig) -> Views:
        """Draws the views and masks of a batch, as `draw_views`."""
        return draw_views(batch, key, frontend, encoder, self.span(frontend), self.mask_ratio)


def draw_views(
    batch: Batch, key: PRNGKeyArray | None, frontend: FrontEnd, encoder: ConformerConfig, span: int, ratio: float
) -> Views:
    """Draws the views and masks of a batch. In evaluation (no key) a row's mask is always the same."""
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
    """Returns the indices of `most` frames per row, a fixed number: masked ones in order of time, then others."""
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


def span_density(span: int, ratio: float) -> float:
    """Returns the number of spans per frame whose union covers `ratio` of the frames on average."""
    return -math.log1p(-ratio) / span


def most_masked(num_frames: int, span: int, ratio: float) -> int:
    """Returns the maximum number of frames that `draw_mask` masks in an utterance of `num_frames`."""
    return min(num_frames, (math.floor(span_density(span, ratio) * num_frames) + 1) * span)


def draw_mask(
    keys_B: Key[Array, " batch"], length_B: Int[Array, " batch"], num_frames: int, span: int, ratio: float
) -> Bool[Array, "batch {num_frames}"]:
    """Masks spans of frames: about `ratio` of each utterance, and at least one span.

    The number of spans is rounded up or down at random; starts are independent, so spans may overlap. The number is
    bounded, so that the loss can gather the masked frames into a fixed shape (`most_masked`). In an utterance shorter
    than two spans the span is half the utterance, which leaves context; a single frame is never masked.

    A row's mask depends on its key and length only, not on padding.

    Args:
      span: frames of a span.
      ratio: average share of masked frames.

    Returns:
      True at masked frames.
    """
    density = span_density(span, ratio)

    def draw(key: PRNGKeyArray, length: Int[Array, ""]) -> Bool[Array, " time"]:
        count_key, start_key = jax.random.split(key)
        width = jnp.minimum(span, length // 2)
        count = jnp.maximum(1, jnp.floor(density * length + jax.random.uniform(count_key)))
        slots = jnp.arange(math.floor(density * num_frames) + 1)
        # One key per slot: additional slots due to padding must not change the others.
        chance = jax.vmap(lambda slot: jax.random.uniform(jax.random.fold_in(start_key, slot)))(slots)
        offset = jnp.arange(num_frames) - jnp.floor(chance * (length - width + 1))[:, None]
        return jnp.any((slots < count)[:, None] & (offset >= 0) & (offset < width), axis=0)

    return jax.vmap(draw)(keys_B, length_B)
