"""Training of an acoustic model together with its alignment of text and speech.

The aligner finds the frames of every token (`alignment`). With these durations, and with the pitch and the energy of
each token, FastSpeech 2 computes the log-mel spectrogram, and it learns to predict all three from the text.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance, text_places
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models import transformer_config
from jax_speechlm.models.tts.aligner import Aligner, AlignerConfig
from jax_speechlm.models.tts.fastspeech2 import (
    FastSpeech2Config,
    Variances,
    forward_flops,
    one_hot_tokens,
    repeat_by_frame,
)
from jax_speechlm.models.tts.text import BOUNDARIES, TextRows, boundary_id, num_ids
from jax_speechlm.models.tts.voice import Voice
from jax_speechlm.nn.layers import split_keys
from jax_speechlm.objectives.base import Metrics, Objective, on_params, row_keys
from jax_speechlm.objectives.tts.alignment import (
    binarisation_loss,
    diagonal_prior,
    forward_sum_loss,
    monotonic_path,
)
from jax_speechlm.objectives.tts.examples import first_rows, spoken_clips
from jax_speechlm.objectives.tts.voices import Voices, check_frontend, check_tokenizer, mel_picture, texts_of

PITCH_HERTZ, PITCH_RANGE = 160.0, 0.25
"""Center of the pitch, and natural logarithm of the ratio to it that counts as 1."""

ENERGY_CENTER = -0.2
"""Base-10 logarithm of the norm of a mel amplitude spectrum that counts as 0."""


class AlignedVoice(Voice):
    """A voice and, for its training, an aligner."""

    def __init__(
        self,
        model: FastSpeech2Config,
        aligner: AlignerConfig,
        tokenizer: Tokenizer,
        num_speakers: int,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(model, tokenizer, num_speakers, rngs=rngs)
        self.aligner = Aligner(aligner, num_ids(tokenizer), model.num_mel_bins, rngs=rngs)


class Alignment(NamedTuple):
    """Alignment of a batch. Utterances with fewer frames than tokens have no text and no segment."""

    text: TextRows
    segments: Segments  # in frames
    feasible: Bool[Array, "batch utterances"]
    log_p: Float[Array, "batch time tokens"]  # of each token of a frame's utterance, the prior included
    path: Int[Array, "batch time"]  # token in the utterance, -1 at padding
    matrix: Float[Array, "batch time packed"]  # 1 where the frame has the token of the packed text


class TTS(Voices):
    """Settings of the training of an acoustic model of speech synthesis.

    Attributes:
      text: what is spoken: transcripts, or the speech units of `data.units`, with which the sets are labelled.
      aligner: shape of the aligner, which the trained model does not need.
      variance_weight: weight of the losses of duration, pitch and energy, each; the log-mel losses have 1.
      alignment_weight: weight of the forward-sum and of the binarisation loss. No parameter of the acoustic model
        depends on them.
      binarisation_start: step at which the binarisation loss begins, once the alignment is roughly right.
      binarisation_ramp: steps until it has its full weight.
    """

    kind: Literal["tts"] = "tts"
    text: Literal["transcript", "units"] = "transcript"
    aligner: AlignerConfig = AlignerConfig()
    variance_weight: NonNegativeFloat = 0.1
    alignment_weight: Annotated[float, Field(gt=0)] = 0.1
    binarisation_start: NonNegativeInt = 1000
    binarisation_ramp: NonNegativeInt = 1000

    @property
    def reads_units(self) -> bool:
        return self.text == "units"

    def check_data(self, data: Config) -> None:
        """Raises ValueError if speed perturbation would change the voice, or if units lack their k-means."""
        super().check_data(data)
        if self.reads_units and getattr(data, "units", None) is None:
            raise ValueError(
                "a voice of units needs their k-means: set data.units to a folder that `jax-speechlm units fit` wrote, "
                "or to a codec's"
            )
        if self.reads_units and data.tokenizer is not None:
            raise ValueError("a voice of units has their tokenizer: leave data.tokenizer out")

    def build(self, model: FastSpeech2Config, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective.

        The loss is a mean over frames; what is of tokens or of an utterance is first averaged over the utterance.
        Metrics: `loss`; `mel` and `mel_before` (mean absolute errors of the log-mel spectrogram after and before the
        postnet, with aligned durations); `duration`, `pitch`, `energy` (mean squared errors); `forward_sum` (nats a
        token); `binarisation` (nats a frame); `infeasible` (share of utterances with fewer frames than tokens, which
        are left out).
        """
        check_tokenizer(tokenizer)
        check_frontend(frontend, model.num_mel_bins)
        boundary = boundary_id(tokenizer)

        def make(rngs):
            return AlignedVoice(model, self.aligner, tokenizer, self.num_speakers, rngs=rngs)

        def score(module: AlignedVoice, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            batch = by_utterance(batch)
            return self.score(self.forward(module, batch, key, frontend, boundary), batch)

        def pictures(module: AlignedVoice, batch: Batch) -> dict[str, Array]:
            few = by_utterance(first_rows(batch))
            output = self.forward(module, few, None, frontend, boundary)
            return output.pictures() | spoken_clips(few, output.after, output.aligned.segments, frontend.mel)

        def flops(batch: Mapping[str, Any]) -> float:
            rows, samples = batch["audio"].shape
            frames = frontend.mel.num_frames(samples)
            count = min(text_places(batch, BOUNDARIES), frames)
            total = forward_flops(model, count, frames, rows)
            if model.text_lm is not None:  # frozen, as it is meant: one pass of three
                total += transformer_config.forward_flops(model.text_lm.transformer, 0, count, rows) / 3
            return total

        parts = {"batch_flops": flops, "training_only": ("aligner",), "pictures": on_params(make, pictures)}
        return Objective.of(make, score, **parts)

    def align(self, aligner: Aligner, batch: Batch, mel_BxTxF: Array, segments: Segments, boundary: int) -> Alignment:
        """Aligns the utterances of a batch with a dimension for them (`by_utterance`)."""
        num_frames = mel_BxTxF.shape[1]
        text, segments, feasible = texts_of(batch, segments, boundary, num_frames)
        longest, count = batch["tokens"].shape[-1] + BOUNDARIES, text.segments.length
        log_p = aligner(text, mel_BxTxF, segments, longest) + diagonal_prior(count, segments, longest, num_frames)
        path = monotonic_path(jax.lax.stop_gradient(log_p), segments, count)
        packed = jnp.where(path >= 0, path + segments.spread(text.segments.start, num_frames), -1)
        return Alignment(text, segments, feasible, log_p, path, one_hot_tokens(packed, text.tokens.shape[1]))

    def forward(
        self,
        module: AlignedVoice,
        batch: Batch,
        key: PRNGKeyArray | None,
        frontend: FrontEnd,
        boundary: int,
    ) -> "AcousticOutput":
        """Runs the forward pass of a batch with a dimension for utterances; dropout only with a key."""
        mel, segments = features(batch, frontend, None)
        aligned = self.align(module.aligner, batch, mel, segments, boundary)
        text, matrix = aligned.text, aligned.matrix
        encoder_keys, predictor_keys, decoder_keys = split_keys(row_keys(key, batch), 3)
        hidden = module.with_lora().encode(text.tokens, text.segments, batch.get("label"), encoder_keys)
        predicted = module.acoustic.predict(hidden, text.segments, predictor_keys)
        true = Variances(
            jnp.log(jnp.sum(matrix, axis=1) + 1),
            token_pitch(batch["pitch"], matrix),
            token_energy(mel, matrix),
        )
        x = repeat_by_frame(module.acoustic.add_variances(hidden, true.pitch, true.energy), matrix)
        return AcousticOutput(aligned, mel, *module.acoustic.decode(x, aligned.segments, decoder_keys), predicted, true)

    def score(self, output: "AcousticOutput", batch: Batch) -> Metrics:
        """Computes the losses of a forward pass."""
        aligned, mel, segments, text = output.aligned, output.mel, output.aligned.segments, output.aligned.text.segments
        forward_sum, _ = forward_sum_loss(aligned.log_p, segments, text.length)
        losses = {
            "mel": segments.mean(jnp.abs(output.after - mel).mean(-1)),
            "mel_before": segments.mean(jnp.abs(output.before - mel).mean(-1)),
            "duration": text.mean(jnp.square(output.predicted.log_duration - output.true.log_duration)),
            "pitch": text.mean(jnp.square(output.predicted.pitch - output.true.pitch)),
            "energy": text.mean(jnp.square(output.predicted.energy - output.true.energy)),
            "forward_sum": forward_sum / jnp.maximum(text.length, 1),
            "binarisation": segments.mean(binarisation_loss(aligned.log_p, aligned.path)),
        }
        weights = dict.fromkeys(("duration", "pitch", "energy"), self.variance_weight)
        weights |= {"mel": 1.0, "mel_before": 1.0, "forward_sum": self.alignment_weight}
        weights["binarisation"] = self.alignment_weight * self._share_of_binarisation(batch)
        losses["loss"] = sum(weights[name] * loss for name, loss in losses.items())
        frames = batch["weight"] * segments.length  # 0 of utterances that are left out
        metrics = {name: (jnp.sum(frames * loss), jnp.sum(frames)) for name, loss in losses.items()}
        metrics["infeasible"] = jnp.sum(batch["weight"] * ~aligned.feasible), jnp.sum(batch["weight"])
        return metrics

    def _share_of_binarisation(self, batch: Batch) -> Float[Array, ""] | float:
        """Returns the present share of the binarisation loss; in evaluation all of it."""
        if "step" not in batch:
            return 1.0
        return jnp.clip((batch["step"] - self.binarisation_start + 1) / max(self.binarisation_ramp, 1), 0, 1)


class AcousticOutput(NamedTuple):
    """Output of the forward pass of training."""

    aligned: Alignment
    mel: Float[Array, "batch time bins"]  # of the recordings
    before: Float[Array, "batch time bins"]  # computed, before the postnet
    after: Float[Array, "batch time bins"]
    predicted: Variances
    true: Variances

    def pictures(self) -> dict[str, Float[Array, "height width"]]:
        """Returns pictures of the first row: log-mel of the recording above the computed one, and the alignment."""
        num_frames, num_tokens = self.aligned.log_p.shape[1:]
        is_frame = self.aligned.segments.mask(num_frames)[0]
        is_token = jnp.arange(num_tokens) < self.aligned.text.segments.length[0, :1]
        share = jax.nn.softmax(self.aligned.log_p[0]).T
        share = jnp.where(is_frame & is_token[:, None], share, jnp.nan)
        return {"mel": mel_picture(is_frame, (self.mel[0], self.after[0])), "alignment": share[::-1]}


def token_pitch(
    hertz_BxT: Float[Array, "batch unpadded"], matrix_BxTxS: Float[Array, "batch time tokens"]
) -> Float[Array, "batch tokens"]:
    """Returns the mean normalised log-pitch of each token's voiced frames; 0, the center, without any.

    Args:
      hertz_BxT: 0 of unvoiced frames; time may lack the padding of the matrix's.
    """
    hertz_BxT = jnp.pad(hertz_BxT, ((0, 0), (0, matrix_BxTxS.shape[1] - hertz_BxT.shape[1])))
    voiced = hertz_BxT > 0  # False of NaN
    pitch = jnp.log(jnp.where(voiced, hertz_BxT, PITCH_HERTZ) / PITCH_HERTZ) / PITCH_RANGE
    return _mean_by_token(pitch, voiced.astype(jnp.float32), matrix_BxTxS)


def token_energy(
    mel_BxTxF: Float[Array, "batch time bins"], matrix_BxTxS: Float[Array, "batch time tokens"]
) -> Float[Array, "batch tokens"]:
    """Returns the mean log-energy of each token's frames: of the norm of the mel amplitudes, 0 at the center."""
    twice = 2 * jnp.log(10.0)
    energy = jax.scipy.special.logsumexp(twice * mel_BxTxF, axis=-1) / twice - ENERGY_CENTER
    return _mean_by_token(energy, jnp.ones_like(energy), matrix_BxTxS)


def _mean_by_token(value_BxT: Array, weight_BxT: Array, matrix_BxTxS: Array) -> Float[Array, "batch tokens"]:
    sums, counts = (
        jnp.einsum("bt,bts->bs", x, matrix_BxTxS, precision=jax.lax.Precision.HIGHEST)
        for x in (weight_BxT * value_BxT, weight_BxT)
    )
    return sums / jnp.maximum(counts, 1)
