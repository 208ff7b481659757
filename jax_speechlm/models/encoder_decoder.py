"""Speech encoder with an attention decoder (Chan et al. 2016): Whisper, and the same over any encoder."""

from typing import Literal

from flax import nnx
from jaxtyping import Array, Float, Key

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.models import whisper
from jax_speechlm.models.attention_decoder import AttentionDecoder, AttentionDecoderConfig, Source
from jax_speechlm.models.encoder_base import frames_of
from jax_speechlm.models.encoders import AnyEncoder, make_encoder
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.nn.functional import Remat
from jax_speechlm.nn.layers import Linear
from jax_speechlm.nn.lora import LoRA, adapt, make_updates
from jax_speechlm.parallel.mesh import shard_batch_dim


class EncoderDecoderConfig(Config):
    """The shape of an encoder with an attention decoder.

    Attributes:
      encoder: maps features to frames.
      decoder: generates the text.
      lora: low-rank updates of linear maps of both; none by default.
    """

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    encoder: AnyEncoder = WhisperEncoderConfig()
    decoder: AttentionDecoderConfig = AttentionDecoderConfig()
    lora: LoRA = LoRA(targets=("encoder/layers/attention", "decoder/layers/attention", "decoder/layers/source"))

    @property
    def input_dim(self) -> int:
        """Values of a feature vector."""
        return self.encoder.input_dim

    @property
    def subsampling(self) -> int:
        """Feature vectors of one frame of the encoder."""
        return self.encoder.subsampling

    @property
    def remat(self) -> Remat:
        """Rematerialisation of the larger stack, the encoder."""
        return self.encoder.remat


class EncoderDecoder(nnx.Module):
    """Encoder-decoder with the parameter groups `encoder`, `decoder`, with a CTC head `head`, and with LoRA `lora`.

    Args:
      vocab_size: ids of the decoder.
      ctc_vocab_size: ids of the CTC head on the encoder, the blank included; 0 for no head.
    """

    def __init__(self, config: EncoderDecoderConfig, vocab_size: int, *, ctc_vocab_size: int = 0, rngs: nnx.Rngs):
        self.config = config
        self.encoder = make_encoder(config.encoder, rngs=rngs)
        self.decoder = AttentionDecoder(config.decoder, config.encoder.dim, vocab_size, rngs=rngs)
        if ctc_vocab_size:
            self.head = Linear((config.encoder.dim,), (ctc_vocab_size,), ("embed", "vocab"), rngs=rngs)
        if config.lora.rank:
            self.lora = make_updates(self, config.lora, rngs=rngs)

    def with_lora(self) -> "EncoderDecoder":
        """Returns this newly bound module with the updates of LoRA applied to its linear maps."""
        if hasattr(self, "lora"):
            adapt(self, self.lora, self.config.lora)
        return self

    def encode_speech(
        self,
        features_BxTxF: Float[Array, "batch time feature"],
        lengths: Lengths,
        *,
        keys: Key[Array, "*utterances"] | None = None,
        chunk: Chunk | None = None,
    ) -> tuple[Float[Array, "batch frames dim"], Segments]:
        """Encodes speech to frames and the utterances among them; arguments as of the encoder."""
        frames_BxTxD, _ = self.encoder(features_BxTxF, lengths, keys=keys, chunk=chunk)
        return frames_BxTxD, Segments.of(frames_of(self.config.encoder, lengths))

    def read(self, frames_BxTxD: Float[Array, "batch frames dim"], segments: Segments) -> Source:
        """Computes what the decoder reads of encoded frames."""
        return self.decoder.read(frames_BxTxD, segments.segment(frames_BxTxD.shape[1]))

    def read_speech(self, features_BxTxF: Float[Array, "batch time feature"], lengths: Lengths) -> Source:
        """Encodes speech to what the decoder reads."""
        return self.read(*self.encode_speech(features_BxTxF, lengths))

    def ctc_logits(self, frames_BxTxD: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames vocab"]:
        """Computes logits of the CTC head, sharded over the batch only: an alignment covers the whole time axis."""
        return shard_batch_dim(self.head(frames_BxTxD))


def _published(encoder: WhisperEncoderConfig, layers: int | None = None) -> EncoderDecoderConfig:
    shape = {"dim": encoder.dim, "num_heads": encoder.num_heads, "ffn_dim": encoder.ffn_dim}
    decoder = AttentionDecoderConfig(num_layers=layers or encoder.num_layers, **shape)
    return EncoderDecoderConfig(encoder=encoder, decoder=decoder)


SIZES = {name: _published(encoder) for name, encoder in whisper.SIZES.items()}
SIZES["large-v3-turbo"] = _published(whisper.SIZES["large-v3"], layers=4)
"""The shapes of Whisper's published models."""
