"""Frame classification for voice activity detection, trained on word times of transcripts.

Frames in words and in pauses shorter than `min_pause` are speech; the others are silence, or noise if training adds it.
`jax-speechlm align --format index` computes the times. Rows without alignment or transcript have no frame labels.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, frame_mask
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import Conformer, ConformerConfig, forward_flops
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, check_input_dim, check_no_crop, mean
from jax_speechlm.objectives.encode import encode
from jax_speechlm.objectives.heads.classes import Classes
from jax_speechlm.parallel import sequence

FrameLogits = Callable[
    [functional.Params, Batch, PRNGKeyArray | None],
    tuple[Float[Array, "batch time classes"], Int[Array, " batch"]],
]


KNOWN = ("silence", "speech")
"""Classes that word times distinguish."""


class FrameClassification(ObjectiveConfig):
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

    def build(self, model: ConformerConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective for a model and front end; the tokenizer is unused.

        The loss is a mean over frames (nats). Metrics: `accuracy`, and `speech` and `speech_predicted` (shares of the
        frames).

        Raises:
          ValueError: features that do not fit the model, or augmentation that would invalidate the labels.
        """
        del tokenizer
        check_input_dim(model.input_dim, frontend.mel.input_dim)
        check_no_crop(frontend, "words")
        if frontend.augment.mix_probability:
            raise ValueError(
                "frontend.augment.mix_probability would add speech where the labels say silence: set it to 0, and "
                "data.noise_set for noise"
            )
        make, frame_logits = self.classifier(model, frontend)

        def loss(params: functional.Params, batch: Batch, key: PRNGKeyArray | None) -> tuple[Float[Array, ""], Metrics]:
            logits_BxTxC, frames_B = frame_logits(params, batch, key)
            class_BxT = sequence.pad_time(batch["frame_labels"])
            inside_BxT = frame_mask(frames_B, class_BxT.shape[1]) & (class_BxT >= 0)
            weight_BxT = inside_BxT * batch["weight"][:, None]
            nats_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxC, jnp.maximum(class_BxT, 0))
            guess_BxT = jnp.argmax(logits_BxTxC, axis=-1)
            sums = {
                "loss": nats_BxT,
                "accuracy": guess_BxT == class_BxT,
                "speech": class_BxT > 0,
                "speech_predicted": guess_BxT > 0,
            }
            count = jnp.sum(weight_BxT)
            metrics = {name: (jnp.sum(weight_BxT * values), count) for name, values in sums.items()}
            return mean(*metrics["loss"]), metrics

        def flops(num_samples: int, batch_size: int) -> float:
            num_frames = frontend.mel.num_frames(num_samples)
            head = 2.0 * batch_size * num_frames * model.dim * len(self.classes)
            return forward_flops(model, num_frames, batch_size) + head

        return Objective(make, loss, forward_flops=flops)

    def classifier(self, model: ConformerConfig, frontend: FrontEnd) -> tuple[functional.MakeModule, FrameLogits]:
        """Returns the module's constructor and `(params, batch, key) -> (logits [B, T, classes], frames per row)`."""

        def make(rngs):
            return FrameClassifier(model, len(self.classes), rngs=rngs)

        graphdef = functional.declare(make).graphdef

        def logits(params: functional.Params, batch: Batch, key: PRNGKeyArray | None):
            module = functional.bind(graphdef, params)
            hidden_BxTxD, frames_B = encode(module.encoder, model, batch, frontend, key)
            return module.head(hidden_BxTxD).astype(jnp.float32), frames_B

        return make, logits


class FrameClassifier(nnx.Module):
    """A conformer with a linear layer to the frame classes."""

    def __init__(self, config: ConformerConfig, num_classes: int, *, rngs: nnx.Rngs):
        self.encoder = Conformer(config, rngs=rngs)
        self.head = Linear((config.dim,), (num_classes,), ("embed", None), rngs=rngs)
