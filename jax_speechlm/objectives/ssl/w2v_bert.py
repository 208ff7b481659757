"""w2v-BERT: lower layers learn the contrastive task of wav2vec 2.0, upper layers predict its codes.

Reference: Chung et al. 2021, "w2v-BERT: combining contrastive learning and masked language modeling for self-supervised
speech pre-training".
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray
from pydantic import Field, PositiveInt

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.nn.layers import Linear
from jax_speechlm.nn.vector_quantizer import Quantized
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics, Objective, check_features, speech_flops
from jax_speechlm.objectives.masking import take_frames
from jax_speechlm.objectives.ssl.contrastive import (
    ContrastiveConfig,
    ContrastiveModel,
    Encoded,
    Frames,
    averaged,
    check_code_usage,
    contrast,
)


class W2vBert(ContrastiveConfig):
    """Settings of the w2v-BERT objective, in addition to the contrastive task's.

    Attributes:
      contrastive_layers: layers from the input to the contrastive task's output; None for half of the model.
      contrastive_weight: weight of the contrastive task's loss relative to code prediction.
    """

    kind: Literal["w2v_bert"] = "w2v_bert"
    groups: Annotated[int, Field(ge=1, le=16)] = 1
    codes: Annotated[int, Field(ge=2)] = 1024
    contrastive_layers: PositiveInt | None = None
    contrastive_weight: Annotated[float, Field(ge=0)] = 1.0

    def build(self, model: ConformerConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective. The loss is `prediction`, the mean cross-entropy of the codes over masked frames and
        groups, plus `contrastive_weight` * (`contrastive` + `diversity_weight` * `diversity`). No gradient of
        `prediction` reaches the quantizer. Metrics are as for wav2vec2, except that `masked_accuracy` and
        `unmasked_accuracy` refer to code prediction; additionally `contrastive_accuracy` and `predicted_code_entropy`.
        """
        check_features(model, frontend.mel)
        layers = self.contrastive_layers or model.num_layers // 2
        if not 1 <= layers < model.num_layers:
            raise ValueError(
                f"w2v-BERT needs layers above the {layers} of the contrastive task, and the model has "
                f"{model.num_layers}: set objective.contrastive_layers below that, or model.num_layers to more"
            )

        def make(rngs):
            return W2vBertModel(model, self, rngs=rngs)

        def score(module: W2vBertModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            return self._score(module, self.encode(module, batch, key, frontend, taps=(layers,)), layers, batch)

        def head_flops(num_frames: int) -> float:
            head = 2.0 * self.most_masked(num_frames, frontend) * model.dim * self.groups * self.codes
            return self.contrast_flops(model, num_frames, frontend) + head

        flops = speech_flops(model, frontend, head_flops)
        return Objective.of(make, score, forward_flops=flops, health_check=health_check)

    def _score(self, model: "W2vBertModel", encoded: Encoded, contrastive_layers: int, batch: Batch) -> Metrics:
        hidden_BxTxD = encoded.hidden[model.encoder.config.num_layers]
        sums, *targets = contrast(model.contrast, self, encoded, encoded.hidden[contrastive_layers], batch)
        sums["contrastive_accuracy"] = sums["masked_accuracy"]

        def name_codes(frames: Frames, target: Quantized) -> tuple[Array, Array]:
            logits = model.head(take_frames(hidden_BxTxD, frames.places).astype(model.encoder.config.dtype))
            nll = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target.codes)
            return jnp.mean(nll, axis=-1), jnp.argmax(logits, axis=-1)

        (nll_BxN, guess), (_, probed_guess) = map(name_codes, (encoded.masked, encoded.probed), targets)
        weight, probed_weight = encoded.masked.weight, encoded.probed.weight
        shares = [gauges.code_shares(guess[..., g], weight, self.codes) for g in range(self.groups)]
        sums |= {
            "prediction": jnp.sum(weight * nll_BxN),
            "masked_accuracy": jnp.sum(weight * jnp.mean(guess == targets[0].codes, axis=-1)),
            "unmasked_accuracy": jnp.sum(probed_weight * jnp.mean(probed_guess == targets[1].codes, axis=-1)),
            "predicted_code_entropy": jnp.sum(weight) * jnp.mean(gauges.entropy(jnp.stack(shares))),
        }
        task = sums["contrastive"] + self.diversity_weight * sums["diversity"]
        sums["loss"] = sums["prediction"] + self.contrastive_weight * task
        return averaged(sums, encoded, hidden_BxTxD)


class W2vBertModel(ContrastiveModel):
    """The contrastive model with an output layer for the codes, dropped after pretraining too."""

    def __init__(self, model: ConformerConfig, config: W2vBert, *, rngs: nnx.Rngs):
        super().__init__(model, config, rngs=rngs)
        small = 0.02 * model.dim**0.5  # near uniform predictions
        self.head = Linear((model.dim,), (config.groups, config.codes), ("embed", None, "vocab"), gain=small, rngs=rngs)


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if codes, predictions or hidden states have collapsed, else None. Arguments as in `gauges`."""
    return (
        check_code_usage(metrics, after_warmup)
        or gauges.check_predictions(metrics, after_warmup, "w2v-BERT")
        or gauges.check_representation(metrics, after_warmup)
    )
