"""Text responses to speech: a causal language model conditioned on a speech encoder's frames through an adapter.

By default the pretrained encoder and language model are frozen and only the adapter is trained, with LoRA if the model
has it (Ma et al. 2024, SLAM-ASR). Such training has a plateau on which the model generates plausible text independent
of the speech, until it starts to use the speech within a few steps; the gauges distinguish the two states.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance, text_places
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments, move, moved_from
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models import encoders, transformer_config
from jax_speechlm.models.speech_lm import Sequence, SpeechLMConfig, SpeechTransformer, speech_attention
from jax_speechlm.nn.layers import FrameKeys
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, check_features, check_no_crop, row_keys
from jax_speechlm.objectives.lm.causal_lm import token_metrics

Task = Literal["transcribe", "translate", "extend", "answer"]

DEAF_ATTENTION = 0.01
DEAF_GAIN = 0.01
"""After the warm-up, answers count as independent of the speech if their attention to it is below DEAF_ATTENTION, or if
their loss is lower with it by less than DEAF_GAIN of the loss without it."""


class Prompt(Config):
    """Text before and after the speech in the language model's input. Characters not in its tokenizer are dropped."""

    before: str = ""
    behind: str = ""


class Prompts(Config):
    """The prompt of each task."""

    transcribe: Prompt = Prompt(behind=" in writing: ")
    translate: Prompt = Prompt(behind=" in English: ")
    extend: Prompt = Prompt(behind=" and then ")
    answer: Prompt = Prompt(behind=" answer: ")

    def of(self, task: Task) -> Prompt:
        return getattr(self, task)


