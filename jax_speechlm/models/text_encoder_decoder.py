"""Text encoder with an attention decoder, for tasks from text to text (Raffel et al. 2020, "T5").

The encoder is a bidirectional transformer, which a masked language model can lend, the decoder that of `aed`.
"""

from typing import Literal

import pydantic
from flax import nnx
from jaxtyping import Array, Int

from jax_speechlm.core.config import Config
from jax_speechlm.models import attention_decoder
from jax_speechlm.models.attention_decoder import AttentionDecoder, AttentionDecoderConfig, Source
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.models.transformer_config import forward_flops as encoder_flops
from jax_speechlm.nn.layers import Keys


class TextEncoderDecoderConfig(Config):
    """The shape of a text encoder with an attention decoder.

    Attributes:
      encoder: encodes the text that is given; bidirectional, without an output layer of its own.
      decoder: generates the text that is asked for.
    """

    kind: Literal["text_encoder_decoder"] = "text_encoder_decoder"
    encoder: TransformerConfig = TransformerConfig.modernbert(head="linear")
    decoder: AttentionDecoderConfig = AttentionDecoderConfig(dim=256, num_layers=4, num_heads=4, ffn_dim=1024)

    @pydantic.model_validator(mode="after")
    def _encodes_only(self):
        if self.encoder.causal:
            raise ValueError("encoder.causal: every token of a given text is known from the start: set it to False")
        if self.encoder.head != "linear" or not self.encoder.tied:
            raise ValueError("encoder.head predicts no token here: set it to linear, and encoder.tied to True")
        return self


class TextEncoderDecoder(nnx.Module):
    """Encoder-decoder with the parameter groups `transformer` and `decoder`."""

    def __init__(self, config: TextEncoderDecoderConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        self.transformer = Transformer(config.encoder, vocab_size, rngs=rngs)
        self.decoder = AttentionDecoder(config.decoder, config.encoder.dim, vocab_size, rngs=rngs)

    def encode(
        self,
        tokens_BxT: Int[Array, "batch time"],
        segment_BxT: Int[Array, "batch time"],
        position_BxT: Int[Array, "batch time"],
        keys: Keys | None = None,
    ) -> Source:
        """Encodes packed rows to what the decoder reads; arguments as of `Transformer`."""
        return self.decoder.read(self.transformer(tokens_BxT, segment_BxT, position_BxT, keys), segment_BxT)


def forward_flops(
    config: TextEncoderDecoderConfig, vocab_size: int, num_given: int, num_asked: int, batch_size: int
) -> float:
    """Returns the FLOPs of the products of one forward pass, padding included; a multiply-add is two."""
    decoder = config.decoder, config.encoder.dim, vocab_size, num_asked, num_given, batch_size
    return encoder_flops(config.encoder, 0, num_given, batch_size) + attention_decoder.forward_flops(*decoder)
