"""Examples of a validation for TensorBoard: the first utterances as recorded, and as a model computes them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_speechlm.core.batch import Batch
from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.griffin_lim import mel_to_audio
from jax_speechlm.frontend.synthesis_mel import SynthesisMel

NUM_CLIPS = 3
LONGEST_CLIP = 4.0
"""Seconds of an utterance; with `NUM_CLIPS` it bounds what a validation costs."""

_ITERATIONS = 16  # of Griffin-Lim: half of the time, and a spectrogram nearly as near


def first_rows(batch: Batch) -> Batch:
    """Returns the first `NUM_CLIPS` rows of a batch."""
    return {name: values[:NUM_CLIPS] for name, values in batch.items()}


def clip_frames(batch: Batch, mel: SynthesisMel) -> int:
    """Returns the frames of an utterance that an example has: those of its row, or of `LONGEST_CLIP`."""
    return min(batch["audio"].shape[1] // mel.hop, int(LONGEST_CLIP * mel.sample_rate) // mel.hop)


def clips(lengths: Int[Array, " rows"], **audio: Float[Array, "rows samples"]) -> dict[str, Float[Array, " samples"]]:
    """Returns waveforms by name, "clip_1_natural" of the first row of `natural`; NaN beyond the row's length.

    Args:
      lengths: valid samples of each row, the same for all; further rows are left out.
    """
    return {
        f"clip_{row + 1}_{name}": jnp.where(jnp.arange(values.shape[1]) < lengths[row], values[row], jnp.nan)
        for row in range(min(len(lengths), NUM_CLIPS))
        for name, values in audio.items()
    }


def spoken_clips(
    batch: Batch, mel: Float[Array, "rows time bins"], segments: Segments, config: SynthesisMel
) -> dict[str, Float[Array, " samples"]]:
    """Returns the start of rows as recorded ("natural"), and of their computed spectrograms by Griffin-Lim ("voice").

    Args:
      batch: in the form of `by_utterance`.
      segments: utterances of the rows in frames; the rest is silent.
    """
    frames = clip_frames(batch, config)
    inside = segments.mask(mel.shape[1])[..., None]
    mel = jnp.where(inside, mel, jnp.log10(config.floor))[:, :frames]
    lengths = jnp.minimum(jnp.max(batch["audio_start"] + batch["audio_length"], axis=1), frames * config.hop)
    voice = mel_to_audio(mel, jnp.full(len(mel), frames), config, iterations=_ITERATIONS)
    natural = batch["audio"][:, : frames * config.hop] / 2.0**15
    return clips(lengths, natural=natural, voice=voice)
