"""Placeholder objective of an imported text encoder, for embedding and for initialising other runs."""

from typing import Literal

from flax import nnx

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives.base import Objective, ObjectiveConfig
from jax_speechlm.objectives.heads.pooling import Pooling


class TextEncoding(ObjectiveConfig):
    """A text encoder without a loss, as created by `jax-speechlm import` from a folder with an encoder only.

    Attributes:
      pooling: how `embed` makes a vector of a text's hidden states.
      normalize: whether that vector gets unit length.
      pooler: whether the model has BERT's linear map on the first token, which `embed` does not use: it is pretrained
        for heads of classification.
    """

    kind: Literal["text_encoder"] = "text_encoder"
    pooling: Pooling = "mean"
    normalize: bool = False
    pooler: bool = False

    def build(
        self, model: TransformerConfig, frontend: FrontEnd | None = None, tokenizer: Tokenizer | None = None
    ) -> Objective:
        """Builds the model, with a loss that raises ValueError."""
        vocab_size = Vocabulary.of(tokenizer).size

        def loss(params, batch, key):
            raise ValueError(
                "a text encoder alone has nothing to train by: start another run from it, with --from and the config "
                "of an objective, such as classification"
            )

        return Objective(lambda rngs: _TextEncoder(model, vocab_size, self.pooler, rngs=rngs), loss)


class _TextEncoder(nnx.Module):
    def __init__(self, config: TransformerConfig, vocab_size: int, has_pooler: bool, *, rngs: nnx.Rngs):
        self.transformer = Transformer(config, vocab_size, rngs=rngs)
        self.pooler = Linear((config.dim,), (config.dim,), ("embed", None), rngs=rngs) if has_pooler else None
