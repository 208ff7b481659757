"""Frame classification for voice activity detection, trained on word times of transcripts.

Frames in words and in pauses shorter than `min_pause` are speech; the others are silence, or noise if training adds it.
`jax-speechlm align --format index` computes the times. Rows without alignment or transcript have no frame labels.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.base import (
    Metrics,
    Objective,
    check_features,
    check_keeps_time,
    check_no_crop,
    on_params,
    speech_flops,
    weighted,
)
from jax_speechlm.objectives.heads.base import Classes, HeadConfig, SpeechClassifier, encode
from jax_speechlm.parallel import sequence

FrameLogits = Callable[
    [functional.Params, Batch, PRNGKeyArray | None],
    tuple[Float[Array, "batch time classes"], Int[Array, " batch"]],
]


KNOWN = ("silence", "speech")
"""Classes that word times distinguish."""


class FrameClassification(HeadConfig):
    """Settings of frame classification.

    Attributes:
      classes: frame classes in the order of their ids. Training supports silence and speech; imported models may have
        others.
      min_pause: seconds; a shorter pause between words is speech.
      empty_is_silence: whether an empty transcript means that nobody speaks, rather than that it is missing.
    """

    kind: Literal["frame_classification"] = "frame_classification"
    classes: Classes = KNOWN
    min_pause: Annotated[float, Field(ge=0)] = 0.3
    empty_is_silence: bool = False

    def build(self, model: EncoderConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective. The loss is a mean over frames (nats). Metrics: `accuracy`, and `speech` and
        `speech_predicted` (shares of the frames).
        """
        check_features(model, frontend.mel)
        check_no_crop(frontend, "words")
        check_keeps_time(frontend, "labels")
        if frontend.augment.mix_probability:
            raise ValueError(
                "frontend.augment.mix_probability would add speech where the labels say silence: set it to 0, and "
                "data.noise_set for noise"
            )

        def score(module: SpeechClassifier, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            batch = by_utterance(batch)
            logits_BxTxC, segments = _logits(module, batch, frontend, key)
            class_BxT = sequence.pad_time(batch["frame_labels"])
            weight_BxT = segments.spread(batch["weight"], class_BxT.shape[1]) * (class_BxT >= 0)
            nats_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxC, jnp.maximum(class_BxT, 0))
            guess_BxT = jnp.argmax(logits_BxTxC, axis=-1)
            values = {
                "loss": nats_BxT,
                "accuracy": guess_BxT == class_BxT,
                "speech": class_BxT > 0,
                "speech_predicted": guess_BxT > 0,
            }
            return weighted(weight_BxT, values)

        def head_flops(num_vectors: int) -> float:
            return 2.0 * model.num_frames(num_vectors) * model.dim * len(self.classes)

        flops = speech_flops(model, frontend, head_flops)
        return Objective.of(self._maker(model), score, forward_flops=flops)

    def classifier(self, model: EncoderConfig, frontend: FrontEnd) -> FrameLogits:
        """Returns `(params, batch, key) -> (logits [B, T, classes], frames per row)`."""
        return on_params(self._maker(model), lambda module, batch, key: _logits(module, batch, frontend, key))

    def _maker(self, model: EncoderConfig) -> functional.MakeModule:
        return lambda rngs: SpeechClassifier(model, len(self.classes), self.weighted_layers, rngs=rngs)


def _logits(module: SpeechClassifier, batch: Batch, frontend: FrontEnd, key: PRNGKeyArray | None):
    hidden_BxTxD, frames_B = encode(module.encoder, batch, frontend, key, module.mix)
    return module.head(hidden_BxTxD).astype(jnp.float32), frames_B
