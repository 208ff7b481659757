"""The front end: waveforms to log-mel features on device, with augmentation in training."""

import jax
from jaxtyping import Array, Float32, Int32, PRNGKeyArray

from jax_speechlm.core.batch import Batch, example_keys
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.augment import Augment, augment_audio, spec_augment
from jax_speechlm.frontend.logmel import LogMel, log_mel
from jax_speechlm.parallel import sequence


class FrontEnd(Config):
    """Settings of the front end.

    Attributes:
      mel: log-mel features.
      augment: augmentation in training; none by default.
    """

    mel: LogMel = LogMel()
    augment: Augment = Augment()

    def waveform_only(self) -> "FrontEnd":
        """Returns these settings without SpecAugment."""
        return self.replace(augment=self.augment.replace(time_masks=0, freq_masks=0))


def features(
    batch: Batch, config: FrontEnd, key: PRNGKeyArray | None
) -> tuple[Float32[Array, "batch time features"], Int32[Array, " batch"]]:
    """Computes the features of a batch.

    Args:
      batch: has `audio`, `audio_length` and, with a key, `example_id`; also `noise` if the config adds it.
      key: the step's key for augmentation; None for no augmentation.

    Returns:
      Features, their time padded to divide over the devices of the mesh axis "sequence", and feature vectors per row.
    """
    audio, audio_length = batch["audio"], batch["audio_length"]
    if key is None:
        x_BxTxF, length_B = log_mel(audio, audio_length, config.mel)
        return sequence.pad_time(x_BxTxF), length_B
    wave_key, spec_key = jax.random.split(key)
    keys = example_keys(wave_key, batch["example_id"])
    audio, audio_length = augment_audio(
        audio, audio_length, keys, config.augment, batch.get("noise"), config.mel.sample_rate
    )
    x_BxTxF, length_B = log_mel(audio, audio_length, config.mel)
    x_BxTxF = sequence.pad_time(x_BxTxF)
    keys = example_keys(spec_key, batch["example_id"])
    return spec_augment(x_BxTxF, length_B, keys, config.augment, config.mel.num_mel_bins), length_B
