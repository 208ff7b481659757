"""Speaker verification with x-vectors, trained by speaker classification with an additive margin.

Wang et al. 2018, "Additive margin softmax for face verification". Speakers at test time may be new: the vectors of two
recordings are compared by their cosine.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models import encoders
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.xvector import XVector, XVectorConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.base import (
    Metrics,
    Objective,
    check_features,
    on_params,
    speech_flops,
    weighted,
)
from jax_speechlm.objectives.heads.base import Classes, HeadConfig, encode, layer_weights

Vectors = Callable[[functional.Params, Batch], tuple[Float[Array, "batch dim"], Int[Array, " batch"]]]


class SpeakerVerification(HeadConfig):
    """Settings of speaker verification.

    Attributes:
      classes: speakers of the training data; `data.label` is ignored. Rows of other speakers in the dev split are not
        scored.
      head: settings of the x-vector head.
      scale: factor from cosines to logits.
      margin: subtracted from the cosine of a row's own speaker before scaling.
    """

    classes: Classes
    kind: Literal["speaker_verification"] = "speaker_verification"
    head: XVectorConfig = XVectorConfig()
    scale: Annotated[float, Field(gt=0)] = 30.0
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.4

    def build(self, model: EncoderConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective. The loss is a mean over rows (nats), without rows shorter than `head.shortest` frames
        or with label -1. Metrics: `accuracy` (share of rows whose speaker has the highest cosine, without the margin)
        and `too_short` (share of rows).
        """
        check_features(model, frontend.mel)

        def score(module: SpeakerModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            batch = by_utterance(batch)
            hidden_BxTxD, segments = encode(module.encoder, batch, frontend, key, module.mix)
            cosine_BxNxC = module.speaker.cosines(module.speaker(hidden_BxTxD, segments))
            own_BxNxC = jax.nn.one_hot(batch["label"], len(self.classes))
            nll_BxN = optax.softmax_cross_entropy(self.scale * (cosine_BxNxC - self.margin * own_BxNxC), own_BxNxC)
            long_enough_BxN = batch["weight"] * (segments.length >= self.head.shortest)
            utterances = jnp.sum(batch["weight"])
            values = {"loss": nll_BxN, "accuracy": jnp.argmax(cosine_BxNxC, axis=-1) == batch["label"]}
            metrics = weighted(long_enough_BxN * (batch["label"] >= 0), values)
            return metrics | {"too_short": (utterances - jnp.sum(long_enough_BxN), utterances)}

        def head_flops(num_vectors: int) -> float:
            return self.head.forward_flops(model.dim, model.num_frames(num_vectors), 1)

        flops = speech_flops(model, frontend, head_flops)
        return Objective.of(self._maker(model), score, forward_flops=flops)

    def vectors(self, model: EncoderConfig, frontend: FrontEnd) -> Vectors:
        """Returns `(params, batch) -> (x-vectors, frames per row)`; invalid below `head.shortest` frames."""

        def vectors(module: SpeakerModel, batch: Batch):
            hidden_BxTxD, frames_B = encode(module.encoder, batch, frontend, None, module.mix)
            return module.speaker(hidden_BxTxD, frames_B)[:, 0].astype(jnp.float32), frames_B

        return on_params(self._maker(model), vectors)

    def _maker(self, model: EncoderConfig) -> functional.MakeModule:
        return lambda rngs: SpeakerModel(model, self.head, len(self.classes), self.weighted_layers, rngs=rngs)


class SpeakerModel(nnx.Module):
    """A speech encoder with an x-vector head."""

    def __init__(
        self,
        config: EncoderConfig,
        head: XVectorConfig,
        num_speakers: int,
        is_weighted: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = encoders.make_encoder(config, rngs=rngs)
        self.mix = layer_weights(config, is_weighted, rngs)
        self.speaker = XVector(head, config.dim, num_speakers, rngs=rngs)
