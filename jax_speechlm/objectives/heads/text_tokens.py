"""Heads on every token of a text: classes (names of persons and places), or the ends of an answer in a text.

Their models come from `jax-speechlm import`: no prepared set has labels of tokens, so there is no training.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.base import Objective, ObjectiveConfig, on_params, row_keys
from jax_speechlm.objectives.heads.base import Classes
from jax_speechlm.objectives.heads.classification import TextClassifier

TokenLogits = Callable[[functional.Params, Batch, PRNGKeyArray | None], Float[Array, "batch time outputs"]]


class _TokenHead(ObjectiveConfig):
    """A transformer with a linear map of each hidden state to `num_outputs` logits."""

    num_outputs: ClassVar[int]

    def _build(self, model: TransformerConfig, tokenizer: Tokenizer | None) -> Objective:
        def loss(params, batch, key):
            raise ValueError(
                f"{self.kind} is for imported models: no data here has labels of tokens. Finetune it in transformers, "
                "and import that"
            )

        return Objective(self._maker(model, tokenizer), loss)

    def classifier(
        self, model: TransformerConfig, frontend: FrontEnd | None, tokenizer: Tokenizer | None
    ) -> TokenLogits:
        """Returns `(params, batch, key) -> logits [batch, time, outputs]`; `batch` may have `token_type` [B, T]."""

        def logits(module: TextClassifier, batch: Batch, key: PRNGKeyArray | None) -> Array:
            inputs = batch["tokens"], batch["segment"], batch["position"]
            hidden_BxTxD = module.transformer(*inputs, row_keys(key, batch), type_BxT=batch.get("token_type"))
            return module.head(module.transformer.head(hidden_BxTxD))

        return on_params(self._maker(model, tokenizer), logits)

    def _maker(self, model: TransformerConfig, tokenizer: Tokenizer | None) -> Callable[[nnx.Rngs], nnx.Module]:
        vocab_size = Vocabulary.of(tokenizer).size
        return lambda rngs: TextClassifier(model, vocab_size, self.num_outputs, rngs=rngs)


class TokenClassification(_TokenHead):
    """Classes of the tokens of a text, as of an imported model.

    Attributes:
      classes: their names; "B-" begins an entity that "I-" continues, "O" is outside of any.
    """

    classes: Classes
    kind: Literal["token_classification"] = "token_classification"

    def build(
        self, model: TransformerConfig, frontend: FrontEnd | None = None, tokenizer: Tokenizer | None = None
    ) -> Objective:
        """Builds the model, with a loss that raises ValueError."""
        return self._build(model, tokenizer)

    @property
    def num_outputs(self) -> int:
        return len(self.classes)


class QuestionAnswering(_TokenHead):
    """The first and the last token of the answer to a question in a text, as of an imported model."""

    num_outputs: ClassVar[int] = 2
    kind: Literal["question_answering"] = "question_answering"

    def build(
        self, model: TransformerConfig, frontend: FrontEnd | None = None, tokenizer: Tokenizer | None = None
    ) -> Objective:
        """Builds the model, with a loss that raises ValueError."""
        return self._build(model, tokenizer)
