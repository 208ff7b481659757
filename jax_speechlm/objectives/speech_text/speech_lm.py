"""Answers to speech: a causal language model reads a speech encoder's frames through an adapter, and writes.

By default encoder and language model stay as they were taken over and the adapter alone learns, with LoRA where the
model has it (Ma et al. 2024, SLAM-ASR). Such training knows a plateau on which the model writes plausible text without
regard to the speech, until, within a few steps, it begins to listen; the gauges tell the two states apart.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from data_pipelines.tokenizers.base import Tokenizer
from jax_speechlm.core.batch import Batch, example_keys
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models import encoders, transformer_config
from jax_speechlm.models.speech_lm import Sequence, SpeechLMConfig, SpeechTransformer, speech_attention
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Keys
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, check_features, check_no_crop, mean
from jax_speechlm.objectives.lm.causal_lm import token_losses

Task = Literal["transcribe", "translate", "extend", "answer"]

DEAF_ATTENTION = 0.01
DEAF_GAIN = 0.01
"""Once settled, a model does not listen whose answers give less than this share of their attention to the speech, or
whose loss rises by less than this share when the speech is taken away."""


class Prompt(Config):
    """What the language model reads before and behind the speech. Characters that its tokenizer lacks are dropped."""

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
      task: what is trained: "transcribe", "extend" and "answer" learn to write each utterance's text (a set's `text` is
        then what is said, what follows, or the answer to what is asked), "translate" its English translation.
      prompts: what frames the speech, by task.
      freeze: groups of parameters that stay as they are: they have no dropout, and no gradient.
    """

    kind: Literal["speech_lm"] = "speech_lm"
    task: Task = "transcribe"
    prompts: Prompts = Prompts()
    freeze: tuple[str, ...] = ("encoder", "transformer")

    @property
    def text_column(self) -> str:
        return "translation" if self.task == "translate" else "text"

    def prompt_ids(self, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids before the speech, what stands before a text first, and those behind it."""
        prompt = self.prompts.of(self.task)
        before = [*Vocabulary.of(tokenizer).prefix, *tokenizer.encode(prompt.before)]
        return np.array(before, np.int32), np.array(tokenizer.encode(prompt.behind), np.int32)

    def build(self, model: Config, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """The objective for one model, front end and tokenizer, which is the language model's.

        The loss is a mean over the tokens of the answers and the boundary behind each; rows without a text have none.
        Metrics: `loss`; `accuracy`, of the likeliest token given those before it; `unanswered`, the share of rows
        without text; `adapter_scale`, the length of the speech's vectors over that of tokens' embeddings;
        `speech_attention`, the share of their attention that the places before the answer's tokens give to speech, over
        layers and heads. In evaluation also `loss_without_speech`, with zeros in the place of the speech, and
        `speech_gain`, how much lower the loss is with it.

        Raises:
          ValueError: no tokenizer, another kind of model, features that do not fit it, or augmentation that loses part
            of what is to be written.
        """
        vocabulary = Vocabulary.of(tokenizer)
        if not isinstance(model, SpeechLMConfig):
            raise ValueError(f"speech_lm trains an encoder, an adapter and a transformer, not a {model.kind}")
        check_features(model.encoder, frontend.mel)
        check_no_crop(frontend, "text")

        def make(rngs):
            return SpeechTransformer(model, vocabulary.size, rngs=rngs)

        loss = functools.partial(
            _loss,
            graphdef=functional.declare(make).graphdef,
            config=self,
            frontend=frontend,
            boundary=vocabulary.boundary,
            prompt=self.prompt_ids(tokenizer),
        )
        flops = functools.partial(
            self._flops, model=model, frontend=frontend, vocab_size=vocabulary.size, tokenizer=tokenizer
        )
        return Objective(make, loss, frozen=self.freeze, batch_flops=flops, health_check=health_check)

    def _flops(
        self,
        batch: Mapping[str, Any],
        *,
        model: SpeechLMConfig,
        frontend: FrontEnd,
        vocab_size: int,
        tokenizer: Tokenizer,
    ) -> float:
        """A third of a training step's, which is a forward pass's where everything learns.

        A part that stays as it is costs no gradient of its parameters; an encoder that does also costs none of what it
        reads, unless LoRA changes it.
        """
        rows, num_samples = batch["audio"].shape
        num_answers = batch["tokens"].shape[1] + 1  # the boundary behind each
        num_vectors = frontend.mel.num_frames(num_samples)
        num_frames = model.encoder.num_frames(num_vectors)
        num_prompt = sum(len(part) for part in self.prompt_ids(tokenizer))
        length = num_prompt + model.adapter.num_outputs(num_frames) + num_answers - 1
        unread = 2.0 * rows * (length - num_answers) * model.transformer.dim * vocab_size
        reading = transformer_config.forward_flops(model.transformer, vocab_size, length, rows) - unread
        hearing = encoders.forward_flops(model.encoder, num_vectors, rows)
        adapting = rows * model.adapter.forward_flops(num_frames, model.encoder.dim, model.transformer.dim)
        if "transformer" in self.freeze:
            reading = (2 * reading + transformer_config.attention_flops(model.transformer, length, rows)) / 3
        if "encoder" in self.freeze:
            changed = model.lora.rank and any(target.startswith("encoder") for target in model.lora.targets)
            hearing *= (2 if changed else 1) / 3
        return hearing + adapting + reading


def _loss(
    params: functional.Params,
    batch: Batch,
    key: PRNGKeyArray | None,
    *,
    graphdef: nnx.GraphDef,
    config: SpeechLM,
    frontend: FrontEnd,
    boundary: int,
    prompt: tuple[np.ndarray, np.ndarray],
) -> tuple[Float[Array, ""], Metrics]:
    model = functional.bind(graphdef, params).with_lora()
    transformer = model.transformer
    augment_key, encoder_key, transformer_key, chunk_key = (None,) * 4 if key is None else jax.random.split(key, 4)

    def keys_of(group: str, key: PRNGKeyArray | None) -> Keys | None:
        return None if key is None or group in config.freeze else example_keys(key, batch["example_id"])

    x_BxTxF, length_B = features(batch, frontend, augment_key)
    encoder_keys = keys_of("encoder", encoder_key)
    chunk = None if encoder_keys is None else encoders.draw_chunk(model.config.encoder, chunk_key)
    speech_BxNxD, speech_length_B = model.encode_speech(x_BxTxF, length_B, keys=encoder_keys, chunk=chunk)

    tokens_BxU, token_length_B = batch["tokens"], batch["token_length"]
    sequence = model.lay_out(prompt[0], speech_BxNxD, speech_length_B, prompt[1], tokens_BxU, token_length_B)
    place_A = jnp.arange(tokens_BxU.shape[1] + 1)  # of the answer's tokens, the boundary among them
    before_BxA = sequence.start[:, None] - 1 + place_A  # from where each is predicted
    target_BxA = jnp.where(place_A == token_length_B[:, None], boundary, jnp.pad(tokens_BxU, ((0, 0), (0, 1))))
    answered_B = batch["weight"] * (token_length_B > 0)
    weight_BxA = (place_A <= token_length_B[:, None]) * answered_B[:, None]

    def probe(q, k):
        return speech_attention(q, k, sequence, before_BxA)

    def answer(vectors: Array) -> Metrics:
        keys = keys_of("transformer", transformer_key)
        hidden, attention_LxBxA = transformer.encode(vectors, sequence.segment, sequence.position, keys, probe)
        hidden_BxAxD = jnp.take_along_axis(hidden, before_BxA[..., None], axis=1)
        total, scores = token_losses(transformer, hidden_BxAxD, target_BxA, weight_BxA)
        sums = total, jnp.sum(weight_BxA * scores.correct), jnp.sum(weight_BxA * attention_LxBxA.mean(0))
        count = jnp.sum(weight_BxA)
        return dict(zip(("loss", "accuracy", "speech_attention"), ((each, count) for each in sums), strict=True))

    metrics = answer(sequence.vectors)
    if key is None:
        deaf, count = answer(jnp.where(sequence.is_speech[..., None], 0, sequence.vectors))["loss"]
        metrics |= {"loss_without_speech": (deaf, count), "speech_gain": (deaf - metrics["loss"][0], count)}
    metrics["unanswered"] = jnp.sum(batch["weight"] - answered_B), jnp.sum(batch["weight"])
    metrics["adapter_scale"] = _adapter_scale(sequence, answered_B)
    return mean(*metrics["loss"]), metrics


def _adapter_scale(sequence: Sequence, weight_B: Array) -> tuple[Array, Array]:
    """Each row's mean length of the speech's vectors over that of the tokens' embeddings, summed."""
    length_BxL = jnp.linalg.norm(jax.lax.stop_gradient(sequence.vectors).astype(jnp.float32), axis=-1)
    is_token_BxL = (sequence.segment > 0) & ~sequence.is_speech

    def average(where):
        return jnp.sum(length_BxL, axis=1, where=where) / jnp.maximum(jnp.sum(where, axis=1), 1)

    scale_B = average(sequence.is_speech) / jnp.maximum(average(is_token_BxL), 1e-9)
    return jnp.sum(weight_B * scale_B), jnp.sum(weight_B)


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """What is wrong when the answers do not depend on the speech; else None.

    Args:
      metrics: averaged over steps; those of the last validation, where there was one, as "dev_<name>".
      after_warmup: whether training is long past its warm-up. On the plateau before that every model is deaf.
    """
    if not after_warmup:
        return None
    attention, gain = metrics["speech_attention"], metrics.get("dev_speech_gain")
    deaf = None
    if attention < DEAF_ATTENTION:
        deaf = f"they give {attention:.1%} of their attention to it"
    elif gain is not None and gain < DEAF_GAIN * metrics["dev_loss_without_speech"]:
        deaf = f"without it the dev loss is only {gain:.4f} nats a token higher, as if the language model were alone"
    if deaf is None:
        return None
    return (
        f"the answers do not depend on the speech: {deaf} (accuracy {metrics['accuracy']:.0%}, speech vectors "
        f"{metrics['adapter_scale']:.2g} times as long as tokens'). See that encoder and transformer were taken over "
        "(--from); else train longer, with a lower optimizer.schedule.peak, with LoRA (model.lora.rank), or with fewer "
        "groups in objective.freeze"
    )
