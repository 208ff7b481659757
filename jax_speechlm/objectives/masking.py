"""Masked prediction: span masks, and augmented and clean features of a batch."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, Shaped

from jax_speechlm.core.batch import Batch, by_utterance, example_keys
from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.augment import Augment, in_spans
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models.encoder_base import Encoder, frames_of
from jax_speechlm.models.encoders import EncoderConfig, draw_chunk, row_frames
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.objectives.base import ObjectiveConfig, check_keeps_time
from jax_speechlm.parallel.mesh import shard_batch_and_time

PROBE_STRIDE = 16
"""Accuracy on unmasked frames uses every 16th frame, which is cheap enough for every step."""


class Views(NamedTuple):
    """Two views of a batch, with the mask and keys of a masked prediction."""

    x_BxTxF: Float[Array, "batch time features"]  # augmented: the encoder's input at unmasked frames
    clean_BxTxF: Float[Array, "batch time features"]  # for the targets: cropped like `x`, otherwise not augmented
    vectors: Segments  # of the utterances, in feature vectors
    segments: Segments  # the same in frames of the encoder
    mask_BxT: Bool[Array, "batch time"]  # frames to hide; never padding
    keys_BxN: Key[Array, "batch utterances"]  # for the objective's own draws; fixed in evaluation
    dropout_keys: Key[Array, "batch utterances"] | None
    chunk: Chunk | None

    def weight(self, weight_BxN: Float[Array, "batch utterances"]) -> Float[Array, "batch time"]:
        """Returns the weight of each frame, 0 in padding."""
        return self.segments.spread(weight_BxN, self.mask_BxT.shape[1])

    def encode(
        self,
        encoder: Encoder,
        mask_D: Float[Array, " dim"],
        taps: tuple[int, ...] = (),
        targets: Float[Array, "batch time target_dim"] | None = None,
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """Encodes `x` with one vector in place of masked frames' embeddings; returns the encoder's output.

        Args:
          targets: the encoder's targets of `clean`, which need not be computed twice where that is `x`.
        """
        is_clean = targets is not None and self.x_BxTxF is self.clean_BxTxF
        x_BxTxD = encoder.embed_targets(targets) if is_clean else encoder.embed(self.x_BxTxF, self.vectors)
        x_BxTxD = jnp.where(self.mask_BxT[..., None], mask_D.astype(x_BxTxD.dtype), x_BxTxD)
        return encoder.encode(x_BxTxD, self.segments, keys=self.dropout_keys, chunk=self.chunk, taps=taps)


class MaskedPrediction(ObjectiveConfig):
    """Base of objectives with the settings `mask_ratio`, average share of masked frames, and `mask_span` in seconds."""

    def span(self, frontend: FrontEnd, subsampling: int = 1) -> int:
        """Returns the frames of a span, each of `subsampling` feature vectors."""
        return span_frames(self.mask_span, frontend, subsampling)

    def most_masked(self, num_frames: int, frontend: FrontEnd, utterances: int = 1, subsampling: int = 1) -> int:
        """Returns the maximum number of masked frames in a row of `num_frames` and so many utterances."""
        return most_masked(num_frames, self.span(frontend, subsampling), self.mask_ratio, utterances)

    def views(self, batch: Batch, key: PRNGKeyArray | None, frontend: FrontEnd, encoder: EncoderConfig) -> Views:
        """Draws the views and masks of a batch, as `draw_views`."""
        span = self.span(frontend, encoder.subsampling)
        return draw_views(batch, key, frontend, encoder, span, self.mask_ratio)


def draw_views(
    batch: Batch, key: PRNGKeyArray | None, frontend: FrontEnd, encoder: EncoderConfig, span: int, ratio: float
) -> Views:
    """Draws the views and masks of a batch. In evaluation (no key) an utterance's mask is always the same."""
    check_keeps_time(frontend, "targets, which are made of features without augmentation")
    batch = by_utterance(batch)
    if key is None:
        x_BxTxF, vectors = clean_BxTxF, _ = features(batch, frontend, None)
        mask_key, dropout_keys, chunk = jax.random.key(0), None, None
    else:
        augment_key, mask_key, dropout_key, chunk_key = jax.random.split(key, 4)
        x_BxTxF, vectors = features(batch, frontend, augment_key)
        crop_only = frontend.replace(augment=Augment(crop_seconds=frontend.augment.crop_seconds))
        # The same key draws the same crop.
        clean_BxTxF = x_BxTxF if frontend == crop_only else features(batch, crop_only, augment_key)[0]
        dropout_keys = example_keys(dropout_key, batch["example_id"])
        chunk = draw_chunk(encoder, chunk_key)
    span_keys, own_keys = (example_keys(part, batch["example_id"]) for part in jax.random.split(mask_key))
    segments = frames_of(encoder, vectors)
    mask_BxT = draw_mask(span_keys, segments, row_frames(encoder, x_BxTxF.shape[1]), span, ratio)
    return Views(x_BxTxF, clean_BxTxF, vectors, segments, mask_BxT, own_keys, dropout_keys, chunk)


