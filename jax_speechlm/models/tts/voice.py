"""An acoustic model together with the language model, if it has one, whose hidden states it reads.

The language model encodes the same tokens, between the same boundaries, as in its own training, so it needs the same
tokenizer. A linear map adds its hidden states to the token embeddings (Hayashi et al. 2019, "Pre-trained text
embeddings for enhanced text-to-speech synthesis").
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.segments import Segments
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2, FastSpeech2Config
from jax_speechlm.models.tts.text import num_ids
from jax_speechlm.nn.lora import adapt, make_updates

GROUPS = ("acoustic", "transformer", "lora")
"""The parameter groups of a voice: with a language model the second, with LoRA the third."""


class Voice(nnx.Module):
    """An acoustic model and, if configured, its language model and the low-rank updates of that."""

    def __init__(self, config: FastSpeech2Config, tokenizer: Tokenizer, num_speakers: int, *, rngs: nnx.Rngs):
        self.text_lm = config.text_lm
        self.acoustic = FastSpeech2(config, num_ids(tokenizer), num_speakers, rngs=rngs)
        if config.text_lm is not None:
            self.transformer = Transformer(config.text_lm.transformer, Vocabulary.of(tokenizer).size, rngs=rngs)
            if config.text_lm.lora.rank:
                self.lora = make_updates(self, config.text_lm.lora, rngs=rngs)

    def with_lora(self) -> "Voice":
        """Returns this newly bound module with the updates of LoRA applied to its linear maps."""
        if hasattr(self, "lora"):
            adapt(self, self.lora, self.text_lm.lora)
        return self

    def encode(
        self,
        tokens_BxS: Int[Array, "batch tokens"],
        segments: Segments,
        speaker_BxN: Int[Array, "batch utterances"] | None = None,
        keys: Key[Array, "batch utterances"] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        """Encodes tokens, see `FastSpeech2.encode`; the language model has no dropout."""
        return self.acoustic.encode(tokens_BxS, segments, speaker_BxN, keys, self._states(tokens_BxS, segments))

    def with_durations(
        self,
        tokens_BxS: Int[Array, "batch tokens"],
        segments: Segments,
        speaker_Bx1: Int[Array, "batch 1"],
        speed: float | Float[Array, ""] = 1.0,
    ) -> tuple[Float[Array, "batch tokens dim"], Int[Array, "batch tokens"]]:
        """Encodes texts to be spoken, see `FastSpeech2.with_durations`."""
        states = self._states(tokens_BxS, segments)
        return self.acoustic.with_durations(tokens_BxS, segments, speaker_Bx1, speed, states)

    def _states(self, tokens_BxS: Array, segments: Segments) -> Float[Array, "batch tokens states"] | None:
        if self.text_lm is None:
            return None
        segment, position = (part(tokens_BxS.shape[1]) for part in (segments.segment, segments.position))
        return self.transformer(tokens_BxS, segment, jnp.where(segment > 0, position, 0))
