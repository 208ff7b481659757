"""Classification of utterances or texts, from the mean of the hidden states."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, example_keys, frame_mask
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models import encoders, transformer_config
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, check_features, mean
from jax_speechlm.objectives.encode import encode
from jax_speechlm.objectives.heads.classes import Classes

ClassLogits = Callable[[functional.Params, Batch, PRNGKeyArray | None], Float[Array, "batch classes"]]


class Classification(ObjectiveConfig):
    """Settings of classification: of utterances with a speech encoder, of texts with a transformer."""

    classes: Classes
    kind: Literal["classification"] = "classification"

    def build(
        self, model: EncoderConfig | TransformerConfig, frontend: FrontEnd | None, tokenizer: Tokenizer | None
    ) -> Objective:
        """Builds the objective for a model, with a front end for utterances or a tokenizer for texts.

        The loss is a mean over rows (nats); the metric `accuracy` is the share of rows classified correctly.

        Raises:
          ValueError: features that do not fit the model, or texts without a tokenizer.
        """
        make, class_logits, flops = self.classifier(model, frontend, tokenizer)

        def loss(params: functional.Params, batch: Batch, key: PRNGKeyArray | None) -> tuple[Float[Array, ""], Metrics]:
            logits_BxC, class_B, weight_B = class_logits(params, batch, key), batch["label"], batch["weight"]
            nll_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, class_B)
            sums = {"loss": nll_B, "accuracy": jnp.argmax(logits_BxC, axis=-1) == class_B}
            metrics = {name: (jnp.sum(weight_B * values), jnp.sum(weight_B)) for name, values in sums.items()}
            return mean(*metrics["loss"]), metrics

        return Objective(make, loss, forward_flops=flops)

    def classifier(
        self, model: EncoderConfig | TransformerConfig, frontend: FrontEnd | None, tokenizer: Tokenizer | None
    ) -> tuple[functional.MakeModule, ClassLogits, Callable[[int, int], float]]:
        """Builds the classifier.

        Returns:
          The module's constructor, `(params, batch, key) -> logits [batch, classes]`, and FLOPs as for `Objective`.

        Raises: as `build`.
        """
        if isinstance(model, TransformerConfig):
            return _of_texts(len(self.classes), model, Vocabulary.of(tokenizer))
        if frontend is None:
            raise ValueError(f"a {model.kind} classifies utterances: it needs a front end")
        return _of_utterances(len(self.classes), model, frontend)


class UtteranceClassifier(nnx.Module):
    """A speech encoder with a linear layer to the classes."""

    def __init__(self, config: EncoderConfig, num_classes: int, *, rngs: nnx.Rngs):
        self.encoder = encoders.make_encoder(config, rngs=rngs)
        self.head = Linear((config.dim,), (num_classes,), ("embed", None), rngs=rngs)


class TextClassifier(nnx.Module):
    """A transformer with a linear layer to the classes."""

    def __init__(self, config: TransformerConfig, vocab_size: int, num_classes: int, *, rngs: nnx.Rngs):
        self.transformer = Transformer(config, vocab_size, rngs=rngs)
        self.head = Linear((config.dim,), (num_classes,), ("embed", None), rngs=rngs)


def _of_utterances(num_classes: int, model: EncoderConfig, frontend: FrontEnd):
    check_features(model, frontend.mel)

    def make(rngs):
        return UtteranceClassifier(model, num_classes, rngs=rngs)

    graphdef = functional.declare(make).graphdef

    def logits(params: functional.Params, batch: Batch, key: PRNGKeyArray | None) -> Array:
        classifier = functional.bind(graphdef, params)
        hidden_BxTxD, frames_B = encode(classifier.encoder, model, batch, frontend, key)
        return classifier.head(_mean(hidden_BxTxD, frame_mask(frames_B, hidden_BxTxD.shape[1])))

    def flops(num_samples: int, batch_size: int) -> float:
        return encoders.forward_flops(model, frontend.mel.num_frames(num_samples), batch_size)

    return make, logits, flops


def _of_texts(num_classes: int, model: TransformerConfig, vocabulary: Vocabulary):
    def make(rngs):
        return TextClassifier(model, vocabulary.size, num_classes, rngs=rngs)

    graphdef = functional.declare(make).graphdef

    def logits(params: functional.Params, batch: Batch, key: PRNGKeyArray | None) -> Array:
        classifier = functional.bind(graphdef, params)
        keys = None if key is None else example_keys(key, batch["example_id"])
        hidden_BxTxD = classifier.transformer(batch["tokens"], batch["segment"], batch["position"], keys)
        # Uses the masked LM's pretrained prediction head, as in Warner et al. 2024.
        return classifier.head(classifier.transformer.head(_mean(hidden_BxTxD, batch["segment"] > 0)))

    def flops(num_tokens: int, batch_size: int) -> float:
        head = num_tokens * batch_size * transformer_config.head_flops(model, vocabulary.size)
        return transformer_config.forward_flops(model, vocabulary.size, num_tokens, batch_size) - head

    return make, logits, flops


def _mean(hidden_BxTxD: Array, inside_BxT: Array) -> Array:
    """Averages each row's hidden states; 0 for a row without any."""
    total = jnp.sum(jnp.where(inside_BxT[..., None], hidden_BxTxD, 0), axis=1)
    return total / jnp.maximum(inside_BxT.sum(1), 1)[:, None]
