"""The speech encoders, for objectives that can train either.

Both are `encoder(features, length, keys=, chunk=, taps=) -> (hidden states, those after each tap)`. A conformer gives a
frame for each feature vector, a FastConformer one for several: `config.num_frames` says how many. What is read only by
one of them, such as masks over a conformer's frames, names its class.
"""

from typing import Annotated

import pydantic
from flax import nnx
from jaxtyping import PRNGKeyArray

from jax_speechlm.models import conformer, fast_conformer
from jax_speechlm.models.conformer import Conformer, ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformer, FastConformerConfig
from jax_speechlm.nn.attention.relative import Chunk

EncoderConfig = ConformerConfig | FastConformerConfig
AnyEncoder = Annotated[EncoderConfig, pydantic.Field(discriminator="kind")]
"""The same as a field of a config."""


def make_encoder(config: EncoderConfig, *, rngs: nnx.Rngs) -> Conformer | FastConformer:
    """Declares the encoder's parameters."""
    return (Conformer if isinstance(config, ConformerConfig) else FastConformer)(config, rngs=rngs)


def forward_flops(config: EncoderConfig, num_vectors: int, batch_size: int) -> float:
    """FLOPs of the matrix products of one forward pass over so many feature vectors a row, padding included."""
    module = conformer if isinstance(config, ConformerConfig) else fast_conformer
    return module.forward_flops(config, num_vectors, batch_size)


def draw_chunk(config: EncoderConfig, key: PRNGKeyArray) -> Chunk | None:
    """The chunk of one training step (see `conformer.draw_chunk`); a FastConformer looks ahead, and has none."""
    return conformer.draw_chunk(config, key) if isinstance(config, ConformerConfig) else None
