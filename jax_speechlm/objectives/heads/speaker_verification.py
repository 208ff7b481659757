"""Speaker verification: x-vectors that are alike where the same person speaks, learnt by telling speakers apart.

The margin is Wang et al.'s (2018, "Additive margin softmax for face verification"). Who is heard in use need not be
among those of the training data: vectors of two recordings are compared by their cosine.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field

from data_pipelines.tokenizers.base import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models import encoders
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.xvector import XVector, XVectorConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, check_features, mean
from jax_speechlm.objectives.encode import encode
from jax_speechlm.objectives.heads.classes import Classes

Vectors = Callable[[functional.Params, Batch], tuple[Float[Array, "batch dim"], Int[Array, " batch"]]]


class SpeakerVerification(ObjectiveConfig):
    """Settings of speaker verification.

    Attributes:
      classes: the speakers of the training data, whatever `data.label` is. Those of the dev split may be others: what
        they say then validates nothing.
      head: what stands between the encoder and the vector.
      scale: cosines are multiplied by it to give logits.
      margin: what a row's own speaker loses of the cosine before that.
    """

    classes: Classes
    kind: Literal["speaker_verification"] = "speaker_verification"
    head: XVectorConfig = XVectorConfig()
    scale: Annotated[float, Field(gt=0)] = 30.0
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.4

    def build(self, model: EncoderConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """The objective for one model and front end; it needs no tokenizer.

        The loss is a mean over rows (nats); a row of fewer frames than a vector takes, or whose number is -1, has
        none. Metrics: `accuracy`
        (the likeliest speaker is right, without the margin) and `too_short` (share of rows).

        Raises:
          ValueError: features that do not fit the model.
        """
        del tokenizer
        check_features(model, frontend.mel)
        make = self._maker(model)
        graphdef = functional.declare(make).graphdef

        def loss(params: functional.Params, batch: Batch, key: PRNGKeyArray | None) -> tuple[Float[Array, ""], Metrics]:
            module = functional.bind(graphdef, params)
            hidden_BxTxD, frames_B = encode(module.encoder, model, batch, frontend, key)
            cosine_BxC = module.speaker.cosines(module.speaker(hidden_BxTxD, frames_B))
            own_BxC = jax.nn.one_hot(batch["label"], len(self.classes))
            nll_B = optax.softmax_cross_entropy(self.scale * (cosine_BxC - self.margin * own_BxC), own_BxC)
            long_enough_B = batch["weight"] * (frames_B >= self.head.shortest)
            weight_B, rows = long_enough_B * (batch["label"] >= 0), jnp.sum(batch["weight"])
            sums = {"loss": nll_B, "accuracy": jnp.argmax(cosine_BxC, axis=-1) == batch["label"]}
            metrics = {name: (jnp.sum(weight_B * values), jnp.sum(weight_B)) for name, values in sums.items()}
            metrics["too_short"] = (rows - jnp.sum(long_enough_B), rows)
            return mean(*metrics["loss"]), metrics

        def flops(num_samples: int, batch_size: int) -> float:
            vectors = frontend.mel.num_frames(num_samples)
            head = self.head.forward_flops(model.dim, model.num_frames(vectors), batch_size)
            return encoders.forward_flops(model, vectors, batch_size) + head

        return Objective(make, loss, forward_flops=flops)

    def vectors(self, model: EncoderConfig, frontend: FrontEnd) -> Vectors:
        """`(params, batch) -> (x-vector of each row, its frames)`; one of too few frames (`head.shortest`) has none."""
        graphdef = functional.declare(self._maker(model)).graphdef

        def vectors(params: functional.Params, batch: Batch):
            module = functional.bind(graphdef, params)
            hidden_BxTxD, frames_B = encode(module.encoder, model, batch, frontend, None)
            return module.speaker(hidden_BxTxD, frames_B).astype(jnp.float32), frames_B

        return vectors

    def _maker(self, model: EncoderConfig) -> functional.MakeModule:
        return lambda rngs: SpeakerModel(model, self.head, len(self.classes), rngs=rngs)


class SpeakerModel(nnx.Module):
    """A speech encoder and an x-vector head."""

    def __init__(self, config: EncoderConfig, head: XVectorConfig, num_speakers: int, *, rngs: nnx.Rngs):
        self.encoder = encoders.make_encoder(config, rngs=rngs)
        self.speaker = XVector(head, config.dim, num_speakers, rngs=rngs)
