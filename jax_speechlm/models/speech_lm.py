"""Speech-language model with continuous speech input: speech encoder -> adapter -> causal transformer.

The transformer's input is one sequence of vectors for each utterance, some of which are speech:

    boundary, prompt before speech, speech, prompt after speech, answer

A row holds the sequences of its utterances one after another. Token ids and speech vectors are put there by moving the
spans of the utterances (`core.segments.move`), and no gradient needs a scatter.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments, move
from jax_speechlm.models.adapter import AdapterConfig, Stacking
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.encoder_base import frames_of
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
    def alignment(self) -> int:
        """Divisor of the frame at which an utterance of a packed row starts."""
        return self.adapter.alignment

    @property
    def remat(self) -> Remat:
        """Rematerialisation of the larger stack, the transformer."""
        return self.transformer.remat


class Sequence(NamedTuple):
    """Input of the transformer.

    Attributes:
      vectors: embeddings and speech vectors; arbitrary at padding, which follows the last token.
      is_speech: True at speech vectors.
      utterances: sequences of the utterances, in vectors.
      start: index of each answer's first token.
    """

    vectors: Float[Array, "batch time dim"]
    is_speech: Bool[Array, "batch time"]
    utterances: Segments
    start: Int[Array, "batch utterances"]

    @property
    def segment(self) -> Int[Array, "batch time"]:
        """Utterance of each vector, from 1; 0 at padding."""
        return self.utterances.segment(self.is_speech.shape[1])

    @property
    def position(self) -> Int[Array, "batch time"]:
        """Index of each vector in its utterance."""
        return self.utterances.position(self.is_speech.shape[1])


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
        speech_lengths: Lengths,
        after_Q: Int[np.ndarray, " after"],
        answer_BxNxU: Int[Array, "batch utterances answer"],
        answer_length_BxN: Int[Array, "batch utterances"],
        *,
        num_text: int,
        present_BxN: Bool[Array, "batch utterances"] | bool = True,
    ) -> Sequence:
        """Concatenates, for each utterance of a row, the prompt before the speech, the speech, the prompt after it and
        the answer; padding is at the end of the row.

        Args:
          before_P, after_Q: token ids of the prompt, the same for all utterances.
          speech_lengths: vectors of each utterance.
          answer_BxNxU: token ids; arbitrary beyond `answer_length_BxN`.
          num_text: most tokens of a row, of prompts and answers together.
          present_BxN: utterances that the row has; the others take no place.

        Returns:
          The input of the transformer, of rows of as many vectors as the speech has and `num_text`.
        """
        speech, num_before, num_prompt = Segments.of(speech_lengths), len(before_P), len(before_P) + len(after_Q)
        batch, num, most = answer_BxNxU.shape
        length = speech_BxNxD.shape[1] + num_text
        present = jnp.broadcast_to(present_BxN, speech.length.shape)
        speech_length, answer_length = (jnp.where(present, x, 0) for x in (speech.length, answer_length_BxN))
        utterances = Segments.one_after_another(present * (num_prompt + speech_length + answer_length))
        start = utterances.start + num_prompt + speech_length

        index = utterances.position(length) - num_before  # from the first speech vector on
        count = utterances.spread(speech_length, length)
        is_speech = (index >= 0) & (index < count)
        index = num_before + jnp.where(index < count, jnp.minimum(index, 0), index - count)  # in the prompt
        whole = jnp.broadcast_to(most * jnp.arange(num), answer_length.shape)
        answers = answer_BxNxU.reshape(batch, num * most).astype(jnp.int32)
        answers = move(answers, Segments(whole, answer_length), Segments(start, answer_length), length)
        fixed = jnp.asarray(np.concatenate([before_P, after_Q, [0]]), jnp.int32)
        tokens = jnp.where(index < num_prompt, fixed[jnp.clip(index, 0, num_prompt)], answers)

        embedded = self.transformer.embed(tokens)
        spans = speech._replace(length=speech_length), Segments(utterances.start + num_before, speech_length)
        vectors = move(speech_BxNxD.astype(embedded.dtype), *spans, length)
        vectors = jnp.where(is_speech[..., None], vectors, embedded)
        return Sequence(shard_batch_dim(vectors), is_speech, utterances, start)


def speech_attention(
    q_BxTxHxK: Float[Array, "batch time heads head_dim"],
    k_BxTxGxK: Float[Array, "batch time kv_heads head_dim"],
    sequence: Sequence,
    rows_BxU: Int[Array, "batch answer"],
) -> Float[Array, "batch answer"]:
    """Computes the attention weight that the vectors at `rows_BxU` give to speech, averaged over heads.

    It evaluates the formula, whatever the model's kernel, because kernels do not return weights. Windows are ignored.

    Args:
      rows_BxU: indices of vectors in the row.

    Returns:
      Shares between 0 and 1.
    """
    length = sequence.is_speech.shape[1]  # q and k may be padded to divide over devices
    q, k = jax.lax.stop_gradient((q_BxTxHxK[:, :length], k_BxTxGxK[:, :length]))
    q_BxUxGxRxK = jnp.take_along_axis(q, rows_BxU[..., None, None], axis=1).reshape(
        *rows_BxU.shape, k.shape[2], -1, k.shape[3]
    )
    scores = jnp.einsum("bugrk,bsgk->bgrus", q_BxUxGxRxK, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    segment = sequence.segment
    visible = jnp.arange(length) <= rows_BxU[..., None]
    visible &= segment[:, None] == jnp.take_along_axis(segment, rows_BxU, axis=1)[..., None]
    weights = jax.nn.softmax(masked_scores(scores, visible[:, None, None]), axis=-1)
    on_speech = jnp.einsum("bgrus,bs->bgru", weights, sequence.is_speech.astype(jnp.float32))
    return on_speech.mean((1, 2))
