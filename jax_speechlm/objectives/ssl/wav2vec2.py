"""wav2vec 2.0: identifies a masked frame's quantized target among targets of other masked frames.

Reference: Baevski et al. 2020; the task is in `contrastive`.
"""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics, Objective, check_features, speech_flops
from jax_speechlm.objectives.ssl.contrastive import (
    ContrastiveConfig,
    ContrastiveModel,
    averaged,
    check_code_usage,
    contrast,
)


class Wav2Vec2(ContrastiveConfig):
    """Settings of the wav2vec 2.0 objective, which are the contrastive task's."""

    kind: Literal["wav2vec2"] = "wav2vec2"

    def build(self, model: EncoderConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective. The loss is `contrastive`, a mean over masked frames, plus `diversity_weight` *
        `diversity`, computed over the whole batch (per micro-batch with `optimizer.accumulate`). Other metrics:
        `masked_accuracy` and `unmasked_accuracy` (on every 16th frame), the share of frames closer to their own target
        than to all negatives; code usage as in `contrastive.contrast`; and over all frames the metrics of
        `gauges.representation`.
        """
        check_features(model, frontend.mel)

        def make(rngs):
            return ContrastiveModel(model, self, rngs=rngs)

        def score(module: ContrastiveModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            encoded = self.encode(module, batch, key, frontend)
            hidden_BxTxD = encoded.hidden[model.num_layers]
            sums, _, _ = contrast(module.contrast, self, encoded, hidden_BxTxD, batch)
            sums["loss"] = sums["contrastive"] + self.diversity_weight * sums["diversity"]
            return averaged(sums, encoded, hidden_BxTxD)

        flops = speech_flops(model, frontend, lambda vectors: self.contrast_flops(model, vectors, frontend))
        return Objective.of(make, score, forward_flops=flops, health_check=health_check)


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if codes or hidden states have collapsed, else None. Arguments as in `gauges`."""
    return check_code_usage(metrics, after_warmup) or gauges.check_representation(metrics, after_warmup)
