"""The contrastive task that wav2vec 2.0 and w2v-BERT share: to tell a masked frame's quantized target from others.

A frame's target is its own input after the encoder's input projection, quantized by a codebook that learns with the
model. The context that the encoder gives behind the mask has to be nearer to it, by cosine similarity, than to the
targets of other masked frames of the same utterance. A second loss keeps all codes in use.

The front end gives log-mel frames, so the input projection stands where wav2vec 2.0 has convolutions over samples.

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

from jax_speechlm.core.batch import Batch, frame_mask
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import Conformer
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear, split_keys
from jax_speechlm.nn.vector_quantizer import GumbelQuantizer, Quantized
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics, ObjectiveConfig
from jax_speechlm.objectives.masking import (
    PROBE_STRIDE,
    Views,
    draw_views,
    masked_places,
    most_masked,
    span_frames,
    take_frames,
)

_Temperature = Annotated[float, Field(ge=1e-4, le=1e4)]
"""Bounded so that what is divided by it stays within float32."""


class ContrastiveConfig(ObjectiveConfig):
    """Settings of the contrastive task.

    Attributes:
      groups: codebooks that share a frame's target, each giving a part of its vector.
      codes: entries of each.
      code_dim: dimension in which contexts and targets are compared, and of the targets' vectors.
      negatives: targets of other masked frames, drawn for each masked frame with replacement.
      temperature: divides the cosine similarities.
      gumbel_temperature: of the Gumbel softmax at the first step, and the lowest.
      gumbel_decay: factor on it a step. The default suits hundreds of thousands of steps.
      diversity_weight: of the loss that is 0 when all codes are equally frequent, and nearly 1 when one is used.
      mask_ratio: share of frames masked, on average. The paper's 6.5 % of frames starting a span of 10 is 0.49.
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
        return self.diversity_weight > 0  # diversity is that of the whole batch's codes

    def temperature_at(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The Gumbel softmax's temperature after so many steps."""
        first, lowest = self.gumbel_temperature
        return jnp.maximum(first * self.gumbel_decay ** step.astype(jnp.float32), lowest)

    def most_masked(self, num_frames: int, frontend: FrontEnd) -> int:
        """The most frames that are masked in a row of so many."""
        return most_masked(num_frames, span_frames(self.mask_span, frontend), self.mask_ratio)

    def contrast_flops(self, dim: int, num_frames: int, frontend: FrontEnd) -> float:
        """FLOPs of the task for one row of frames of width `dim`, encoder excluded."""
        scored = self.most_masked(num_frames, frontend)
        probed = -(-num_frames // PROBE_STRIDE)
        frame = (dim + self.code_dim // self.groups) * self.groups * self.codes  # choice and vector
        frame += self.code_dim * (self.code_dim + dim + scored)  # the two projections and the similarities
        return 2.0 * (scored + probed) * frame


class Contrast(nnx.Module):
    """What the task adds to an encoder, and finetuning drops.

    Parameters: `mask`, what the encoder's layers are given in place of a masked frame; the quantizer; and a linear map
    of contexts and one of targets into the space where they are compared.
    """

    def __init__(self, config: ContrastiveConfig, dim: int, *, rngs: nnx.Rngs):
        self.mask = parameter(rngs.params(), (dim,), ("embed",), jax.nn.initializers.normal(1.0), decays=False)
        self.quantizer = GumbelQuantizer(dim, config.groups, config.codes, config.code_dim, rngs=rngs)
        self.context = Linear((dim,), (config.code_dim,), ("embed", None), rngs=rngs)
        self.target = Linear((config.code_dim,), (config.code_dim,), (None, None), rngs=rngs)


class Frames(NamedTuple):
    """Some frames of a batch: where they lie in their rows, and how much each counts."""

    places: Int[Array, "batch places"]
    weight: Float[Array, "batch places"]


class Encoded(NamedTuple):
    """A batch whose masked frames the encoder did not see, and what the losses need of it.

    Attributes:
      views: what was drawn for it.
      hidden: the encoder's output, and that of layers below it by their number.
      target_BxTxD: the embedded frames without any mask.
      masked: the masked frames, as many as there can be in a row.
      probed: every `PROBE_STRIDE`-th frame, which counts where it is not masked.
      inside_BxT: what each frame counts, 0 in padding.
    """

    views: Views
    hidden: dict[int, Float[Array, "batch time dim"]]
    target_BxTxD: Float[Array, "batch time dim"]
    masked: Frames
    probed: Frames
    inside_BxT: Float[Array, "batch time"]


def encode_masked(
    encoder: Conformer,
    mask: Float[Array, " dim"],
    batch: Batch,
    key: PRNGKeyArray | None,
    config: ContrastiveConfig,
    frontend: FrontEnd,
    taps: tuple[int, ...] = (),
) -> Encoded:
    """Hides spans of a batch's frames, whose embeddings one vector replaces, and encodes the rest.

    Args:
      mask: that vector.
      key: the step's, or None for evaluation.
      taps: layers whose output is wanted besides the last's.
    """
    span = span_frames(config.mask_span, frontend)
    views = draw_views(batch, key, frontend, encoder.config, span, config.mask_ratio)
    mask_BxT = views.mask_BxT
    x_BxTxD = encoder.embed(views.x_BxTxF)
    x_BxTxD = jnp.where(mask_BxT[..., None], mask.astype(x_BxTxD.dtype), x_BxTxD)
    hidden, tapped = encoder.encode(x_BxTxD, views.length_B, keys=views.dropout_keys, chunk=views.chunk, taps=taps)

    inside_BxT = frame_mask(views.length_B, mask_BxT.shape[1]) * batch["weight"][:, None]
    places_BxN = masked_places(mask_BxT, config.most_masked(mask_BxT.shape[1], frontend))
    every = jnp.arange(0, mask_BxT.shape[1], PROBE_STRIDE)
    return Encoded(
        views,
        {**tapped, encoder.config.num_layers: hidden},
        encoder.embed(views.clean_BxTxF),
        Frames(places_BxN, take_frames(inside_BxT * mask_BxT, places_BxN)),
        Frames(jnp.broadcast_to(every, (len(mask_BxT), len(every))), (inside_BxT * ~mask_BxT)[:, every]),
        inside_BxT,
    )


def draw_negatives(
    keys_B: Key[Array, " batch"], num_B: Int[Array, " batch"], rows: int, pool: int, negatives: int, *, own: bool
) -> Float[Array, "batch rows pool"]:
    """How often each of a row's masked frames is drawn as a negative, for each of `rows` frames.

    Args:
      keys_B: one a row; what a frame draws depends on it, the frame's number and `num` alone, not on padding.
      num_B: masked frames of each row: the first so many of the pool. Each frame draws `negatives` of them; none where
        there is none to draw.
      own: whether frame i of the rows is frame i of the pool, and so must not be drawn for itself.
    """

    def draw(key, num, number):
        limit = num - own
        drawn = jnp.floor(jax.random.uniform(jax.random.fold_in(key, number), (negatives,)) * limit).astype(jnp.int32)
        drawn = drawn + (own & (drawn >= number))
        return jnp.zeros(pool).at[drawn].add(limit > 0)

    numbers = jnp.arange(rows)
    return jax.vmap(lambda key, num: jax.vmap(lambda number: draw(key, num, number))(numbers))(keys_B, num_B)


def contrastive_loss(
    context_BxMxP: Float[Array, "batch rows dim"],
    positive: tuple[Float[Array, "batch rows dim"], Int[Array, "batch rows groups"]],
    pool: tuple[Float[Array, "batch pool dim"], Int[Array, "batch pool groups"]],
    count_BxMxN: Float[Array, "batch rows pool"],
    temperature: float,
) -> tuple[Float[Array, "batch rows"], Bool[Array, "batch rows"]]:
    """-log of the softmax, over a frame's own target and its negatives, of the own one. Equation 3 of the paper.

    All similarities within a row are one matrix product, and a frame's negatives are how often it counts each of them,
    so no target is copied for each time it is drawn.

    Args:
      context_BxMxP: what the encoder says of each frame.
      positive: (target, codes) of each frame.
      pool: (target, codes) of the frames that negatives come from.
      count_BxMxN: how often each counts. Those with the frame's own codes do not count: they are its target.

    Returns:
      The loss in nats, 0 where no negative counts; and whether the own target was nearer than every negative that does.
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
    """The share of the codes that stay unused, were those in use equally frequent: 1 - mean perplexity / codes.

    Of the mean softmax over all frames of the batch, so it is a property of the batch and no sum over its rows. The
    paper's equation 4 has the entropy where its code, and all that followed, have the perplexity.
    """
    total = jnp.maximum(jnp.sum(weight_BxN), 1e-9)
    share_GxC = jnp.einsum("bngc,bn->gc", probs_BxNxGxC, weight_BxN) / total
    # A probability that has underflown to 0 has an infinite logarithm, whose gradient would be no number.
    return 1 - jnp.mean(gauges.perplexity(jnp.maximum(share_GxC, 1e-9))) / share_GxC.shape[-1]


def contrast(
    model: Contrast,
    config: ContrastiveConfig,
    encoded: Encoded,
    hidden_BxTxD: Float[Array, "batch time dim"],
    batch: Batch,
) -> tuple[dict[str, Float[Array, ""]], Quantized, Quantized]:
    """The task's metrics as weighted sums, and the targets of the masked and of the probed frames.

    Args:
      hidden_BxTxD: what has to tell the targets apart.
      batch: `step` says how far the Gumbel softmax's temperature has fallen; evaluation, without noise, needs none.

    Returns:
      Sums over the masked frames but for `unmasked_accuracy`: `contrastive` and `diversity` (losses), both accuracies,
      and of the chosen codes `code_entropy` and `code_perplexity` (means over groups), `code_entropy_ratio` (of the
      group whose entropy is lowest, to the most there can be) and `codes_used_0`, ... (share, of each group).
    """
    views, masked, probed = encoded.views, encoded.masked, encoded.probed
    noise_keys, masked_keys, probed_keys = split_keys(views.keys_B, 3)

    def targets_of(frames):
        return take_frames(encoded.target_BxTxD, frames.places)

    if views.dropout_keys is None:  # evaluation
        pool = model.quantizer(targets_of(masked))
    else:
        place_keys = jax.vmap(lambda key, places: jax.vmap(lambda place: jax.random.fold_in(key, place))(places))
        keys_BxN = place_keys(noise_keys, masked.places)
        pool = model.quantizer(targets_of(masked), keys_BxN, config.temperature_at(batch["step"]))
    probe = model.quantizer(targets_of(probed))

    def tell(frames: Frames, own: Quantized, count_BxMxN: Array) -> tuple[Array, Array]:
        context = model.context(take_frames(hidden_BxTxD, frames.places).astype(jnp.float32))
        targets = [(model.target(each.vectors), each.codes) for each in (own, pool)]
        return contrastive_loss(context, *targets, count_BxMxN, config.temperature)

    num_B, sizes = jnp.sum(views.mask_BxT, axis=-1), [each.places.shape[1] for each in (masked, probed)]
    count = draw_negatives(masked_keys, num_B, sizes[0], sizes[0], config.negatives, own=True)
    nll_BxN, right_BxN = tell(masked, pool, count)
    count = draw_negatives(probed_keys, num_B, sizes[1], sizes[0], config.negatives, own=False)
    _, probed_right = tell(probed, probe, count)

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
    """Metrics from `contrast`'s sums and an objective's own, with the gauges of the encoder's output."""
    masked, probed = jnp.sum(encoded.masked.weight), jnp.sum(encoded.probed.weight)
    sums |= {name: masked * value for name, value in gauges.representation(hidden_BxTxD, encoded.inside_BxT).items()}
    return {name: (total, probed if name == "unmasked_accuracy" else masked) for name, total in sums.items()}


def check_code_usage(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """What is wrong when the learnt codes have collapsed to a few; else None.

    Args:
      metrics: averaged over steps.
      after_warmup: whether training is long past its warm-up; the codebook takes its time.
    """
    ratio = metrics["code_entropy_ratio"]
    if after_warmup and ratio < gauges.LOW_ENTROPY:
        return (
            f"the quantizer's codes have collapsed: a group's entropy is {ratio:.0%} of what the batches could show: "
            "targets hardly differ and the contrastive loss says nothing. Start again with a higher "
            "objective.diversity_weight, or a lower optimizer.schedule.peak"
        )
    return None
