"""Attention encoder-decoder: cross-entropy of each token of a transcript, given the speech and the tokens before it.

With a CTC head on the encoder it is the hybrid of Watanabe et al. 2017.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray
from pydantic import Field

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance, text_places
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments, move
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models import attention_decoder, encoders
from jax_speechlm.models.attention_decoder import AttentionDecoder
from jax_speechlm.models.encoder_base import frames_of
from jax_speechlm.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import FrameKeys
from jax_speechlm.objectives.asr.ctc_loss import packed_ctc_loss
from jax_speechlm.objectives.asr.whisper_tokens import WhisperTokens
from jax_speechlm.objectives.base import (
    Metrics,
    Objective,
    ObjectiveConfig,
    check_features,
    check_no_crop,
    on_params,
    row_keys,
)
from jax_speechlm.objectives.lm.causal_lm import token_metrics


class AED(ObjectiveConfig):
    """Settings of the attention encoder-decoder's objective.

    Attributes:
      label_smoothing: share of the target distribution that is uniform over the vocabulary (Szegedy et al. 2016).
      freeze: parameter groups that are not trained; they have no gradient and no dropout. With LoRA both,
        "encoder" and "decoder".
      whisper: special ids of an imported Whisper, which its prompts are made of; None for a model whose texts begin
        with the boundary.
      language: code of the texts' language, for a multilingual Whisper, which finds it by itself in transcription if
        None; training needs it.
      task: "translate" trains on the English translation of each utterance in place of its text.
      ctc_weight: share of the CTC loss of a linear head on the encoder in the total; 0 for no head. The head keeps the
        decoder's reading in order, measures WER during training, aligns, and has its part in the beam search.
    """

    kind: Literal["aed"] = "aed"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    freeze: tuple[str, ...] = ()
    whisper: WhisperTokens | None = None
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    ctc_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def text_column(self) -> str:
        return "translation" if self.task == "translate" else "text"

    def added_tokens(self, tokenizer: Tokenizer | None) -> int:
        return len(self.prompt_ids(tokenizer))

    def prompt_ids(self, tokenizer: Tokenizer | None, timestamps: bool = False) -> Int[np.ndarray, " prompt"]:
        """Returns the ids before a text; Whisper's ask for times in it with `timestamps`."""
        if self.whisper is None:
            return np.array([Vocabulary.of(tokenizer).boundary], np.int32)
        return np.array(self.whisper.prompt(self.language, self.task, timestamps), np.int32)

    def make_model(self, model: EncoderDecoderConfig, tokenizer: Tokenizer | None) -> functional.MakeModule:
        """Returns the constructor of the model."""
        vocab_size, ctc_vocab_size = Vocabulary.of(tokenizer).size, tokenizer.vocab_size if self.ctc_weight else 0
        return lambda rngs: EncoderDecoder(model, vocab_size, ctc_vocab_size=ctc_vocab_size, rngs=rngs)

    def build(self, model: Config, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over the tokens of the transcripts and the boundary after each;
        utterances without a frame are excluded. Metrics: `loss`; with a CTC head its parts `attention` and `ctc`, and
        `infeasible` (share of utterances without a CTC alignment, which the decoder alone learns from); with label
        smoothing `cross_entropy`, the decoder's loss without it; `accuracy` (teacher-forced).
        """
        if not isinstance(model, EncoderDecoderConfig):
            raise ValueError(f"aed trains an encoder with an attention decoder, not a {model.kind}")
        check_features(model.encoder, frontend.mel)
        check_no_crop(frontend, "transcript")
        vocabulary, make = Vocabulary.of(tokenizer), self.make_model(model, tokenizer)

        def score(module: EncoderDecoder, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            return self._score(module.with_lora(), batch, key, frontend, vocabulary, self.prompt_ids(tokenizer))

        def ctc_logits(module: EncoderDecoder, batch: Batch) -> tuple[Array, Lengths]:
            x_BxTxF, lengths = features(batch, frontend, None)
            frames_BxTxD, _ = module.with_lora().encode_speech(x_BxTxF, lengths)
            return module.ctc_logits(frames_BxTxD), frames_of(model.encoder, lengths)

        def flops(batch: Mapping[str, Any]) -> float:
            heads = vocabulary.size, tokenizer.vocab_size if self.ctc_weight else 0
            return _flops(batch, model, frontend, *heads, self.added_tokens(tokenizer))

        parts = {"logits": on_params(make, ctc_logits)} if self.ctc_weight else {}
        return Objective.of(make, score, frozen=self.freeze, batch_flops=flops, **parts)

    def _score(
        self,
        model: EncoderDecoder,
        batch: Batch,
        key: PRNGKeyArray | None,
        frontend: FrontEnd,
        vocabulary: Vocabulary,
        prompt: Int[np.ndarray, " prompt"],
    ) -> Metrics:
        augment_key, encoder_key, decoder_key, chunk_key = (None,) * 4 if key is None else jax.random.split(key, 4)
        batch, num_tokens = by_utterance(batch), text_places(batch, len(prompt))

        def keys_of(group: str, key: PRNGKeyArray | None) -> Key[Array, "batch utterances"] | None:
            return None if group in self.freeze else row_keys(key, batch)

        x_BxTxF, segments = features(batch, frontend, augment_key)
        keys = keys_of("encoder", encoder_key)
        chunk = None if keys is None else encoders.draw_chunk(model.config.encoder, chunk_key)
        frames_BxTxD, segments = model.encode_speech(x_BxTxF, segments, keys=keys, chunk=chunk)

        weight_BxN = batch["weight"] * (segments.length > 0)
        texts = _texts(batch, weight_BxN, prompt, vocabulary.boundary, num_tokens)
        limit = model.config.decoder.max_tokens
        if texts.utterances.num == 1 and num_tokens > limit:
            raise ValueError(
                f"a transcript of up to {num_tokens} tokens with its prompt is longer than the {limit} positions of "
                "the decoder: lower data.max_seconds, or raise model.decoder.max_tokens"
            )
        keys = keys_of("decoder", decoder_key)
        keys = None if keys is None else FrameKeys(keys, texts.utterances)
        places = texts.utterances.segment(num_tokens), texts.utterances.position(num_tokens)
        hidden_BxLxD = model.decoder(texts.tokens, *places, model.read(frames_BxTxD, segments), keys)
        metrics, _ = token_metrics(model.decoder, hidden_BxLxD, texts.target, texts.weight)
        if self.label_smoothing:
            total, count = metrics["loss"]
            smoothed = total + self.label_smoothing * _to_uniform(model.decoder, hidden_BxLxD, texts, vocabulary)
            metrics |= {"loss": (smoothed, count), "cross_entropy": (total, count)}
        if self.ctc_weight:
            metrics |= self._with_ctc(model.ctc_logits(frames_BxTxD), segments, batch, weight_BxN, metrics["loss"])
        return metrics

    def _with_ctc(
        self, logits_BxTxV: Array, segments: Segments, batch: Batch, weight_BxN: Array, attention: tuple[Array, Array]
    ) -> Metrics:
        """Returns the joint loss and its parts, all over the tokens that the decoder predicts."""
        total, count = attention
        rows = segments.segment(logits_BxTxV.shape[1]), batch["tokens"], batch["token_length"]
        loss_BxN, feasible_BxN = packed_ctc_loss(logits_BxTxV, *rows)
        ctc = jnp.sum(weight_BxN * loss_BxN)
        joint = self.ctc_weight * ctc + (1 - self.ctc_weight) * total
        infeasible = jnp.sum(batch["weight"] * ~feasible_BxN), jnp.sum(batch["weight"])
        return {"loss": (joint, count), "attention": attention, "ctc": (ctc, count), "infeasible": infeasible}


class _Texts(NamedTuple):
    """Prompts and transcripts of packed rows, one utterance after another, and the token after each.

    Attributes:
      weight: 0 where the next token is of a prompt, or of an utterance of weight 0.
    """

    tokens: Int[Array, "batch tokens"]
    target: Int[Array, "batch tokens"]
    weight: Float[Array, "batch tokens"]
    utterances: Segments


def _texts(batch: Batch, weight_BxN: Array, prompt: np.ndarray, boundary: int, num: int) -> _Texts:
    """Lays out `num` tokens a row."""
    (rows, most_utterances, most), length_BxN = batch["tokens"].shape, batch["token_length"]
    length_BxN = jnp.where(batch["weight"] > 0, length_BxN, 0)
    utterances = Segments.one_after_another((batch["weight"] > 0) * (len(prompt) + length_BxN))
    flat = batch["tokens"].reshape(rows, most_utterances * most).astype(jnp.int32)
    whole = Segments(jnp.broadcast_to(most * jnp.arange(most_utterances), length_BxN.shape), length_BxN)
    start_BxN, index = utterances.start + len(prompt), utterances.position(num)

    def transcripts(first: int) -> Int[Array, "batch tokens"]:
        return move(flat, whole, Segments(start_BxN + first, length_BxN), num)

    fixed = jnp.asarray(prompt)[jnp.clip(index, 0, len(prompt) - 1)]
    tokens = jnp.where(index < len(prompt), fixed, transcripts(0))
    is_last = index == utterances.spread(utterances.length, num) - 1
    target = jnp.where(is_last, boundary, transcripts(-1))
    weight = utterances.spread(weight_BxN, num) * (index >= len(prompt) - 1) * utterances.mask(num)
    return _Texts(jnp.where(utterances.mask(num), tokens, 0), target, weight, utterances)


def _to_uniform(
    decoder: AttentionDecoder, hidden_BxLxD: Array, texts: _Texts, vocabulary: Vocabulary
) -> Float[Array, ""]:
    """Returns how much the loss grows when the targets become uniform over the ids that may follow, summed.

    The logarithm of the softmax's sum cancels, so the difference is that of the target's logit and of the mean logit.
    """
    kernel = decoder.head_kernel.astype(jnp.float32)
    may_follow = jnp.asarray(vocabulary.may_follow())
    mean = jnp.sum(jnp.where(may_follow[:, None], kernel, 0), axis=0) / jnp.sum(may_follow)
    difference = kernel[texts.target] - mean
    return jnp.sum(texts.weight * jnp.sum(hidden_BxLxD * difference, axis=-1))


def _flops(
    batch: Mapping[str, Any],
    model: EncoderDecoderConfig,
    frontend: FrontEnd,
    vocab_size: int,
    ctc_vocab_size: int,
    added: int,
) -> float:
    rows, num_samples = batch["audio"].shape
    num_vectors = frontend.mel.num_frames(num_samples)
    if getattr(frontend.mel, "window_seconds", None) is not None and "audio_start" in batch:
        num_vectors *= batch["audio_start"].shape[1]
    num_frames, num_tokens = model.encoder.num_frames(num_vectors), text_places(batch, added)
    decoder = model.decoder, model.encoder.dim, vocab_size, num_tokens, num_frames, rows
    head = 2.0 * rows * num_frames * model.encoder.dim * ctc_vocab_size
    return encoders.forward_flops(model.encoder, num_vectors, rows) + attention_decoder.forward_flops(*decoder) + head
