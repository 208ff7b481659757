"""The contrastive task of wav2vec 2.0 and w2v-BERT: identifying a masked frame's quantized target.

A frame's target is its embedding after the encoder's input projection, or before it where convolutions over samples
make it (`Wav2Vec2Encoder`), quantized by a codebook trained with the model.
The encoder's output at a masked frame has to be closer (cosine similarity) to the frame's target than to targets of
other masked frames of the same utterance. A diversity loss keeps all codes in use.

With a conformer, the input projection of log-mel frames replaces the convolutions over samples of wav2vec 2.0.

Reference: Baevski et al. 2020, "wav2vec 2.0: a framework for self-supervised learning of speech representations".
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray
from pydantic import Field

from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.encoders import EncoderConfig, make_encoder, target_dim
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear, fold_in, split_keys, spread_keys
from jax_speechlm.nn.vector_quantizer import GumbelQuantizer, Quantized
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics
from jax_speechlm.objectives.masking import (
    PROBE_STRIDE,
    MaskedPrediction,
    Views,
    masked_places,
    probed_places,
    take_frames,
)

_Temperature = Annotated[float, Field(ge=1e-4, le=1e4)]
"""Bounded so that logits divided by it stay within float32."""


class ContrastiveConfig(MaskedPrediction):
    """Settings of the contrastive task.

    Attributes:
      groups: codebooks per target, each providing a part of its vector.
      codes: entries of each codebook.
      code_dim: dimension of the targets' vectors, and in which contexts and targets are compared.
      negatives: targets of other masked frames, drawn with replacement for each masked frame.
      temperature: divides the cosine similarities.
      gumbel_temperature: first and lowest temperature of the Gumbel softmax.
      gumbel_decay: its factor per step. The default suits hundreds of thousands of steps.
      diversity_weight: weight of the diversity loss, which is 0 if all codes are equally frequent and nearly 1 if a
        single one is used.
      mask_ratio: average share of masked frames. The paper's 6.5 % of frames starting a span of 10 is 0.49.
      mask_span: length of a span in seconds.
    """

    groups: Annotated[int, Field(ge=1, le=16)] = 2
    codes: Annotated[int, Field(ge=2)] = 320
    code_dim: Annotated[int, Field(ge=1)] = 256
    negatives: Annotated[int, Field(ge=1)] = 100
    temperature: _Temperature = 0.1
    gumbel_temperature: tuple[_Temperature, _Temperature] = (2.0, 0.5)
    gumbel_decay: Annotated[float, Field(gt=0, le=1)] = 0.999995
    diversity_weight: Annotated[float, Field(ge=0)] = 0.1
    mask_ratio: Annotated[float, Field(gt=0, lt=0.9)] = 0.49
    mask_span: Annotated[float, Field(gt=0)] = 0.2

    @pydantic.model_validator(mode="after")
    def _groups_divide_code_dim(self):
        if self.code_dim % self.groups:
            raise ValueError(f"code_dim ({self.code_dim}) must be a multiple of groups ({self.groups})")
        return self

    @property
    def couples_rows(self) -> bool:
        return self.diversity_weight > 0  # diversity is a property of the whole batch

    def temperature_at(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns the Gumbel softmax's temperature after `step` steps."""
        first, lowest = self.gumbel_temperature
        return jnp.maximum(first * self.gumbel_decay ** step.astype(jnp.float32), lowest)

    def encode(
        self,
        model: "ContrastiveModel",
        batch: Batch,
        key: PRNGKeyArray | None,
        frontend: FrontEnd,
        taps: tuple[int, ...] = (),
    ) -> "Encoded":
        """Encodes a batch with masked frames; `taps` are layers whose output is needed in addition to the last."""
        views = self.views(batch, key, frontend, model.encoder.config)
        mask_BxT, inside_BxT = views.mask_BxT, views.weight(by_utterance(batch)["weight"])
        target_BxTxD = model.encoder.targets(views.clean_BxTxF, views.vectors)
        hidden, tapped = views.encode(model.encoder, model.contrast.mask[...], taps, target_BxTxD)
        subsampling = model.encoder.config.subsampling
        most = self.most_masked(mask_BxT.shape[1], frontend, views.segments.num, subsampling)
        places_BxM = masked_places(mask_BxT, most)
        probes_BxP, is_probe_BxP = probed_places(views.segments, mask_BxT.shape[1])
        return Encoded(
            views,
            {**tapped, model.encoder.config.num_layers: hidden},
            target_BxTxD,
            Frames(places_BxM, take_frames(inside_BxT * mask_BxT, places_BxM)),
            Frames(probes_BxP, take_frames(inside_BxT * ~mask_BxT, probes_BxP) * is_probe_BxP),
            inside_BxT,
        )

    def contrast_flops(self, model: EncoderConfig, num_vectors: int, frontend: FrontEnd) -> float:
        """Returns the task's FLOPs for a row of `num_vectors` feature vectors, without the encoder."""
        num_frames = model.num_frames(num_vectors)
        scored = self.most_masked(num_frames, frontend, subsampling=model.subsampling)
        probed = -(-num_frames // PROBE_STRIDE)
        frame = (target_dim(model) + self.code_dim // self.groups) * self.groups * self.codes  # choice and vector
        frame += self.code_dim * (self.code_dim + model.dim + scored)  # the two projections and the similarities
        return 2.0 * (scored + probed) * frame


class Contrast(nnx.Module):
    """Modules that the task adds to an encoder: `mask`, the embedding that replaces masked frames; the quantizer; maps
    of contexts and of targets into the space in which they are compared. Dropped for finetuning.
    """

    def __init__(self, config: ContrastiveConfig, model: EncoderConfig, *, rngs: nnx.Rngs):
        dim = model.dim
        self.mask = parameter(rngs.params(), (dim,), ("embed",), jax.nn.initializers.normal(1.0), decays=False)
        self.quantizer = GumbelQuantizer(target_dim(model), config.groups, config.codes, config.code_dim, rngs=rngs)
        self.context = Linear((dim,), (config.code_dim,), ("embed", None), rngs=rngs)
        self.target = Linear((config.code_dim,), (config.code_dim,), (None, None), rngs=rngs)


class ContrastiveModel(nnx.Module):
    """An encoder with the contrastive modules, which are dropped after pretraining."""

    def __init__(self, model: EncoderConfig, config: ContrastiveConfig, *, rngs: nnx.Rngs):
        self.encoder = make_encoder(model, rngs=rngs)
        self.contrast = Contrast(config, model, rngs=rngs)


class Frames(NamedTuple):
    """A subset of a batch's frames: their indices in the rows, and their weights."""

    places: Int[Array, "batch places"]
    weight: Float[Array, "batch places"]


class Encoded(NamedTuple):
    """A batch encoded with masked frames, and the inputs of the losses."""

    views: Views
    hidden: dict[int, Float[Array, "batch time dim"]]  # by layer number: the last layer and the requested lower ones
    target_BxTxD: Float[Array, "batch time target_dim"]  # embedded frames without masking
    masked: Frames  # padded to their maximum number per row
    probed: Frames  # every `PROBE_STRIDE`-th frame, with weight 0 if masked
    inside_BxT: Float[Array, "batch time"]  # weight per frame, 0 in padding


def draw_negatives(
    keys_BxM: Key[Array, "batch rows"],
    first_BxM: Int[Array, "batch rows"],
    num_BxM: Int[Array, "batch rows"],
    rank_BxM: Int[Array, "batch rows"] | None,
    pool: int,
    negatives: int,
) -> Float[Array, "batch rows {pool}"]:
    """Draws negatives for each frame among the masked frames of its utterance, which are adjacent in the pool.

    Args:
      keys_BxM: one per frame; a frame's draws depend on it and on `num_BxM` only, not on padding.
      first_BxM: index in the pool of the first masked frame of the frame's utterance.
      num_BxM: masked frames of the utterance. Each frame draws `negatives` of them, or none if no candidate exists.
      rank_BxM: which of them the frame itself is, and which is then excluded; None if it is none of them.

    Returns:
      How often each frame of the pool was drawn.
    """

    def draw(key, first, num, rank):
        limit = num - (rank is not None)
        drawn = jnp.floor(jax.random.uniform(key, (negatives,)) * limit).astype(jnp.int32)
        if rank is not None:
            drawn = drawn + (drawn >= rank)
        return jnp.zeros(pool).at[first + drawn].add(limit > 0)

    per_frame = keys_BxM, first_BxM, num_BxM, *(() if rank_BxM is None else (rank_BxM,))
    one = draw if rank_BxM is not None else lambda key, first, num: draw(key, first, num, None)
    return jax.vmap(jax.vmap(one))(*per_frame)


def contrastive_loss(
    context_BxMxP: Float[Array, "batch rows dim"],
    positive: tuple[Float[Array, "batch rows dim"], Int[Array, "batch rows groups"]],
    pool: tuple[Float[Array, "batch pool dim"], Int[Array, "batch pool groups"]],
    count_BxMxN: Float[Array, "batch rows pool"],
    temperature: float,
) -> tuple[Float[Array, "batch rows"], Bool[Array, "batch rows"]]:
    """Computes -log softmax of a frame's own target among it and its negatives. Equation 3 of the paper.

    All similarities within a row are a single matrix product: negatives are counts, so that no target is copied.

    Args:
      context_BxMxP: the encoder's projected output at each frame.
      positive: (target, codes) per frame.
      pool: (target, codes) of the frames from which negatives are drawn.
      count_BxMxN: how often each is drawn. Negatives with the frame's own codes are ignored, as they equal its target.

    Returns:
      The loss in nats, 0 without negatives, and whether the own target was closer than all negatives (at least one).
    """

    def unit(x):
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-16))

    context = unit(context_BxMxP)
    own_BxM = jnp.sum(context * unit(positive[0]), axis=-1) / temperature
    other_BxMxN = jnp.einsum("bmp,bnp->bmn", context, unit(pool[0])) / temperature
    same = jnp.all(positive[1][:, :, None] == pool[1][:, None], axis=-1)
    count_BxMxN = jnp.where(same, 0, count_BxMxN)
    counts = jnp.concatenate([jnp.ones_like(own_BxM)[..., None], count_BxMxN], axis=-1)
    total = jax.nn.logsumexp(jnp.concatenate([own_BxM[..., None], other_BxMxN], axis=-1), b=counts, axis=-1)
    nearest = jnp.max(other_BxMxN, axis=-1, initial=-jnp.inf, where=count_BxMxN > 0)
    return total - own_BxM, (own_BxM > nearest) & jnp.any(count_BxMxN > 0, axis=-1)


