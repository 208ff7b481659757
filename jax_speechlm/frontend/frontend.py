"""The front end: waveforms to mel features on device, with augmentation in training."""

from typing import Annotated, Any, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Float32, PRNGKeyArray

from jax_speechlm.core.batch import Batch, example_keys, lengths_of
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.frontend.augment import Augment, Keys, augment_audio, spec_augment
from jax_speechlm.frontend.cepstra import Cepstra, cepstra
from jax_speechlm.frontend.logmel import LogMel, log_mel
from jax_speechlm.frontend.synthesis_mel import SynthesisMel, synthesis_mel
from jax_speechlm.frontend.time_warp import warp_time
from jax_speechlm.frontend.waveform import Waveform, waveform
from jax_speechlm.frontend.whisper_mel import WhisperMel, whisper_mel
from jax_speechlm.parallel import sequence

AnyMel: TypeAlias = LogMel | SynthesisMel | WhisperMel | Waveform | Cepstra
"""Settings of features: log-mel or cepstra, for models that recognise speech; for models that synthesise it; Whisper's;
or samples."""

_TAGGED = (SynthesisMel, "synthesis"), (WhisperMel, "whisper"), (Waveform, "waveform"), (Cepstra, "cepstra")
_TAGS = {variant: tag for mel, tag in _TAGGED for variant in get_args(mel.model_fields["variant"].annotation)}


def _class_of(mel: Any) -> str:
    """Returns the tag of the class of settings, by their variant; earlier versions had `LogMel` only."""
    variant = mel.get("variant") if isinstance(mel, dict) else getattr(mel, "variant", None)
    return _TAGS.get(variant, "log")


_VOICES = 5  # warps that `augment.vocal_tract` chooses among

_COMPUTE = {
    LogMel: log_mel,
    SynthesisMel: synthesis_mel,
    WhisperMel: whisper_mel,
    Waveform: waveform,
    Cepstra: cepstra,
}


class FrontEnd(Config):
    """Settings of the front end.

    Attributes:
      mel: log-mel features, mel spectrograms for synthesis (`variant` "speecht5"), Whisper's (`variant` "whisper"), or
        cepstra (`variant` "mfcc", "lpc" or "lpcc"), or samples (`variant` "waveform").
      augment: augmentation in training; none by default. Spectrograms for synthesis are not masked, and samples over
        time only.
    """

    mel: Annotated[
        Annotated[LogMel, pydantic.Tag("log")]
        | Annotated[SynthesisMel, pydantic.Tag("synthesis")]
        | Annotated[WhisperMel, pydantic.Tag("whisper")]
        | Annotated[Cepstra, pydantic.Tag("cepstra")]
        | Annotated[Waveform, pydantic.Tag("waveform")],
        pydantic.Discriminator(_class_of),
    ] = LogMel()
    augment: Augment = Augment()

    @pydantic.model_validator(mode="after")
    def _masks_suit_the_features(self):
        augment = self.augment
        moves = augment.time_masks or augment.freq_masks or augment.time_warp or augment.frame_jitter
        if isinstance(self.mel, SynthesisMel) and moves:
            raise ValueError(
                "SpecAugment masks and moves normalised features, and mel spectrograms for synthesis are not: set "
                "frontend.augment.time_masks, freq_masks, time_warp and frame_jitter to 0"
            )
        if self.augment.vocal_tract and (not isinstance(self.mel, LogMel) or self.mel.variant != "kaldi"):
            raise ValueError(
                f"frontend.augment.vocal_tract warps the mel filters of the variant kaldi, not {self.mel.variant}: set "
                "it to 0"
            )
        if isinstance(self.mel, Cepstra | Waveform) and self.augment.freq_masks:
            raise ValueError(
                f"frequency masks are bands of mel bins, of which {self.mel.variant} has none: set "
                "frontend.augment.freq_masks to 0"
            )
        if isinstance(self.mel, Waveform) and (augment.time_warp or augment.frame_jitter):
            raise ValueError(
                "frontend.augment.time_warp and frame_jitter move frames, and a waveform has samples: set them to 0"
            )
        return self

    def waveform_only(self) -> "FrontEnd":
        """Returns these settings without SpecAugment."""
        return self.replace(augment=self.augment.replace(time_masks=0, freq_masks=0))


def features(
    batch: Batch, config: FrontEnd, key: PRNGKeyArray | None
) -> tuple[Float32[Array, "batch time features"], Lengths]:
    """Computes the features of a batch.

    Args:
      batch: has `audio`, `audio_length`, in packed rows `audio_start`, and with a key `example_id`; also `noise` if the
        config adds it.
      key: the step's key for augmentation; None for no augmentation.

    Returns:
      Features, their time padded to divide over the devices of the mesh axis "sequence", and the segments of packed
      rows in feature vectors, or feature vectors per row.
    """
    audio, lengths, mel = batch["audio"], lengths_of(batch), config.mel
    if key is not None:
        wave_key, spec_key = jax.random.split(key)
        keys = example_keys(wave_key, batch["example_id"])
        audio, lengths = augment_audio(audio, lengths, keys, config.augment, batch.get("noise"), mel.sample_rate)
    if key is not None and config.augment.vocal_tract:
        warp_keys = example_keys(jax.random.fold_in(wave_key, 1), batch["example_id"])
        x_BxTxF, lengths = _of_other_voices(audio, lengths, warp_keys, mel, config.augment.vocal_tract)
    else:
        x_BxTxF, lengths = _COMPUTE[type(mel)](audio, lengths, mel)
    x_BxTxF = sequence.pad_time(x_BxTxF)
    if key is None or isinstance(mel, SynthesisMel):
        return x_BxTxF, lengths
    keys = example_keys(spec_key, batch["example_id"])
    if config.augment.time_warp or config.augment.frame_jitter:
        warp_keys = example_keys(jax.random.fold_in(spec_key, 1), batch["example_id"])
        x_BxTxF = warp_time(x_BxTxF, lengths, warp_keys, config.augment.time_warp, config.augment.frame_jitter)
    return spec_augment(x_BxTxF, lengths, keys, config.augment, mel.num_mel_bins), lengths


def _of_other_voices(
    audio: Float32[Array, "batch samples"], lengths: Lengths, keys: Keys, mel: LogMel, most: float
) -> tuple[Float32[Array, "batch time features"], Lengths]:
    """Computes log-mel features with one of five warps for each utterance."""
    segments = Segments.of(lengths)
    draw = jax.vmap(jax.vmap(lambda key: jax.random.randint(key, (), 0, _VOICES)))
    chosen_BxN = draw(keys.reshape(segments.length.shape))
    total = 0.0
    for number, factor in enumerate(np.linspace(1 - most, 1 + most, _VOICES)):
        x_BxTxF, vectors = log_mel(audio, lengths, mel.replace(warp=mel.warp * float(factor)))
        is_chosen = Segments.of(vectors).spread(chosen_BxN == number, x_BxTxF.shape[1])
        total = total + jnp.where(is_chosen[..., None], x_BxTxF, 0)
    return total, vectors
