"""Placeholder objective of an imported speech encoder, for initialising other runs, embedding and probing."""

from typing import Literal

from flax import nnx

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.encoders import EncoderConfig, make_encoder
from jax_speechlm.objectives.base import Objective, ObjectiveConfig, check_features


class EncoderOnly(ObjectiveConfig):
    """An encoder without a loss, as created by `jax-speechlm import` from a folder with an encoder only."""

    kind: Literal["encoder"] = "encoder"

    def build(self, model: EncoderConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the model, with a loss that raises ValueError; so do features that do not fit the model."""
        check_features(model, frontend.mel)

        def loss(params, batch, key):
            raise ValueError(
                "an encoder alone has nothing to train by: start another run from it, with --from and the config of "
                "an objective, such as jax-speechlm finetune --from RUN"
            )

        return Objective(lambda rngs: _Encoder(model, rngs=rngs), loss)


class _Encoder(nnx.Module):
    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.encoder = make_encoder(config, rngs=rngs)