def diversity_loss(
    probs_BxNxGxC: Float[Array, "batch places groups codes"], weight_BxN: Float[Array, "batch places"]
) -> Float[Array, ""]:
    """Computes the diversity loss 1 - mean perplexity / codes, the effective share of unused codes.

    Uses the mean softmax over all frames of the batch, so it is not a sum over rows. The paper's equation 4 has the
    entropy; its code and later implementations use the perplexity, as here.
    """
    total = jnp.maximum(jnp.sum(weight_BxN), 1e-9)
    share_GxC = jnp.einsum("bngc,bn->gc", probs_BxNxGxC, weight_BxN) / total
    # A probability that underflows to 0 would have a NaN gradient.
    return 1 - jnp.mean(gauges.perplexity(jnp.maximum(share_GxC, 1e-9))) / share_GxC.shape[-1]


def contrast(
    model: Contrast,
    config: ContrastiveConfig,
    encoded: Encoded,
    hidden_BxTxD: Float[Array, "batch time dim"],
    batch: Batch,
) -> tuple[dict[str, Float[Array, ""]], Quantized, Quantized]:
    """Computes the task's metrics as weighted sums.

    Args:
      hidden_BxTxD: the hidden states from which targets are identified.
      batch: `step` determines the Gumbel softmax's temperature; unused in evaluation, which has no noise.

    Returns:
      Sums, and the targets of masked and of probed frames. Sums over masked frames: `contrastive` and `diversity`
      (losses), `masked_accuracy`, `code_entropy` and `code_perplexity` (means over groups), `code_entropy_ratio`
      (lowest group's entropy relative to the maximum) and `codes_used_0`, ... (share per group). Over probed frames:
      `unmasked_accuracy`.
    """
    views, masked, probed = encoded.views, encoded.masked, encoded.probed
    segments, num_frames = views.segments, views.mask_BxT.shape[1]
    noise_keys, masked_keys, probed_keys = split_keys(views.keys_BxN, 3)
    position_BxT = segments.position(num_frames)

    def targets_of(frames):
        return take_frames(encoded.target_BxTxD, frames.places)

    def keys_of(keys_BxN: Array, frames: Frames, number_BxT: Array) -> Key[Array, "batch places"]:
        """Returns keys of frames, derived from the key of their utterance and their number in it."""
        keys_BxT = fold_in(spread_keys(keys_BxN, segments, num_frames), number_BxT)
        return jax.vmap(lambda keys, places: keys[places])(keys_BxT, frames.places)

    if views.dropout_keys is None:  # evaluation
        pool = model.quantizer(targets_of(masked))
    else:
        keys_BxM = keys_of(noise_keys, masked, position_BxT)
        pool = model.quantizer(targets_of(masked), keys_BxM, config.temperature_at(batch["step"]))
    probe = model.quantizer(targets_of(probed))

    def compare(frames: Frames, own: Quantized, count_BxMxN: Array) -> tuple[Array, Array]:
        context = model.context(take_frames(hidden_BxTxD, frames.places).astype(jnp.float32))
        targets = [(model.target(quantized.vectors), quantized.codes) for quantized in (own, pool)]
        return contrastive_loss(context, *targets, count_BxMxN, config.temperature)

    # An utterance's masked frames are adjacent in the pool, which is in the order of time.
    num_BxN = segments.sum(views.mask_BxT.astype(jnp.float32)).astype(jnp.int32)
    first_BxT, num_BxT = (segments.spread(x, num_frames) for x in (jnp.cumsum(num_BxN, axis=1) - num_BxN, num_BxN))
    rank_BxT = jnp.maximum(jnp.cumsum(views.mask_BxT, axis=1) - 1 - first_BxT, 0)

    def draw(keys_BxN: Array, frames: Frames, number_BxT: Array, *, own: bool) -> Array:
        first, num, rank = (jnp.take_along_axis(x, frames.places, axis=1) for x in (first_BxT, num_BxT, rank_BxT))
        keys_BxM = keys_of(keys_BxN, frames, number_BxT)
        return draw_negatives(keys_BxM, first, num, rank if own else None, masked.places.shape[1], config.negatives)

    nll_BxN, right_BxN = compare(masked, pool, draw(masked_keys, masked, rank_BxT, own=True))
    _, probed_right = compare(probed, probe, draw(probed_keys, probed, position_BxT // PROBE_STRIDE, own=False))

    total = jnp.sum(masked.weight)
    shares = [gauges.code_shares(pool.codes[..., g], masked.weight, config.codes) for g in range(config.groups)]
    entropy = gauges.entropy(jnp.stack(shares))
    sums = {
        "contrastive": jnp.sum(masked.weight * nll_BxN),
        "diversity": total * diversity_loss(pool.probs, masked.weight),
        "masked_accuracy": jnp.sum(masked.weight * right_BxN),
        "unmasked_accuracy": jnp.sum(probed.weight * probed_right),
        "code_entropy": total * jnp.mean(entropy),
        "code_entropy_ratio": total * jnp.min(entropy) / gauges.most_entropy(total, config.codes),
        "code_perplexity": total * jnp.mean(jnp.exp(entropy)),
    }
    sums |= {f"codes_used_{g}": total * gauges.used(share) for g, share in enumerate(shares)}
    return sums, pool, probe


def averaged(
    sums: dict[str, Float[Array, ""]], encoded: Encoded, hidden_BxTxD: Float[Array, "batch time dim"]
) -> Metrics:
    """Returns metrics from sums of `contrast` and of an objective, with gauges of the encoder's output."""
    masked, probed = jnp.sum(encoded.masked.weight), jnp.sum(encoded.probed.weight)
    sums |= {name: masked * value for name, value in gauges.representation(hidden_BxTxD, encoded.inside_BxT).items()}
    return {name: (total, probed if name == "unmasked_accuracy" else masked) for name, total in sums.items()}


def check_code_usage(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if the learnt codes have collapsed to a few, which is normal before the warm-up ends."""
    ratio = metrics["code_entropy_ratio"]
    if after_warmup and ratio < gauges.LOW_ENTROPY:
        return (
            f"the quantizer's codes have collapsed: a group's entropy is {ratio:.0%} of what the batches could show: "
            "targets hardly differ and the contrastive loss says nothing. Start again with a higher "
            "objective.diversity_weight, or a lower optimizer.schedule.peak"
        )
    return None