class SpeechLM(ObjectiveConfig):
    """Settings of the speech-language model's objective.

    Attributes:
      task: "transcribe", "extend" and "answer" train on each utterance's `text` (the data set's transcript,
        continuation or answer, respectively), "translate" on its English translation.
      prompts: text around the speech, by task.
      freeze: parameter groups that are not trained; they have no gradient and no dropout.
    """

    kind: Literal["speech_lm"] = "speech_lm"
    task: Task = "transcribe"
    prompts: Prompts = Prompts()
    freeze: tuple[str, ...] = ("encoder", "transformer")

    @property
    def text_column(self) -> str:
        return "translation" if self.task == "translate" else "text"

    def added_tokens(self, tokenizer: Tokenizer | None) -> int:
        return _added(self.prompt_ids(tokenizer))

    def prompt_ids(self, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """Returns int32 ids before the speech, including the text prefix, and after it."""
        prompt = self.prompts.of(self.task)
        before = [*Vocabulary.of(tokenizer).prefix, *tokenizer.encode(prompt.before)]
        return np.array(before, np.int32), np.array(tokenizer.encode(prompt.behind), np.int32)

    def build(self, model: Config, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over the answers' tokens, with the boundary after each; rows without
        text are excluded. Metrics: `loss`; `accuracy` (teacher-forced); `unanswered`, the share of rows without text;
        `adapter_scale`, the norm of speech vectors relative to token embeddings; `speech_attention`, the share of
        attention to speech when predicting answer tokens, averaged over layers and heads. In evaluation also
        `loss_without_speech`, with speech vectors set to zero, and `speech_gain`, the resulting increase of the loss.
        """
        vocabulary = Vocabulary.of(tokenizer)
        if not isinstance(model, SpeechLMConfig):
            raise ValueError(f"speech_lm trains an encoder, an adapter and a transformer, not a {model.kind}")
        check_features(model.encoder, frontend.mel)
        check_no_crop(frontend, "text")

        def make(rngs):
            return SpeechTransformer(model, vocabulary.size, rngs=rngs)

        vocab_size, prompt = vocabulary.size, self.prompt_ids(tokenizer)

        def score(module: SpeechTransformer, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            return self._score(module.with_lora(), batch, key, frontend, vocabulary.boundary, prompt)

        def flops(batch: Mapping[str, Any]) -> float:
            return self._flops(batch, model, frontend, vocab_size, _added(prompt))

        return Objective.of(make, score, frozen=self.freeze, batch_flops=flops, health_check=health_check)

    def _flops(
        self, batch: Mapping[str, Any], model: SpeechLMConfig, frontend: FrontEnd, vocab_size: int, added: int
    ) -> float:
        """Returns a third of a training step's FLOPs, which is a forward pass's if all parameters are trained.

        Frozen groups save the gradient of their parameters; a frozen encoder also saves the gradient of its
        activations, unless it has LoRA.
        """
        rows, num_samples = batch["audio"].shape
        num_text = text_places(batch, added)
        num_answers = num_text - added + 1
        num_vectors = frontend.mel.num_frames(num_samples)
        num_frames = model.encoder.num_frames(num_vectors)
        length = model.adapter.num_outputs(num_frames) + num_text
        unread = 2.0 * rows * (length - num_answers) * model.transformer.dim * vocab_size
        transformer = transformer_config.forward_flops(model.transformer, vocab_size, length, rows) - unread
        encoder = encoders.forward_flops(model.encoder, num_vectors, rows)
        adapter = rows * model.adapter.forward_flops(num_frames, model.encoder.dim, model.transformer.dim)
        if "transformer" in self.freeze:
            attention = transformer_config.attention_flops(model.transformer, length, rows)
            transformer = (2 * transformer + attention) / 3
        if "encoder" in self.freeze:
            changed = model.lora.rank and any(target.startswith("encoder") for target in model.lora.targets)
            encoder *= (2 if changed else 1) / 3
        return encoder + adapter + transformer

    def _score(
        self,
        model: SpeechTransformer,
        batch: Batch,
        key: PRNGKeyArray | None,
        frontend: FrontEnd,
        boundary: int,
        prompt: tuple[np.ndarray, np.ndarray],
    ) -> Metrics:
        augment_key, encoder_key, transformer_key, chunk_key = (None,) * 4 if key is None else jax.random.split(key, 4)
        batch, num_text = by_utterance(batch), text_places(batch, _added(prompt))

        def keys_of(group: str, key: PRNGKeyArray | None) -> Key[Array, "batch utterances"] | None:
            return None if group in self.freeze else row_keys(key, batch)

        x_BxTxF, segments = features(batch, frontend, augment_key)
        encoder_keys = keys_of("encoder", encoder_key)
        chunk = None if encoder_keys is None else encoders.draw_chunk(model.config.encoder, chunk_key)
        speech_BxVxD, speech = model.encode_speech(x_BxTxF, segments, keys=encoder_keys, chunk=chunk)

        present_BxN = batch["weight"] > 0
        text = {"num_text": num_text, "present_BxN": present_BxN}
        answers = batch["tokens"], batch["token_length"]
        sequence = model.lay_out(prompt[0], speech_BxVxD, speech, prompt[1], *answers, **text)
        answered_BxN = batch["weight"] * (batch["token_length"] > 0)
        targets = _targets(batch, sequence, answered_BxN, boundary, num_text - _added(prompt) + 1)

        def probe(q, k):
            return speech_attention(q, k, sequence, targets.before)

        def answer(vectors: Array) -> Metrics:
            keys = keys_of("transformer", transformer_key)
            keys = None if keys is None else FrameKeys(keys, sequence.utterances)
            hidden, attention_LxBxA = model.transformer.encode(
                vectors, sequence.segment, sequence.position, keys, probe
            )
            hidden_BxAxD = move(hidden, *targets.spans, targets.token.shape[1])
            metrics, _ = token_metrics(model.transformer, hidden_BxAxD, targets.token, targets.weight)
            attention = jnp.sum(targets.weight * attention_LxBxA.mean(0))
            return metrics | {"speech_attention": (attention, metrics["loss"][1])}

        metrics = answer(sequence.vectors)
        if key is None:
            silent, count = answer(jnp.where(sequence.is_speech[..., None], 0, sequence.vectors))["loss"]
            metrics |= {"loss_without_speech": (silent, count), "speech_gain": (silent - metrics["loss"][0], count)}
        metrics["unanswered"] = jnp.sum(batch["weight"] - answered_BxN), jnp.sum(batch["weight"])
        metrics["adapter_scale"] = _adapter_scale(sequence, answered_BxN)
        return metrics


def _added(prompt: tuple[np.ndarray, np.ndarray]) -> int:
    """Returns the tokens of a prompt; at least 1, so that a row has room for the boundary after each answer."""
    return max(1, sum(map(len, prompt)))


class _Targets(NamedTuple):
    """The tokens of a row's answers, with the boundary after each, one answer after another.

    Attributes:
      before: index in the row of the vector from which each is predicted.
      spans: where those vectors are in the row, and the tokens in these arrays.
    """

    token: Int[Array, "batch answers"]
    weight: Float[Array, "batch answers"]
    before: Int[Array, "batch answers"]
    spans: tuple[Segments, Segments]


def _targets(batch: Batch, sequence: Sequence, weight_BxN: Array, boundary: int, most: int) -> _Targets:
    """Returns the targets of packed rows, at most `most` a row; answers of weight 0 have none."""
    (rows, num, num_tokens), length_BxN = batch["tokens"].shape, batch["token_length"]
    count = jnp.where(weight_BxN > 0, length_BxN + 1, 0)
    spans = Segments(sequence.start - 1, count), Segments.one_after_another(count)
    place = jnp.arange(num_tokens + 1)
    tokens = jnp.pad(batch["tokens"], ((0, 0), (0, 0), (0, 1)))
    tokens = jnp.where(place == length_BxN[..., None], boundary, tokens).reshape(rows, num * (num_tokens + 1))
    whole = jnp.broadcast_to((num_tokens + 1) * jnp.arange(num), count.shape)
    token = move(tokens, Segments(whole, count), spans[1], most)
    before = jnp.where(spans[1].mask(most), moved_from(*spans, most), 0)
    return _Targets(token, spans[1].spread(weight_BxN, most), before, spans)


def _adapter_scale(sequence: Sequence, weight_BxN: Array) -> tuple[Array, Array]:
    """Sums each utterance's ratio of mean norms, speech vectors to token embeddings, as (sum, weight)."""
    length_BxL = jnp.linalg.norm(jax.lax.stop_gradient(sequence.vectors).astype(jnp.float32), axis=-1)

    def average(where):
        total, count = (sequence.utterances.sum(jnp.where(where, x, 0.0)) for x in (length_BxL, 1.0))
        return total / jnp.maximum(count, 1)

    scale_BxN = average(sequence.is_speech) / jnp.maximum(average(~sequence.is_speech), 1e-9)
    return jnp.sum(weight_BxN * scale_BxN), jnp.sum(weight_BxN)


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if the answers do not depend on the speech, else None.

    Before the end of the warm-up every model is on the plateau.
    """
    if not after_warmup:
        return None
    attention, gain = metrics["speech_attention"], metrics.get("dev_speech_gain")
    reason = None
    if attention < DEAF_ATTENTION:
        reason = f"they give {attention:.1%} of their attention to it"
    elif gain is not None and gain < DEAF_GAIN * metrics["dev_loss_without_speech"]:
        reason = f"without it the dev loss is only {gain:.4f} nats a token higher, as if the language model were alone"
    if reason is None:
        return None
    return (
        f"the answers do not depend on the speech: {reason} (accuracy {metrics['accuracy']:.0%}, speech vectors "
        f"{metrics['adapter_scale']:.2g} times as long as tokens'). See that encoder and transformer were taken over "
        "(--from); else train longer, with a lower optimizer.schedule.peak, with LoRA (model.lora.rank), or with fewer "
        "groups in objective.freeze"
    )
