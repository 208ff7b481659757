"""Common interface of the speech encoders, for objectives that can train any of them.

An encoder is called as `encoder(features, length, keys=, chunk=, taps=) -> (hidden states, hidden states by tap)`.
`config.num_frames` is the number of its frames: one for each feature vector (conformer) or for several (FastConformer,
Whisper). Code that depends on one of them, such as masks over a conformer's frames, names its class.
"""

from typing import Annotated

import pydantic
from flax import nnx
from jaxtyping import PRNGKeyArray

from jax_speechlm.models import conformer, fast_conformer, whisper
from jax_speechlm.models.conformer import Conformer, ConformerConfig, Encoder
from jax_speechlm.models.fast_conformer import FastConformer, FastConformerConfig
from jax_speechlm.models.whisper import WhisperEncoder, WhisperEncoderConfig
from jax_speechlm.nn.attention.relative import Chunk

EncoderConfig = ConformerConfig | FastConformerConfig | WhisperEncoderConfig
AnyEncoder = Annotated[EncoderConfig, pydantic.Field(discriminator="kind")]
"""`EncoderConfig` as the field of a config."""


_ENCODERS = {
    ConformerConfig: (Conformer, conformer.forward_flops),
    FastConformerConfig: (FastConformer, fast_conformer.forward_flops),
    WhisperEncoderConfig: (WhisperEncoder, whisper.forward_flops),
}


def make_encoder(config: EncoderConfig, *, rngs: nnx.Rngs) -> Encoder:
    """Declares the encoder's parameters."""
    return _ENCODERS[type(config)][0](config, rngs=rngs)


def forward_flops(config: EncoderConfig, num_vectors: int, batch_size: int) -> float:
    """Returns the FLOPs of one forward pass over `num_vectors` feature vectors a row, padding included."""
    return _ENCODERS[type(config)][1](config, num_vectors, batch_size)


def draw_chunk(config: EncoderConfig, key: PRNGKeyArray) -> Chunk | None:
    """Draws the chunk of a training step (see `conformer.draw_chunk`); None without `chunk_lengths`."""
    return None if isinstance(config, WhisperEncoderConfig) else conformer.draw_chunk(config, key)
