"""HuBERT: predicts the k-means units of masked frames.

Reference: Hsu et al. 2021, "HuBERT: self-supervised speech representation learning by masked prediction of hidden
units". `jax-speechlm units` computes the units beforehand: first from MFCCs, later from hidden states of a trained
layer.
"""

import functools
from collections.abc import Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, frame_mask
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import Conformer, ConformerConfig, forward_flops
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Linear, unit_length
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, check_input_dim, check_no_crop, mean
from jax_speechlm.objectives.masking import draw_views, span_frames
from jax_speechlm.parallel import sequence


class HuBERT(ObjectiveConfig):
    """Settings of the HuBERT objective.

    Attributes:
      num_units: number of k-means units in `data.units`.
      code_dim: dimension in which frames and units are compared.
      temperature: divides the cosines to give logits.
      mask_ratio: average share of masked frames. The paper's 8 % of frames starting a span of ten is 0.57.
      mask_span: length of a span in seconds.
      unmasked_weight: weight of unmasked frames in the loss, relative to masked ones; 0 in the paper.
    """

    kind: Literal["hubert"] = "hubert"
    num_units: Annotated[int, Field(ge=2)] = 100
    code_dim: Annotated[int, Field(ge=1)] = 256
    temperature: Annotated[float, Field(gt=0)] = 0.1
    mask_ratio: Annotated[float, Field(gt=0, lt=0.9)] = 0.57
    mask_span: Annotated[float, Field(gt=0)] = 0.2
    unmasked_weight: Annotated[float, Field(ge=0, le=1)] = 0.0

    def build(self, model: ConformerConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective for a model and front end; the tokenizer is unused.

        The loss is the weighted mean over frames of the cross-entropy in nats. Metrics: `masked_accuracy`,
        `unmasked_accuracy`; over a batch's masked frames the metrics of `gauges.of_codes`, and over all frames the
        metrics of `gauges.representation`.

        Raises:
          ValueError: the front end's features do not fit the model, or it crops the audio that units refer to.
        """
        check_input_dim(model.input_dim, frontend.mel.input_dim)
        check_no_crop(frontend, "units")

        def make(rngs):
            return HuBERTModel(model, self, rngs=rngs)

        span = span_frames(self.mask_span, frontend)
        loss = functools.partial(
            _loss, config=self, frontend=frontend, span=span, graphdef=functional.declare(make).graphdef
        )

        def flops(num_samples: int, batch_size: int) -> float:
            num_frames = frontend.mel.num_frames(num_samples)
            head = 2.0 * batch_size * num_frames * self.code_dim * (model.dim + self.num_units)
            return forward_flops(model, num_frames, batch_size) + head

        return Objective(make, loss, forward_flops=flops, health_check=health_check)


class Units(nnx.Module):
    """Computes logits over the units: cosines of projected frames and unit embeddings, divided by the temperature."""

    def __init__(self, config: HuBERT, dim: int, *, rngs: nnx.Rngs):
        self.temperature = config.temperature
        self.projection = Linear((dim,), (config.code_dim,), ("embed", None), rngs=rngs)
        sphere = jax.nn.initializers.normal(1.0)  # only directions matter
        self.embedding = functional.parameter(
            rngs.params(), (config.num_units, config.code_dim), ("vocab", None), sphere
        )

    def __call__(self, hidden_BxTxD: Float[Array, "batch time dim"]) -> Float[Array, "batch time units"]:
        frames = unit_length(self.projection(hidden_BxTxD))
        units = unit_length(self.embedding[...]).astype(frames.dtype)
        return jnp.einsum("btc,kc->btk", frames, units, preferred_element_type=jnp.float32) / self.temperature


class HuBERTModel(nnx.Module):
    """A conformer, the embedding of masked frames, and the output layer, which is dropped after pretraining."""

    def __init__(self, model: ConformerConfig, config: HuBERT, *, rngs: nnx.Rngs):
        self.encoder = Conformer(model, rngs=rngs)
        self.mask = functional.parameter(
            rngs.params(), (model.dim,), ("embed",), jax.nn.initializers.normal(1.0), decays=False
        )
        self.units = Units(config, model.dim, rngs=rngs)


def _loss(
    params: functional.Params,
    batch: Batch,
    key: PRNGKeyArray | None,
    *,
    graphdef: nnx.GraphDef,
    config: HuBERT,
    frontend: FrontEnd,
    span: int,
) -> tuple[Float[Array, ""], Metrics]:
    model = functional.bind(graphdef, params)
    views = draw_views(batch, key, frontend, model.encoder.config, span, config.mask_ratio)
    code_BxT, mask_BxT = sequence.pad_time(batch["frame_labels"]), views.mask_BxT
    if code_BxT.shape != mask_BxT.shape:
        raise ValueError(
            f"a batch has codes of shape {code_BxT.shape} and frames of shape {mask_BxT.shape}: data.units were made "
            "with another front end than this one"
        )
    x_BxTxD = model.encoder.embed(views.x_BxTxF)
    x_BxTxD = jnp.where(mask_BxT[..., None], model.mask[...].astype(x_BxTxD.dtype), x_BxTxD)
    hidden_BxTxD, _ = model.encoder.encode(x_BxTxD, views.length_B, keys=views.dropout_keys, chunk=views.chunk)
    logits_BxTxK = model.units(hidden_BxTxD.astype(model.encoder.config.dtype))

    inside_BxT = frame_mask(views.length_B, mask_BxT.shape[1]) * batch["weight"][:, None]
    known_BxT = inside_BxT * (code_BxT >= 0)  # records that were unreadable when units were computed have none
    masked_BxT, unmasked_BxT = known_BxT * mask_BxT, known_BxT * ~mask_BxT
    weight_BxT = masked_BxT + config.unmasked_weight * unmasked_BxT
    code_BxT = jnp.maximum(code_BxT, 0)
    guess_BxT = jnp.argmax(logits_BxTxK, axis=-1)
    nats_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxK, code_BxT)
    hits_BxT, masked = guess_BxT == code_BxT, jnp.sum(masked_BxT)
    metrics = {
        "loss": (jnp.sum(weight_BxT * nats_BxT), jnp.sum(weight_BxT)),
        "masked_accuracy": (jnp.sum(masked_BxT * hits_BxT), masked),
        "unmasked_accuracy": (jnp.sum(unmasked_BxT * hits_BxT), jnp.sum(unmasked_BxT)),
    }
    shape = gauges.of_codes(code_BxT, guess_BxT, masked_BxT, config.num_units)
    shape |= gauges.representation(hidden_BxTxD, inside_BxT)
    metrics |= {name: (masked * value, masked) for name, value in shape.items()}
    return mean(*metrics["loss"]), metrics


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if units, predictions or hidden states have collapsed, else None.

    Args:
      metrics: averaged over steps.
      after_warmup: whether training is long past its warm-up.
    """
    cause = "Look at them with `jax-speechlm units report`, and fit others: from more audio, or from another layer"
    wrong = gauges.check_code_usage(metrics, after_warmup, "HuBERT", cause)
    return wrong or gauges.check_representation(metrics, after_warmup)
