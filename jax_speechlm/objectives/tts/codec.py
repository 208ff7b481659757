"""Pretraining of a codec: the waveform of a random part of each utterance, through one sequence of codes.

The encoder and the decoder learn by the distances of spectra, and by discriminators if given; the encoder also to stay
near the codebook. The codebook is a moving average of the encoder's vectors (`models.codec.codebook`).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance, frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.models.codec.codebook import set_by_gradient
from jax_speechlm.models.codec.wav_tokenizer import Reconstruction, WavTokenizer, WavTokenizerConfig
from jax_speechlm.models.vocoders.discriminators import Discriminators
from jax_speechlm.nn.layers import split_keys
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, on_params, row_keys, weighted
from jax_speechlm.objectives.tts import spectral_losses as losses
from jax_speechlm.objectives.tts.examples import clip_frames, clips, first_rows
from jax_speechlm.objectives.tts.vocoder import Adversarial, adversarial_terms, crops

CODEBOOK = "autoencoder/quantizer"
"""The parameters of the codebook, which the loss sets."""


class Codec(ObjectiveConfig):
    """Settings of the pretraining of a codec.

    The codebook's parameters need `optim.optimizers.Group.assigned("autoencoder/quantizer")` in `optimizer.groups`.

    Attributes:
      crop_frames: codes of the part of each utterance that is trained on; shorter utterances are taken whole.
      windows: lengths of the Fourier transforms of the spectral loss, multiples of 4 samples.
      stft_weight: weight of the spectral loss: spectral convergence, plus the distance of log magnitudes.
      mel_weight: weight of the distance of log-mel spectrograms, of the front end's form in frames a quarter of a
        window apart.
      commitment_weight: weight of the squared distance of the encoder's vectors from their codes.
      codebook_decay: of the moving averages of the codebook.
      dead_share: a code with less than this share of the frames that a code has on average is placed at a frame.
      adversarial: training with discriminators; None trains by the distances of spectra alone.
    """

    kind: Literal["codec"] = "codec"
    crop_frames: pydantic.PositiveInt = 50
    windows: losses.Windows = losses.WINDOWS
    stft_weight: pydantic.NonNegativeFloat = 1.0
    mel_weight: pydantic.NonNegativeFloat = 1.0
    commitment_weight: pydantic.NonNegativeFloat = 0.25
    codebook_decay: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.99
    dead_share: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.1
    adversarial: Adversarial | None = None

    @property
    def couples_rows(self) -> bool:
        return True

    def check_optimizer(self, optimizer: Config) -> None:
        if any(path == CODEBOOK or CODEBOOK.startswith(f"{path}/") for path in optimizer.frozen):
            return
        group = next((group for group in optimizer.groups if group.prefix == CODEBOOK), None)
        if group is None or not group.assigns:
            raise ValueError(
                f"the codebook is a moving average, which the loss sets by its gradient: optimizer.groups needs "
                f'Group.assigned("{CODEBOOK}"), plain SGD at rate 1 (see jax_speechlm.optim.optimizers)'
            )

    def build(self, model: WavTokenizerConfig, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective.

        The training `loss` sums all terms. The evaluation `loss` leaves out the adversarial terms, and is computed on
        the middle crop of each utterance. `convergence`, `log_magnitude`, `mel` and `commitment` are unweighted means
        over utterances; `adversarial`, `features` and `discriminator` are the terms of adversarial training.
        Of a batch, `code_entropy` (nats), `code_entropy_ratio` (to the most for its frames and codes) and `codes_used`
        describe the usage of the codes, and `code_placements` is the number of codes placed at frames.
        """
        del tokenizer
        mel = self._mel(model, frontend)

        def make(rngs: nnx.Rngs) -> CodecTraining:
            return CodecTraining(model, self.adversarial, rngs=rngs)

        def score(module: CodecTraining, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            batch = by_utterance(batch)
            _, real, lengths = crops(batch, frontend, self.crop_frames, key)
            keys = row_keys(key, batch)
            dropout_keys, order_keys = split_keys(None if keys is None else keys.reshape(-1), 2)
            made = module.autoencoder.reconstruct(real, lengths, dropout_keys)
            fake = jnp.where(frame_mask(lengths, real.shape[1]), made.audio, 0)
            valid = frame_mask(made.length, self.crop_frames).astype(jnp.float32)
            convergence, distance = losses.multi_resolution_stft(real, fake, lengths, self.windows)
            terms = {
                "convergence": convergence,
                "log_magnitude": distance,
                "mel": losses.mel_distance(real, fake, lengths, mel),
                "commitment": _commitment(made, valid),
            }
            loss = self.stft_weight * (convergence + distance) + self.mel_weight * terms["mel"]
            loss += self.commitment_weight * terms["commitment"]
            if self.adversarial is not None and key is not None:
                scores = adversarial_terms(module.discriminators, real, fake, batch["step"], self.adversarial)
                loss += self.adversarial.weight * scores["adversarial"] + scores["discriminator"]
                loss += self.adversarial.feature_weight * scores["features"]
                terms |= scores
            weight = jnp.where(lengths > 0, batch["weight"].reshape(-1), 0)
            metrics = weighted(weight, {"loss": loss} | terms)
            counted = valid * weight[:, None]
            usage = _usage(made, counted, model.codebook_size)
            if key is not None:
                order = jax.vmap(lambda key: jax.random.uniform(key, (self.crop_frames,)))(order_keys)
                placed = self._update(module.autoencoder, made, counted, order, metrics)
                usage["code_placements"] = placed
            return metrics | gauges.per_batch(usage, jnp.sum(counted))

        def pictures(module: CodecTraining, batch: Batch) -> dict[str, Array]:
            few = by_utterance(first_rows(batch))
            _, real, lengths = crops(few, frontend, clip_frames(few, frontend.mel), None)
            return clips(lengths, natural=real, copy=module.autoencoder.reconstruct(real, lengths).audio)

        def flops(batch: Mapping[str, Any]) -> float:
            return model.forward_flops(self.crop_frames * model.hop, math.prod(batch["example_id"].shape))

        return Objective.of(
            make,
            score,
            pictures=on_params(make, pictures),
            training_only=() if self.adversarial is None else ("discriminators",),
            batch_flops=flops,
            health_check=health_check,
        )

    def _update(
        self, codec: WavTokenizer, made: Reconstruction, weight: Array, order: Array, metrics: Metrics
    ) -> Float[Array, ""]:
        """Adds the term to the loss that sets the codebook; returns the number of codes placed at frames."""
        latents = jax.lax.stop_gradient(made.latents)
        flat = (x.reshape(-1, *x.shape[2:]) for x in (latents, made.code_ids, weight, order))
        new, placed = codec.quantizer.updated(*flat, self.codebook_decay, self.dead_share)
        total, count = metrics["loss"]
        metrics["loss"] = total + count * set_by_gradient(codec.quantizer.averages, new), count
        return placed

    def _mel(self, model: WavTokenizerConfig, frontend: FrontEnd | None) -> SynthesisMel:
        """Returns the form of the spectrograms to compare; raises ValueError unless settings fit together."""
        if frontend is None or not isinstance(frontend.mel, SynthesisMel):
            raise ValueError(
                "a codec is compared by mel spectrograms for synthesis: set --frontend.mel.variant speecht5 (see "
                "jax_speechlm.frontend.synthesis_mel)"
            )
        if model.hop != frontend.mel.hop:
            raise ValueError(
                f"the front end has a frame every {frontend.mel.hop} samples and the codec a code every {model.hop}, "
                f"the product of model.strides: set --frontend.mel.hop {model.hop}"
            )
        if frontend.augment.crop_seconds is not None:
            raise ValueError(
                "frontend.augment.crop_seconds: the objective takes a part of each utterance itself "
                "(objective.crop_frames); set it to None"
            )
        longest = max(*self.windows, frontend.mel.n_fft)
        if self.crop_frames * model.hop < longest:
            raise ValueError(
                f"objective.crop_frames ({self.crop_frames} codes, {self.crop_frames * model.hop} samples) is shorter "
                f"than the longest window of the losses ({longest}): set --objective.crop-frames "
                f"{-(-longest // model.hop)} or more"
            )
        return frontend.mel.replace(hop=frontend.mel.window // 4)


class CodecTraining(nnx.Module):
    """A codec, and the discriminators that it is trained with."""

    def __init__(self, model: WavTokenizerConfig, adversarial: Adversarial | None, *, rngs: nnx.Rngs):
        self.autoencoder = WavTokenizer(model, rngs=rngs)
        if adversarial is not None:
            self.discriminators = Discriminators(adversarial.discriminators, rngs=rngs)


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if long after warm-up few of the codes are in use, else None. Arguments as in `gauges`."""
    ratio = metrics["code_entropy_ratio"]
    if not after_warmup or ratio >= gauges.LOW_ENTROPY:
        return None
    return (
        f"the codec's codes have collapsed: their entropy is {ratio:.0%} of what the batches could show. Raise "
        "objective.dead_share, or start again with a lower optimizer.schedule.peak"
    )


def _commitment(made: Reconstruction, valid: Float[Array, "rows codes"]) -> Float[Array, " rows"]:
    squared = jnp.mean(jnp.square(made.latents - made.vectors), axis=-1)
    return jnp.sum(squared * valid, axis=1) / jnp.maximum(jnp.sum(valid, axis=1), 1)


def _usage(made: Reconstruction, weight: Float[Array, "rows codes"], num_codes: int) -> dict[str, Float[Array, ""]]:
    share = gauges.code_shares(made.code_ids, weight, num_codes)
    entropy = gauges.entropy(share)
    return {
        "code_entropy": entropy,
        "code_entropy_ratio": entropy / gauges.most_entropy(jnp.sum(weight), num_codes),
        "codes_used": gauges.used(share),
    }
