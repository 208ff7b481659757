"""Parts shared by objectives with a head on a speech encoder."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import AfterValidator, Field

from jax_speechlm.core.batch import Batch
from jax_speechlm.core.segments import Lengths
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models import encoders
from jax_speechlm.models.encoder_base import Encoder, frames_of
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives.base import ObjectiveConfig, row_keys


def distinct(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns names of classes; raises ValueError if two are equal."""
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes must be distinct, got {', '.join(classes)}")
    return classes


Classes = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(distinct)]
"""Class names in the order of their ids."""


class HeadConfig(ObjectiveConfig):
    """Base of objectives with a head on a speech encoder.

    Attributes:
      weighted_layers: whether the head takes a learnt weighted sum of the outputs of all layers, the input of the first
        included (Yang et al. 2021, "SUPERB"); otherwise it takes the encoder's output.
    """

    weighted_layers: bool = False


def layer_weights(config: EncoderConfig, is_weighted: bool, rngs: nnx.Rngs) -> nnx.Param | None:
    """Declares the weights of a sum of layers, of which the softmax is taken; None without such a sum."""
    zeros = jax.nn.initializers.zeros
    return parameter(rngs.params(), (config.num_layers + 1,), (None,), zeros, decays=False) if is_weighted else None


def hidden_states(
    encoder: Encoder,
    x_BxTxF: Float[Array, "batch vectors features"],
    lengths: Lengths,
    mix: nnx.Param | Array | None,
) -> Float[Array, "batch time dim"]:
    """Returns the encoder's output, or with `layer_weights` the weighted sum of its layers."""
    output, tapped = encoder(x_BxTxF, lengths, taps=_taps(encoder, mix))
    return _mixed(output, tapped, mix)


def _taps(encoder: Encoder, mix: nnx.Param | Array | None) -> tuple[int, ...]:
    return () if mix is None else tuple(range(encoder.config.num_layers + 1))


def _mixed(output: Array, tapped: dict[int, Array], mix: nnx.Param | Array | None) -> Float[Array, "batch time dim"]:
    if mix is None:
        return output
    return jnp.einsum("l,lbtd->btd", jax.nn.softmax(mix[...]), jnp.stack(list(tapped.values())))


class SpeechClassifier(nnx.Module):
    """A speech encoder with a linear layer to the classes of utterances or frames."""

    def __init__(self, config: EncoderConfig, num_classes: int, is_weighted: bool = False, *, rngs: nnx.Rngs):
        self.encoder = encoders.make_encoder(config, rngs=rngs)
        self.mix = layer_weights(config, is_weighted, rngs)
        self.head = Linear((config.dim,), (num_classes,), ("embed", None), rngs=rngs)


def encode(
    encoder: Encoder, batch: Batch, frontend: FrontEnd, key: PRNGKeyArray | None, mix: nnx.Param | None = None
) -> tuple[Float[Array, "batch time dim"], Lengths]:
    """Runs the encoder on a batch, with augmentation and dropout if there is a key.

    Returns:
      The `hidden_states`, and the utterances of packed rows in frames, or frames per row.
    """
    output, tapped, lengths = encode_layers(encoder, batch, frontend, key, _taps(encoder, mix))
    return _mixed(output, tapped, mix), lengths


def encode_layers(
    encoder: Encoder,
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
