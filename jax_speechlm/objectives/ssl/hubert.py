"""HuBERT: predicts the k-means units of masked frames.

Reference: Hsu et al. 2021, "HuBERT: self-supervised speech representation learning by masked prediction of hidden
units". `jax-speechlm units` computes the units beforehand: first from MFCCs, later from hidden states of a trained
layer.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.encoders import EncoderConfig, make_encoder
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Linear, unit_length
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics, Objective, check_features, check_no_crop, speech_flops
from jax_speechlm.objectives.masking import MaskedPrediction, Views
from jax_speechlm.parallel import sequence


class HuBERT(MaskedPrediction):
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

    def build(self, model: EncoderConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective. The loss is the weighted mean over frames of the cross-entropy in nats. Metrics:
        `masked_accuracy`, `unmasked_accuracy`; over a batch's masked frames the metrics of `gauges.of_codes`, and over
        all frames the metrics of `gauges.representation`.
        """
        check_features(model, frontend.mel)
        check_no_crop(frontend, "units")

        def make(rngs):
            return HuBERTModel(model, self, rngs=rngs)

        def score(module: HuBERTModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            return self._score(module, self.views(batch, key, frontend, model), batch)

        def head_flops(num_vectors: int) -> float:
            return 2.0 * model.num_frames(num_vectors) * self.code_dim * (model.dim + self.num_units)

        flops = speech_flops(model, frontend, head_flops)
        return Objective.of(make, score, forward_flops=flops, health_check=health_check)

    def _score(self, model: "HuBERTModel", views: Views, batch: Batch) -> Metrics:
        code_BxT, mask_BxT = sequence.pad_time(batch["frame_labels"]), views.mask_BxT
        if code_BxT.shape != mask_BxT.shape:
            raise ValueError(
                f"a batch has codes of shape {code_BxT.shape} and frames of shape {mask_BxT.shape}: data.units were "
                "made with another front end than this one"
            )
        hidden_BxTxD, _ = views.encode(model.encoder, model.mask[...])
        logits_BxTxK = model.units(hidden_BxTxD.astype(model.encoder.config.dtype))

        inside_BxT = views.weight(by_utterance(batch)["weight"])
        known_BxT = inside_BxT * (code_BxT >= 0)  # records that were unreadable when units were computed have none
        masked_BxT, unmasked_BxT = known_BxT * mask_BxT, known_BxT * ~mask_BxT
        weight_BxT = masked_BxT + self.unmasked_weight * unmasked_BxT
        code_BxT = jnp.maximum(code_BxT, 0)
        guess_BxT = jnp.argmax(logits_BxTxK, axis=-1)
        nats_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxK, code_BxT)
        hits_BxT, masked = guess_BxT == code_BxT, jnp.sum(masked_BxT)
        metrics = {
            "loss": (jnp.sum(weight_BxT * nats_BxT), jnp.sum(weight_BxT)),
            "masked_accuracy": (jnp.sum(masked_BxT * hits_BxT), masked),
            "unmasked_accuracy": (jnp.sum(unmasked_BxT * hits_BxT), jnp.sum(unmasked_BxT)),
        }
        shape = gauges.of_codes(code_BxT, guess_BxT, masked_BxT, self.num_units)
        shape |= gauges.representation(hidden_BxTxD, inside_BxT)
        return metrics | gauges.per_batch(shape, masked)


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
    """An encoder, the embedding of masked frames, and the output layer, which is dropped after pretraining."""

    def __init__(self, model: EncoderConfig, config: HuBERT, *, rngs: nnx.Rngs):
        self.encoder = make_encoder(model, rngs=rngs)
        self.mask = functional.parameter(
            rngs.params(), (model.dim,), ("embed",), jax.nn.initializers.normal(1.0), decays=False
        )
        self.units = Units(config, model.dim, rngs=rngs)


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if units, predictions or hidden states have collapsed, else None. Arguments as in `gauges`."""
    cause = "Look at them with `jax-speechlm units report`, and fit others: from more audio, or from another layer"
    wrong = gauges.check_code_usage(metrics, after_warmup, "HuBERT", cause)
    return wrong or gauges.check_representation(metrics, after_warmup)
