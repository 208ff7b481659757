"""Pretraining of FastSpeech 2's decoder on speech without text: restoring log-mel frames from few of them.

A decoder learns acoustics from unpaired speech, so that the paired speech has less to teach it (Chung et al. 2018,
"Semi-supervised training for improving data efficiency in end-to-end speech synthesis", who let an autoregressive
decoder predict the next frame without text). FastSpeech 2's decoder has no next frame. In synthesis its input is one
vector for each token, repeated for the frames of the token; so here its input is one log-mel frame for each stretch of
about the length of a token, repeated, and it restores the others. Some stretches are left out altogether, as masked
frames are in A3T (Bai et al. 2022). The input goes through a linear map that takes the place of the text encoder.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models.tts.fastspeech2 import MEAN_LOG_MEL, FastSpeech2Config, FrameDecoder, decoder_flops
from jax_speechlm.nn.layers import FrameKeys, Linear
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, split_row_keys
from jax_speechlm.objectives.tts.voices import check_frontend


class MelRestoration(ObjectiveConfig):
    """Settings of the pretraining of a decoder.

    Attributes:
      stretch: mean frames of a stretch, of which the decoder reads the first; about the frames of a token.
      masked: share of the stretches of which it reads none.
    """

    kind: Literal["mel_restoration"] = "mel_restoration"
    stretch: Annotated[float, pydantic.Field(ge=1)] = 5.0
    masked: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.2

    def build(self, model: FastSpeech2Config, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective.

        The groups `acoustic/decoder`, `acoustic/head` and `acoustic/postnet` are those of an acoustic model. The loss
        is a mean over frames. Metrics: `loss`; `mel` and `mel_before`, the mean absolute errors of the log-mel
        spectrogram after and before the postnet. In evaluation the stretches are fixed.
        """
        del tokenizer
        check_frontend(frontend, model.num_mel_bins)

        def make(rngs):
            return MelRestorer(model, rngs=rngs)

        def score(module: MelRestorer, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            batch = by_utterance(batch)
            mel, segments = features(batch, frontend, None)
            own_keys, dropout_keys = split_row_keys(key, batch)
            held, known = hold(mel, segments, own_keys, self.stretch, self.masked)
            outputs = module(held, known, segments, dropout_keys)
            before, after = (segments.mean(jnp.abs(output - mel).mean(-1)) for output in outputs)
            frames = batch["weight"] * segments.length
            losses = {"loss": after + before, "mel": after, "mel_before": before}
            return {name: (jnp.sum(frames * loss), jnp.sum(frames)) for name, loss in losses.items()}

        def flops(batch: Mapping[str, Any]) -> float:
            rows, samples = batch["audio"].shape
            frames = frontend.mel.num_frames(samples)
            return decoder_flops(model, frames, rows) + 2.0 * rows * frames * model.num_mel_bins * model.dim

        return Objective.of(make, score, batch_flops=flops, training_only=("frames",))


class MelRestorer(nnx.Module):
    """A decoder, with a linear map of log-mel frames in place of the text encoder."""

    def __init__(self, config: FastSpeech2Config, *, rngs: nnx.Rngs):
        self.acoustic = FrameDecoder(config, rngs=rngs)
        # Initially as large as the encoder's outputs, whose layer norm leaves values of about 1.
        self.frames = Linear((config.num_mel_bins,), (config.dim,), (None, "embed"), gain=2.0, rngs=rngs)

    def __call__(
        self,
        mel_BxTxF: Float[Array, "batch time bins"],
        known_BxT: Bool[Array, "batch time"],
        segments: Segments,
        keys: Key[Array, "batch utterances"] | None = None,
    ) -> tuple[Float[Array, "batch time bins"], Float[Array, "batch time bins"]]:
        """Returns log-mel before and after the postnet, see `FrameDecoder.decode`; the input is 0 where unknown."""
        x = jnp.where(known_BxT[..., None], self.frames(mel_BxTxF - MEAN_LOG_MEL), 0)
        return self.acoustic.decode(x, segments, keys)


def hold(
    mel_BxTxF: Float[Array, "batch time bins"],
    segments: Segments,
    keys_BxN: Key[Array, "batch utterances"],
    stretch: float,
    masked: float,
) -> tuple[Float[Array, "batch time bins"], Bool[Array, "batch time"]]:
    """Cuts utterances into stretches of random length.

    Args:
      keys_BxN: one key an utterance, which with a frame's position in it decides where stretches begin.
      stretch: their mean length, geometrically distributed.
      masked: probability that a stretch is masked.

    Returns:
      The first frame of each stretch, repeated for its length; and False in masked stretches, True in others.
    """
    num_frames = mel_BxTxF.shape[1]
    keys = FrameKeys(keys_BxN, segments).frames(num_frames)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys.reshape(-1)).reshape(*keys.shape, 2)
    begins = (segments.position(num_frames) == 0) | (draws[..., 0] < 1 / stretch)
    first = jax.lax.cummax(jnp.where(begins, jnp.arange(num_frames), 0), axis=1)
    held = jnp.take_along_axis(mel_BxTxF, first[..., None], axis=1)
    return held, jnp.take_along_axis(draws[..., 1], first, axis=1) >= masked
