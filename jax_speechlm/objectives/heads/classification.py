"""Classification of utterances or texts, from the mean of the hidden states or, of texts, from the first one."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models import transformer_config
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives.base import (
    Metrics,
    Objective,
    check_features,
    on_params,
    row_keys,
    speech_flops,
    weighted,
)
from jax_speechlm.objectives.heads.base import Classes, HeadConfig, SpeechClassifier, encode
from jax_speechlm.objectives.heads.pooling import Pooling, pool

ClassLogits = Callable[[functional.Params, Batch, PRNGKeyArray | None], Float[Array, "batch classes"]]


class Classification(HeadConfig):
    """Settings of classification: of utterances with a speech encoder, of texts with a transformer.

    Attributes:
      pooling: of texts: how the hidden states become one vector.
      pooler: of texts: activation of a linear map of that vector, before the classes; None for no such map.
    """

    classes: Classes
    kind: Literal["classification"] = "classification"
    pooling: Pooling = "mean"
    pooler: Literal["tanh", "relu"] | None = None

    def build(
        self, model: EncoderConfig | TransformerConfig, frontend: FrontEnd | None, tokenizer: Tokenizer | None
    ) -> Objective:
        """Builds the objective. The loss is a mean over rows (nats); the metric `accuracy` is the share of rows
        classified correctly.
        """
        make, logits, flops = self._parts(model, frontend, tokenizer)

        def score(module: nnx.Module, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            batch = by_utterance(batch)
            scores, classes = logits(module, batch, key), batch["label"]
            nll = optax.softmax_cross_entropy_with_integer_labels(scores, classes)
            return weighted(batch["weight"], {"loss": nll, "accuracy": jnp.argmax(scores, axis=-1) == classes})

        return Objective.of(make, score, forward_flops=flops)

    def classifier(
        self, model: EncoderConfig | TransformerConfig, frontend: FrontEnd | None, tokenizer: Tokenizer | None
    ) -> ClassLogits:
        """Returns `(params, batch, key) -> logits [batch, classes]`. Raises as `build`."""
        make, logits, _ = self._parts(model, frontend, tokenizer)

        def classify(module: nnx.Module, batch: Batch, key: PRNGKeyArray | None) -> Float[Array, "batch classes"]:
            return logits(module, by_utterance(batch), key).reshape(-1, len(self.classes))

        return on_params(make, classify)

    def _parts(
        self, model: EncoderConfig | TransformerConfig, frontend: FrontEnd | None, tokenizer: Tokenizer | None
    ) -> tuple[functional.MakeModule, Callable[..., Array], Callable[[int, int], float]]:
        """Returns the module's constructor, `(module, batch, key) -> logits`, and FLOPs as for `Objective`."""
        num_classes = len(self.classes)
        if isinstance(model, TransformerConfig):
            vocab_size = Vocabulary.of(tokenizer).size
            if self.weighted_layers:
                raise ValueError("objective.weighted_layers is of speech encoders: set it to False for texts")

            def flops(num_tokens: int, batch_size: int) -> float:
                head = num_tokens * batch_size * transformer_config.head_flops(model, vocab_size)
                return transformer_config.forward_flops(model, vocab_size, num_tokens, batch_size) - head

            has_pooler = self.pooler is not None
            make = partial(TextClassifier, model, vocab_size, num_classes, has_pooler)
            return lambda rngs: make(rngs=rngs), partial(_text_logits, self), flops
        if frontend is None:
            raise ValueError(f"a {model.kind} classifies utterances: it needs a front end")
        check_features(model, frontend.mel)

        def logits(module: SpeechClassifier, batch: Batch, key: PRNGKeyArray | None) -> Array:
            hidden_BxTxD, segments = encode(module.encoder, batch, frontend, key, module.mix)
            return module.head(segments.mean(hidden_BxTxD))

        flops = speech_flops(model, frontend, lambda num_vectors: 0.0)
        make = partial(SpeechClassifier, model, num_classes, self.weighted_layers)
        return lambda rngs: make(rngs=rngs), logits, flops


class TextClassifier(nnx.Module):
    """A transformer with a linear layer to the classes, and perhaps one before."""

    def __init__(
        self, config: TransformerConfig, vocab_size: int, num_classes: int, has_pooler: bool = False, *, rngs: nnx.Rngs
    ):
        self.transformer = Transformer(config, vocab_size, rngs=rngs)
        self.pooler = Linear((config.dim,), (config.dim,), ("embed", None), rngs=rngs) if has_pooler else None
        self.head = Linear((config.dim,), (num_classes,), ("embed", None), rngs=rngs)


def _text_logits(config: Classification, module: TextClassifier, batch: Batch, key: PRNGKeyArray | None) -> Array:
    inputs = batch["tokens"], batch["segment"], batch["position"]
    hidden_BxTxD = module.transformer(*inputs, row_keys(key, batch))
    pooled_BxD = pool(hidden_BxTxD, batch["segment"] > 0, config.pooling)
    if module.pooler is not None:
        pooled_BxD = _ACTIVATIONS[config.pooler](module.pooler(pooled_BxD))
    # Uses the masked LM's pretrained prediction head, if there is one, as in Warner et al. 2024.
    return module.head(module.transformer.head(pooled_BxD))


_ACTIVATIONS = {"tanh": jnp.tanh, "relu": nnx.relu}