def masked_places(mask_BxT: Bool[Array, "batch time"], most: int) -> Int[Array, "batch {most}"]:
    """Returns the indices of `most` frames per row, a fixed number: masked ones in order of time, then others."""
    return jnp.argsort(~mask_BxT, axis=1)[:, :most]


def probed_places(
    segments: Segments, num_frames: int
) -> tuple[Int[Array, "batch places"], Bool[Array, "batch places"]]:
    """Returns the indices of every `PROBE_STRIDE`-th frame of each utterance, and which of them are such frames."""
    most = min(num_frames, num_frames // PROBE_STRIDE + segments.num)
    is_probe_BxT = (segments.position(num_frames) % PROBE_STRIDE == 0) & segments.mask(num_frames)
    places_BxN = masked_places(is_probe_BxT, most)
    return places_BxN, jnp.take_along_axis(is_probe_BxT, places_BxN, axis=1)


def take_frames(
    x: Shaped[Array, "batch time *shape"], places_BxN: Int[Array, "batch places"]
) -> Shaped[Array, "batch places *shape"]:
    """Gathers the frames of every row at the given indices."""
    return shard_batch_and_time(
        jnp.take_along_axis(x, places_BxN.reshape(*places_BxN.shape, *(1,) * (x.ndim - 2)), axis=1)
    )


def span_frames(seconds: float, frontend: FrontEnd, subsampling: int = 1) -> int:
    """Returns the number of frames, each of `subsampling` feature vectors, closest to a duration; at least 1."""
    return max(1, round(seconds * frontend.mel.sample_rate / (frontend.mel.frame_samples * subsampling)))


def span_density(span: int, ratio: float) -> float:
    """Returns the number of spans per frame whose union covers `ratio` of the frames on average."""
    return -math.log1p(-ratio) / span


def most_masked(num_frames: int, span: int, ratio: float, utterances: int = 1) -> int:
    """Returns the maximum number of frames that `draw_mask` masks in a row of `num_frames` and so many utterances."""
    return min(num_frames, (math.floor(span_density(span, ratio) * num_frames) + utterances) * span)


def draw_mask(
    keys_BxN: Key[Array, "batch utterances"], segments: Segments, num_frames: int, span: int, ratio: float
) -> Bool[Array, "batch {num_frames}"]:
    """Masks spans of frames: about `ratio` of each utterance, and at least one span.

    The number of spans is rounded up or down at random; starts are independent, so spans may overlap. The number is
    bounded, so that the loss can gather the masked frames into a fixed shape (`most_masked`). In an utterance shorter
    than two spans the span is half the utterance, which leaves context; a single frame is never masked.

    An utterance's mask depends on its key and length only, not on padding or the rest of its row.

    Args:
      span: frames of a span.
      ratio: average share of masked frames.

    Returns:
      True at masked frames.
    """
    density = span_density(span, ratio)
    slots = jnp.arange(math.floor(density * num_frames) + 1)

    def draw(key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, " slots"]]:
        count_key, start_key = jax.random.split(key)
        # One key per slot: additional slots due to padding must not change the others.
        chance = jax.vmap(lambda slot: jax.random.uniform(jax.random.fold_in(start_key, slot)))(slots)
        return jax.random.uniform(count_key), chance

    more_BxN, chance_BxNxS = jax.vmap(jax.vmap(draw))(keys_BxN)
    width_BxN = jnp.minimum(span, segments.length // 2)
    count_BxN = jnp.maximum(1, jnp.floor(density * segments.length + more_BxN))
    start_BxNxS = jnp.floor(chance_BxNxS * (segments.length - width_BxN + 1)[..., None])
    start_BxNxS = start_BxNxS + segments.start[..., None]
    width_BxNxS = jnp.where(slots < count_BxN[..., None], width_BxN[..., None], 0).astype(start_BxNxS.dtype)
    spans = (x.reshape(len(x), -1) for x in (start_BxNxS, width_BxNxS))
    return in_spans(jnp.arange(num_frames), *spans)
