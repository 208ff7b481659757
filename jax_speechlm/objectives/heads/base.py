"""Parts shared by objectives with a head on a speech encoder."""

from typing import Annotated

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import AfterValidator, Field

from jax_speechlm.core.batch import Batch
from jax_speechlm.core.segments import Lengths
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models import encoders
from jax_speechlm.models.conformer import Conformer, frames_of
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.fast_conformer import FastConformer
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives.base import row_keys


def distinct(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns names of classes; raises ValueError if two are equal."""
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes must be distinct, got {', '.join(classes)}")
    return classes


Classes = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(distinct)]
"""Class names in the order of their ids."""


class SpeechClassifier(nnx.Module):
    """A speech encoder with a linear layer to the classes of utterances or frames."""

    def __init__(self, config: EncoderConfig, num_classes: int, *, rngs: nnx.Rngs):
        self.encoder = encoders.make_encoder(config, rngs=rngs)
        self.head = Linear((config.dim,), (num_classes,), ("embed", None), rngs=rngs)


def encode(
    encoder: Conformer | FastConformer, batch: Batch, frontend: FrontEnd, key: PRNGKeyArray | None
) -> tuple[Float[Array, "batch time dim"], Lengths]:
    """Runs the encoder on a batch, with augmentation and dropout if there is a key.

    Returns:
      The last layer's hidden states, and the utterances of packed rows in frames, or frames per row.
    """
    hidden_BxTxD, _, lengths = encode_layers(encoder, batch, frontend, key, ())
    return hidden_BxTxD, lengths


def encode_layers(
    encoder: Conformer | FastConformer,
    batch: Batch,
    frontend: FrontEnd,
    key: PRNGKeyArray | None,
    taps: tuple[int, ...],
) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]], Lengths]:
    """Returns the results of `encode`, and between them the hidden states after some layers (`Encoder.__call__`)."""
    dropout_keys, chunk = None, None
    if key is not None:
        key, dropout_key, chunk_key = jax.random.split(key, 3)
        dropout_keys, chunk = row_keys(dropout_key, batch), encoders.draw_chunk(encoder.config, chunk_key)
    x_BxTxF, lengths = features(batch, frontend, key)
    hidden_BxTxD, tapped = encoder(x_BxTxF, lengths, keys=dropout_keys, chunk=chunk, taps=taps)
    return hidden_BxTxD, tapped, frames_of(encoder.config, lengths)
