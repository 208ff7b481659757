"""Training of vocoders: the waveform of a random part of each utterance, from its mel spectrogram."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance, lengths_of
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.augment import augment_audio
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.models.vocoders.base import FROZEN
from jax_speechlm.models.vocoders.discriminators import DiscriminatorConfig, Discriminators
from jax_speechlm.models.vocoders.vocoders import VocoderModel, make_vocoder
from jax_speechlm.models.vocoders.wavenet import WaveNetConfig
from jax_speechlm.nn.layers import split_keys
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, on_params, row_keys, weighted
from jax_speechlm.objectives.tts import spectral_losses as losses
from jax_speechlm.objectives.tts.examples import clip_frames, clips, first_rows
from jax_speechlm.parallel.mesh import shard_batch_dim

_FULL_SCALE = 2.0**15


class Adversarial(Config):
    """Settings of adversarial training.

    The vocoder is the group of parameters "generator", the discriminators are "discriminators". Give the latter an
    optimizer of their own (`optimizer.groups`) with the same `start_step`.

    Attributes:
      discriminators: their shape.
      loss: "hinge" or "least_squares".
      weight: weight of the loss by which the vocoder learns to pass for recorded speech.
      feature_weight: weight of the distance of the discriminators' hidden states.
      start_step: first step in which the discriminators take part; before that they are not computed.
    """

    discriminators: DiscriminatorConfig = DiscriminatorConfig()
    loss: losses.Adversarial = "hinge"
    weight: pydantic.NonNegativeFloat = 0.025
    feature_weight: pydantic.NonNegativeFloat = 0.05
    start_step: pydantic.NonNegativeInt = 0


class Vocoding(ObjectiveConfig):
    """Settings of the training of vocoders.

    Attributes:
      crop_frames: mel frames of the part of each utterance that is trained on; shorter utterances are taken whole.
      windows: lengths of the Fourier transforms of the spectral loss, multiples of 4 samples.
      stft_weight: weight of the spectral loss: spectral convergence, plus the distance of log magnitudes.
      mel_weight: weight of the distance of log-mel spectrograms.
      adversarial: training with discriminators; None trains by the distances of spectra alone.
    """

    kind: Literal["vocoder"] = "vocoder"
    crop_frames: pydantic.PositiveInt = 32
    windows: losses.Windows = losses.WINDOWS
    stft_weight: pydantic.NonNegativeFloat = 1.0
    mel_weight: pydantic.NonNegativeFloat = 1.0
    adversarial: Adversarial | None = None

    def build(self, model: VocoderModel, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. All metrics are means over utterances.

        The training `loss` sums all terms. The evaluation `loss` sums the spectral distances only, on the middle crop
        of each utterance. `convergence`, `log_magnitude` and `mel` are unweighted distances; `adversarial`, `features`
        and `discriminator` are the terms of adversarial training. A WaveNet's loss is the negative
        log-likelihood of a sample, in nats.
        """
        del tokenizer
        check_vocoder(model, frontend)
        if isinstance(model, WaveNetConfig) and self.adversarial is not None:
            raise ValueError(
                "a wavenet has no discriminators, it is trained by likelihood: set objective.adversarial to None"
            )
        if self.crop_frames * model.hop <= frontend.mel.window // 2:
            raise ValueError(
                f"objective.crop_frames ({self.crop_frames}) is no more than half a window of the spectrogram: set "
                f"--objective.crop-frames {frontend.mel.window // 2 // model.hop + 1} or more"
            )

        def make(rngs: nnx.Rngs) -> VocoderTraining:
            return VocoderTraining(model, self.adversarial, rngs=rngs)

        def score(module: VocoderTraining, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            batch = by_utterance(batch)
            mel, real, lengths = crops(batch, frontend, self.crop_frames, key)
            weight = jnp.where(lengths > 0, batch["weight"].reshape(-1), 0)
            frames = -(-lengths // model.hop)
            if isinstance(model, WaveNetConfig):
                nll = model.output.nll(module.generator.outputs(mel, frames, real), real)
                return weighted(weight, {"loss": Segments.of(lengths).mean(nll)[:, 0]})
            fake = jnp.where(jnp.arange(real.shape[1]) < lengths[:, None], module.generator(mel, frames), 0)
            convergence, distance = losses.multi_resolution_stft(real, fake, lengths, self.windows)
            terms = {
                "convergence": convergence,
                "log_magnitude": distance,
                "mel": losses.mel_distance(real, fake, lengths, frontend.mel),
            }
            loss = self.stft_weight * (convergence + distance) + self.mel_weight * terms["mel"]
            if self.adversarial is not None and key is not None:
                scores = adversarial_terms(module.discriminators, real, fake, batch["step"], self.adversarial)
                loss += self.adversarial.weight * scores["adversarial"] + scores["discriminator"]
                loss += self.adversarial.feature_weight * scores["features"]
                terms |= scores
            return weighted(weight, {"loss": loss} | terms)

        def pictures(module: VocoderTraining, batch: Batch) -> dict[str, Array]:
            few = by_utterance(first_rows(batch))
            mel, real, lengths = crops(few, frontend, clip_frames(few, frontend.mel), None)
            return clips(lengths, natural=real, copy=module.generator(mel, -(-lengths // model.hop)))

        def flops(batch: dict[str, Any]) -> float:
            return model.forward_flops(self.crop_frames, math.prod(batch["example_id"].shape))

        # A WaveNet computes one sample after the other, too slowly for a validation.
        is_fast = not isinstance(model, WaveNetConfig)
        return Objective.of(
            make,
            score,
            pictures=on_params(make, pictures) if is_fast else None,
            frozen=tuple(f"generator/{name}" for name in FROZEN),
            training_only=() if self.adversarial is None else ("discriminators",),
            batch_flops=flops,
        )


class VocoderTraining(nnx.Module):
    """A vocoder, and the discriminators that it is trained with."""

    def __init__(self, model: VocoderModel, adversarial: Adversarial | None, *, rngs: nnx.Rngs):
        self.generator = make_vocoder(model, rngs=rngs)
        if adversarial is not None:
            self.discriminators = Discriminators(adversarial.discriminators, rngs=rngs)


def check_vocoder(model: VocoderModel, frontend: FrontEnd | None) -> None:
    """Raises ValueError unless the front end gives the mel spectrograms that a vocoder takes."""
    if frontend is None or not isinstance(frontend.mel, SynthesisMel):
        raise ValueError(
            "a vocoder takes mel spectrograms for synthesis: set --frontend.mel.variant speecht5 (see "
            "jax_speechlm.frontend.synthesis_mel)"
        )
    if model.input_dim != frontend.mel.num_mel_bins:
        raise ValueError(
            f"the front end gives {frontend.mel.num_mel_bins} mel bins, model.input_dim is {model.input_dim}; set "
            f"--model.input_dim {frontend.mel.num_mel_bins}"
        )
    if model.hop != frontend.mel.hop:
        raise ValueError(
            f"the front end has a frame every {frontend.mel.hop} samples and the vocoder every {model.hop}: set "
            "--frontend.mel.hop, or the sizes of the model"
        )
    if frontend.augment.crop_seconds is not None:
        raise ValueError(
            "frontend.augment.crop_seconds: the objective takes a part of each utterance itself "
            "(objective.crop_frames); set it to None"
        )


def crops(
    batch: Batch, frontend: FrontEnd, crop_frames: int, key: PRNGKeyArray | None
) -> tuple[Float[Array, "rows frames bins"], Float[Array, "rows samples"], Int[Array, " rows"]]:
    """Takes a part of each utterance, with its mel spectrogram: a row for each, or for each place of a packed row.

    Args:
      batch: in the form of `by_utterance`.
      key: draws each part by its utterance's key; None takes the middle.

    Returns:
      Log-mel spectrograms of the front end's, samples in [-1, 1], 0 beyond the utterance; and their valid samples.
    """
    hop, segments, audio = frontend.mel.hop, lengths_of(batch), batch["audio"]
    keys = row_keys(key, batch)
    gain, place = split_keys(keys, 2)
    if keys is not None:
        rate = frontend.mel.sample_rate
        audio, segments = augment_audio(audio, segments, gain, frontend.augment, batch.get("noise"), rate)
    moved = {"audio": audio, "audio_start": segments.start, "audio_length": segments.length}
    mel, frames = features({**batch, **moved}, frontend, None)
    first = _first_frames(frames, crop_frames, place)

    def cut(row: Array, starts: Int[Array, " utterances"], size: int) -> Array:
        row = jnp.pad(row, [(0, size)] + [(0, 0)] * (row.ndim - 1))
        return jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(row, start, size))(starts)

    num_samples = crop_frames * hop
    mel = jax.vmap(lambda row, at: cut(row, at, crop_frames))(shard_batch_dim(mel), frames.start + first)
    begin = segments.start + hop * first
    audio = jax.vmap(lambda row, at: cut(row, at, num_samples))(shard_batch_dim(audio), begin)
    lengths = jnp.clip(segments.length - hop * first, 0, jnp.minimum(frames.length * hop, num_samples)).reshape(-1)
    audio = audio.reshape(-1, num_samples).astype(jnp.float32) / _FULL_SCALE
    audio = jnp.where(jnp.arange(num_samples) < lengths[:, None], audio, 0)
    return mel.reshape(-1, *mel.shape[2:]), audio, lengths


def _first_frames(
    frames: Segments, crop_frames: int, keys: Key[Array, "batch utterances"] | None
) -> Int[Array, "batch utterances"]:
    """Returns where the part of each utterance starts, in frames from its first."""
    choices = jnp.maximum(frames.length - crop_frames, 0) + 1
    if keys is None:
        return (choices - 1) // 2
    drawn = jax.vmap(lambda key, most: jax.random.randint(key, (), 0, most))(keys.reshape(-1), choices.reshape(-1))
    return drawn.reshape(choices.shape)


def adversarial_terms(
    discriminators: Discriminators,
    real: Float[Array, "rows samples"],
    fake: Float[Array, "rows samples"],
    step: Int[Array, ""],
    config: Adversarial,
) -> dict[str, Float[Array, " rows"]]:
    """Returns the terms of adversarial training, 0 before its first step.

    One gradient serves both sides: `adversarial` and `features` have none for the discriminators, `discriminator` has
    none for the vocoder.
    """

    def terms() -> dict[str, Array]:
        graphdef, params = nnx.split(discriminators)
        constant = nnx.merge(graphdef, jax.tree.map(jax.lax.stop_gradient, params))
        scores, hidden = constant(fake)
        scores_fake, _ = discriminators(jax.lax.stop_gradient(fake))
        scores_real, hidden_real = discriminators(real)
        return {
            "adversarial": losses.generator_loss(scores, config.loss),
            "features": losses.feature_matching(_constant(hidden_real), hidden),
            "discriminator": losses.discriminator_loss(scores_real, scores_fake, config.loss),
        }

    def nothing() -> dict[str, Array]:
        return dict.fromkeys(("adversarial", "features", "discriminator"), jnp.zeros(len(real)))

    return terms() if config.start_step == 0 else jax.lax.cond(step >= config.start_step, terms, nothing)


def _constant(arrays: Sequence[Array]) -> list[Array]:
    return [jax.lax.stop_gradient(array) for array in arrays]
