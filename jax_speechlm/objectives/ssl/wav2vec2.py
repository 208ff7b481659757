"""wav2vec 2.0: identifies a masked frame's quantized target among targets of other masked frames.

Reference: Baevski et al. 2020; the task is in `contrastive`.
"""

import functools
from collections.abc import Mapping
from typing import Literal

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import Conformer, ConformerConfig, forward_flops
from jax_speechlm.nn import functional
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics, Objective, check_input_dim, mean
from jax_speechlm.objectives.ssl.contrastive import (
    Contrast,
    ContrastiveConfig,
    averaged,
    check_code_usage,
    contrast,
    encode_masked,
)


class Wav2Vec2(ContrastiveConfig):
    """Settings of the wav2vec 2.0 objective, which are the contrastive task's."""

    kind: Literal["wav2vec2"] = "wav2vec2"

    def build(self, model: ConformerConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective for a model and front end; the tokenizer is unused.

        The loss is `contrastive`, a mean over masked frames, plus `diversity_weight` * `diversity`, computed over the
        whole batch (per micro-batch with `optimizer.accumulate`). Other metrics: `masked_accuracy` and
        `unmasked_accuracy` (on every 16th frame), the share of frames closer to their own target than to all negatives;
        code usage as in `contrastive.contrast`; and over all frames the metrics of `gauges.representation`.

        Raises:
          ValueError: the front end's features do not fit the model.
        """
        check_input_dim(model.input_dim, frontend.mel.input_dim)

        def make(rngs):
            return Wav2Vec2Model(model, self, rngs=rngs)

        loss = functools.partial(_loss, config=self, frontend=frontend, graphdef=functional.declare(make).graphdef)

        def flops(num_samples: int, batch_size: int) -> float:
            num_frames = frontend.mel.num_frames(num_samples)
            task = batch_size * self.contrast_flops(model.dim, num_frames, frontend)
            return forward_flops(model, num_frames, batch_size) + task

        return Objective(make, loss, forward_flops=flops, health_check=health_check)


class Wav2Vec2Model(nnx.Module):
    """A conformer with the contrastive modules, which are dropped after pretraining."""

    def __init__(self, model: ConformerConfig, config: Wav2Vec2, *, rngs: nnx.Rngs):
        self.encoder = Conformer(model, rngs=rngs)
        self.contrast = Contrast(config, model.dim, rngs=rngs)


def _loss(
    params: functional.Params,
    batch: Batch,
    key: PRNGKeyArray | None,
    *,
    graphdef: nnx.GraphDef,
    config: Wav2Vec2,
    frontend: FrontEnd,
) -> tuple[Float[Array, ""], Metrics]:
    model = functional.bind(graphdef, params)
    encoded = encode_masked(model.encoder, model.contrast.mask[...], batch, key, config, frontend)
    hidden_BxTxD = encoded.hidden[model.encoder.config.num_layers]
    sums, _, _ = contrast(model.contrast, config, encoded, hidden_BxTxD, batch)
    sums["loss"] = sums["contrastive"] + config.diversity_weight * sums["diversity"]
    metrics = averaged(sums, encoded, hidden_BxTxD)
    return mean(*metrics["loss"]), metrics


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if codes or hidden states have collapsed, else None. Arguments as in `gauges`."""
    return check_code_usage(metrics, after_warmup) or gauges.check_representation(metrics, after_warmup)
