"""Speech-language model with continuous speech input: speech encoder -> adapter -> causal transformer.

The transformer's input is one sequence of vectors, some of which are speech:

    boundary, prompt before speech, speech, prompt after speech, answer

Before the answer only the speech varies in length, and it starts at the same position in every row. So token ids are
arranged by a gather of integers, speech vectors by padding, and no gradient needs a scatter.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths
from jax_speechlm.models.adapter import AdapterConfig, Stacking
from jax_speechlm.models.conformer import ConformerConfig, frames_of
from jax_speechlm.models.encoders import AnyEncoder, make_encoder
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn.attention.masks import masked_scores
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.nn.functional import Remat
from jax_speechlm.nn.lora import LoRA, adapt, make_updates
from jax_speechlm.parallel.mesh import shard_batch_dim


class SpeechLMConfig(Config):
    """The shape of a speech-language model.

    Attributes:
      encoder: maps features to frames.
      adapter: maps frames to vectors of the transformer's width.
      transformer: generates the answer; causal.
      lora: low-rank updates of linear maps of encoder and transformer; none by default.
    """

    kind: Literal["speech_lm"] = "speech_lm"
    encoder: AnyEncoder = ConformerConfig()
    adapter: AdapterConfig = Stacking()
    transformer: TransformerConfig = TransformerConfig()
    lora: LoRA = LoRA()

    @pydantic.field_validator("transformer")
    @classmethod
    def _answers_in_order(cls, value: TransformerConfig) -> TransformerConfig:
        if not value.causal:
            raise ValueError(
                "a speech-language model generates its answer token by token: set model.transformer.causal=True"
            )
        return value

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
        """Rematerialisation of the larger stack, the transformer."""
        return self.transformer.remat


class Sequence(NamedTuple):
    """Input of the transformer.

    Attributes:
      vectors: embeddings and speech vectors; arbitrary at padding, which follows the last token.
      segment: 1, and 0 at padding.
      position: index in the row.
      is_speech: True at speech vectors.
      start: index of the answer's first token.
    """

    vectors: Float[Array, "batch time dim"]
    segment: Int[Array, "batch time"]
    position: Int[Array, "batch time"]
    is_speech: Bool[Array, "batch time"]
    start: Int[Array, " batch"]


class SpeechTransformer(nnx.Module):
    """Speech-language model with the parameter groups `encoder`, `adapter`, `transformer` and, with LoRA, `lora`."""

    def __init__(self, config: SpeechLMConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = make_encoder(config.encoder, rngs=rngs)
        self.adapter = config.adapter.build(config.encoder.dim, config.transformer.dim, rngs)
        self.transformer = Transformer(config.transformer, vocab_size, rngs=rngs)
        if config.lora.rank:
            self.lora = make_updates(self, config.lora, rngs=rngs)

    def with_lora(self) -> "SpeechTransformer":
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
    ) -> tuple[Float[Array, "batch outputs dim"], Lengths]:
        """Encodes speech.

        Args:
          lengths: feature vectors per row, or the utterances of packed rows.

        Returns:
          The adapter's vectors, and their number per row, or the utterances in vectors.
        """
        frames_BxTxD, _ = self.encoder(features_BxTxF, lengths, keys=keys, chunk=chunk)
        return self.adapter(frames_BxTxD, frames_of(self.config.encoder, lengths))

    def lay_out(
        self,
        before_P: Int[np.ndarray, " before"],
        speech_BxNxD: Float[Array, "batch outputs dim"],
        speech_length_B: Int[Array, " batch"],
        after_Q: Int[np.ndarray, " after"],
        answer_BxU: Int[Array, "batch answer"],
        answer_length_B: Int[Array, " batch"],
    ) -> Sequence:
        """Concatenates the prompt before the speech, speech, the prompt after it and the answer, padding at the end.

        Args:
          before_P, after_Q: token ids of the prompt, the same for all rows.
          answer_BxU: token ids; arbitrary beyond `answer_length_B`.

        Returns:
          The input of the transformer.
        """
        num_before, num_after, num_speech = len(before_P), len(after_Q), speech_BxNxD.shape[1]
        length = num_before + num_speech + num_after + answer_BxU.shape[1]
        place_L = jnp.arange(length, dtype=jnp.int32)
        start_B = num_before + speech_length_B + num_after
        fixed = jnp.asarray(np.concatenate([before_P, after_Q]), jnp.int32)
        text = jnp.concatenate([jnp.tile(fixed, (len(answer_BxU), 1)), answer_BxU.astype(jnp.int32)], axis=1)
        after_speech = place_L >= num_before + speech_length_B[:, None]
        index = jnp.where(after_speech, place_L - speech_length_B[:, None], jnp.minimum(place_L, num_before - 1))
        tokens_BxL = jnp.take_along_axis(text, jnp.clip(index, 0, text.shape[1] - 1), axis=1)

        is_speech_BxL = (place_L >= num_before) & ~after_speech
        speech = jnp.pad(speech_BxNxD, ((0, 0), (num_before, length - num_before - num_speech), (0, 0)))
        embedded = self.transformer.embed(tokens_BxL)
        vectors = jnp.where(is_speech_BxL[..., None], speech.astype(embedded.dtype), embedded)
        real = place_L < start_B[:, None] + answer_length_B[:, None]
        position = jnp.broadcast_to(place_L, real.shape)
        return Sequence(shard_batch_dim(vectors), real.astype(jnp.int32), position, is_speech_BxL, start_B)


def speech_attention(
    q_BxTxHxK: Float[Array, "batch time heads head_dim"],
    k_BxTxGxK: Float[Array, "batch time kv_heads head_dim"],
    sequence: Sequence,
    rows_BxU: Int[Array, "batch answer"],
) -> Float[Array, "batch answer"]:
    """Computes the attention weight that the vectors at `rows_BxU` give to speech, averaged over heads.

    It evaluates the formula, whatever the model's kernel, because kernels do not return weights. Windows are ignored.

    Args:
      rows_BxU: indices of vectors in the sequence.

    Returns:
      Shares between 0 and 1.
    """
    length = sequence.is_speech.shape[1]  # q and k may be padded to divide over devices
    q, k = jax.lax.stop_gradient((q_BxTxHxK[:, :length], k_BxTxGxK[:, :length]))
    q_BxUxGxRxK = jnp.take_along_axis(q, rows_BxU[..., None, None], axis=1).reshape(
        *rows_BxU.shape, k.shape[2], -1, k.shape[3]
    )
    scores = jnp.einsum("bugrk,bsgk->bgrus", q_BxUxGxRxK, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    visible = jnp.arange(q.shape[1]) <= rows_BxU[..., None]
    weights = jax.nn.softmax(masked_scores(scores, visible[:, None, None]), axis=-1)
    on_speech = jnp.einsum("bgrus,bs->bgru", weights, sequence.is_speech.astype(jnp.float32))
    return on_speech.mean((1, 2))
