"""Training of an autoregressive acoustic model with attention, from the frames of the recordings (teacher forcing)."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import NonNegativeFloat, PositiveFloat

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance, text_places
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models.tts.tacotron import Frames, Tacotron, TacotronConfig, forward_flops
from jax_speechlm.models.tts.text import BOUNDARIES, boundary_id, num_ids
from jax_speechlm.nn.layers import split_keys
from jax_speechlm.objectives.base import Metrics, Objective, on_params, split_row_keys
from jax_speechlm.objectives.tts.examples import first_rows, spoken_clips
from jax_speechlm.objectives.tts.voices import (
    Texts,
    Voices,
    check_frontend,
    check_tokenizer,
    mel_picture,
    texts_of,
)


class AttentionTTS(Voices):
    """Settings of the training of a Tacotron.

    Attributes:
      stop_weight: weight of the loss of the end; the log-mel losses have 1.
      stop_positive: weight of the last step in it, one among many others.
    """

    kind: Literal["tacotron"] = "tacotron"
    stop_weight: NonNegativeFloat = 1.0
    stop_positive: PositiveFloat = 8.0

    def build(self, model: TacotronConfig, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective.

        The loss is a mean over frames; what is of steps is first averaged over the utterance. Metrics: `loss`; `mel`
        and `mel_before` (mean absolute errors of the log-mel spectrogram after and before the postnet, with the
        recording's frames as input); `stop` (nats a step); `attention_peak`, the mean over steps of the greatest
        attention weight, which is near 1 once attention has found the text; `infeasible` (share of utterances with
        fewer frames than tokens, which are left out).
        """
        check_tokenizer(tokenizer)
        check_frontend(frontend, model.num_mel_bins)
        boundary = boundary_id(tokenizer)

        def make(rngs):
            return Tacotron(model, num_ids(tokenizer), self.num_speakers, rngs=rngs)

        def forward(module: Tacotron, batch: Batch, key: PRNGKeyArray | None) -> AttentionOutput:
            mel, segments = features(batch, frontend, None)
            texts = texts_of(batch, segments, boundary, mel.shape[1])
            prenet_keys, dropout_keys = split_row_keys(key, batch)
            encoder_keys, decoder_keys = split_keys(dropout_keys, 2)
            memory = module.encode(texts.rows.tokens, texts.rows.segments, batch.get("label"), encoder_keys)
            return AttentionOutput(texts, mel, module.decode(memory, mel, texts.segments, prenet_keys, decoder_keys))

        def score(module: Tacotron, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            batch = by_utterance(batch)
            return self.score(forward(module, batch, key), batch, module)

        def pictures(module: Tacotron, batch: Batch) -> dict[str, Array]:
            few = by_utterance(first_rows(batch))
            output = forward(module, few, None)
            clips = spoken_clips(few, output.frames.after, output.texts.segments, frontend.mel)
            return output.pictures(module) | clips

        def flops(batch: Mapping[str, Any]) -> float:
            rows, samples = batch["audio"].shape
            frames = frontend.mel.num_frames(samples)
            return forward_flops(model, min(text_places(batch, BOUNDARIES), frames), frames, rows)

        return Objective.of(make, score, batch_flops=flops, pictures=on_params(make, pictures))

    def score(self, output: "AttentionOutput", batch: Batch, module: Tacotron) -> Metrics:
        """Computes the losses of a forward pass of a module."""
        (_, segments, feasible), mel, frames = output
        steps, num_steps = segments.at_rate(module.config.reduction, module.num_steps), frames.stop.shape[1]
        is_last = steps.position(num_steps) == steps.spread(steps.length, num_steps) - 1
        end, no_end = jax.nn.softplus(-frames.stop), jax.nn.softplus(frames.stop)
        losses = {
            "mel": segments.mean(jnp.abs(frames.after - mel).mean(-1)),
            "mel_before": segments.mean(jnp.abs(frames.before - mel).mean(-1)),
            "stop": steps.mean(jnp.where(is_last, self.stop_positive * end, no_end)),
        }
        losses["loss"] = losses["mel"] + losses["mel_before"] + self.stop_weight * losses["stop"]
        losses["attention_peak"] = steps.mean(frames.weights.max(-1))
        weight = batch["weight"] * segments.length  # 0 of utterances that are left out
        metrics = {name: (jnp.sum(weight * loss), jnp.sum(weight)) for name, loss in losses.items()}
        metrics["infeasible"] = jnp.sum(batch["weight"] * ~feasible), jnp.sum(batch["weight"])
        return metrics


class AttentionOutput(NamedTuple):
    """Output of the forward pass of training."""

    texts: Texts
    mel: Float[Array, "batch time bins"]  # of the recordings
    frames: Frames

    def pictures(self, module: Tacotron) -> dict[str, Float[Array, "height width"]]:
        """Returns pictures of the first row: log-mel of the recording above the computed one, and attention."""
        is_frame = self.texts.segments.mask(self.mel.shape[1])[0]
        weights = self.frames.weights[0]
        is_step = is_frame[:: module.config.reduction]
        is_token = self.texts.rows.segments.mask(weights.shape[1])[0]
        weights = jnp.where(is_step & is_token[:, None], weights.T, jnp.nan)
        return {"mel": mel_picture(is_frame, (self.mel[0], self.frames.after[0])), "attention": weights[::-1]}
