"""The front end: waveforms to log-mel features on device, with augmentation in training."""

import jax
from jaxtyping import Array, Float32, PRNGKeyArray

from jax_speechlm.core.batch import Batch, example_keys, lengths_of
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths
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
    audio, lengths = batch["audio"], lengths_of(batch)
    if key is None:
        x_BxTxF, lengths = log_mel(audio, lengths, config.mel)
        return sequence.pad_time(x_BxTxF), lengths
    wave_key, spec_key = jax.random.split(key)
    keys = example_keys(wave_key, batch["example_id"])
    audio, lengths = augment_audio(audio, lengths, keys, config.augment, batch.get("noise"), config.mel.sample_rate)
    x_BxTxF, lengths = log_mel(audio, lengths, config.mel)
    x_BxTxF = sequence.pad_time(x_BxTxF)
    keys = example_keys(spec_key, batch["example_id"])
    return spec_augment(x_BxTxF, lengths, keys, config.augment, config.mel.num_mel_bins), lengths
