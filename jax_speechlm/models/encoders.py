"""Common interface of the speech encoders, for objectives that can train any of them.

An encoder is called as `encoder(features, length, keys=, chunk=, taps=) -> (hidden states, hidden states by tap)`.
`config.num_frames` is the number of its frames: one for each feature vector (conformer, CNN, RNN) or for several
(FastConformer, Whisper, wav2vec 2.0). Code that depends on one of them, such as masks over a conformer's frames, names
its class.
"""

from typing import Annotated

import pydantic
from flax import nnx
from jaxtyping import PRNGKeyArray

from jax_speechlm.core.config import Config
from jax_speechlm.models import cnn, conformer, fast_conformer, rnn, wav2vec2, whisper
from jax_speechlm.models.cnn import CNN, CNNConfig
from jax_speechlm.models.conformer import Conformer, ConformerConfig
from jax_speechlm.models.encoder_base import Encoder
from jax_speechlm.models.fast_conformer import FastConformer, FastConformerConfig
from jax_speechlm.models.rnn import RNN, RNNConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2Encoder, Wav2Vec2EncoderConfig
from jax_speechlm.models.whisper import WhisperEncoder, WhisperEncoderConfig
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.parallel import sequence

EncoderConfig = (
    ConformerConfig | FastConformerConfig | WhisperEncoderConfig | Wav2Vec2EncoderConfig | CNNConfig | RNNConfig
)
AnyEncoder = Annotated[EncoderConfig, pydantic.Field(discriminator="kind")]
"""`EncoderConfig` as the field of a config."""


_ENCODERS = {
    ConformerConfig: (Conformer, conformer.forward_flops),
    FastConformerConfig: (FastConformer, fast_conformer.forward_flops),
    WhisperEncoderConfig: (WhisperEncoder, whisper.forward_flops),
    Wav2Vec2EncoderConfig: (Wav2Vec2Encoder, wav2vec2.forward_flops),
    CNNConfig: (CNN, cnn.forward_flops),
    RNNConfig: (RNN, rnn.forward_flops),
}


def make_encoder(config: EncoderConfig, *, rngs: nnx.Rngs) -> Encoder:
    """Declares the encoder's parameters."""
    return _ENCODERS[type(config)][0](config, rngs=rngs)


def forward_flops(config: EncoderConfig, num_vectors: int, batch_size: int) -> float:
    """Returns the FLOPs of one forward pass over `num_vectors` feature vectors a row, padding included."""
    return _ENCODERS[type(config)][1](config, num_vectors, batch_size)


def row_frames(config: EncoderConfig, num_vectors: int) -> int:
    """Returns the frames that `embed` gives of a row of `num_vectors` feature vectors, padding included."""
    return sequence.padded_time(max(config.num_frames(num_vectors), 1))


def target_dim(config: EncoderConfig) -> int:
    """Returns the width of the encoder's `targets`."""
    return config.channels[-1] if isinstance(config, Wav2Vec2EncoderConfig) else config.dim


def outside_vectors(config: Config) -> int:
    """Returns the feature vectors that a model's frame depends on beyond the distance of frames."""
    return config.reach - config.subsampling if isinstance(config, Wav2Vec2EncoderConfig) else 0


def draw_chunk(config: EncoderConfig, key: PRNGKeyArray) -> Chunk | None:
    """Draws the chunk of a training step (see `conformer.draw_chunk`); None without `chunk_lengths`."""
    return conformer.draw_chunk(config, key) if hasattr(config, "chunk_lengths") else None
