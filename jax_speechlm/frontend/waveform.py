"""Waveforms as features, for encoders of samples (`Wav2Vec2Encoder`)."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int16

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.nn.layers import Count

_GUARD = 1e-7  # added to the variance of samples in [-1, 1)


class Waveform(Config):
    """Settings of samples as features, as of `Wav2Vec2FeatureExtractor` of transformers; a sample is a feature vector.

    Attributes:
      normalize: whether an utterance gets mean 0 and variance 1; otherwise samples are in [-1, 1).
      sample_rate: of the audio, in Hz.
    """

    variant: Literal["waveform"] = "waveform"
    normalize: bool = True
    sample_rate: Literal[16_000] = DEFAULT_SAMPLE_RATE

    @property
    def num_mel_bins(self) -> int:
        """Values of a sample: 1."""
        return 1

    @property
    def stack(self) -> int:
        """Samples of a feature vector: 1."""
        return 1

    @property
    def input_dim(self) -> int:
        """Values of a feature vector: 1."""
        return 1

    @property
    def frame_samples(self) -> int:
        """Samples from one feature vector to the next: 1."""
        return 1

    @property
    def context_samples(self) -> int:
        """Samples of a feature vector beyond its own: 0."""
        return 0

    @property
    def gap_samples(self) -> int:
        """Samples between two utterances of a row: 0."""
        return 0

    def num_frames(self, num_samples: Count) -> Count:
        """Returns the number of feature vectors of `num_samples` samples."""
        return num_samples


def waveform(
    audio: Int16[Array, "batch samples"] | Float32[Array, "batch samples"], lengths: Lengths, config: Waveform
) -> tuple[Float32[Array, "batch samples 1"], Lengths]:
    """Computes features, which depend neither on the padding of a row nor on its other utterances.

    Args:
      audio: samples at `config.sample_rate`: int16, or float32 on the same scale (-32768 to 32767).
      lengths: samples per row, or the utterances of packed rows; may be 0.

    Returns:
      Features, 0 at padding, and the lengths.
    """
    segments, num_samples = Segments.of(lengths), audio.shape[1]
    inside = segments.mask(num_samples)
    x = jnp.where(inside, audio.astype(jnp.float32) / 32768, 0)
    if config.normalize:
        for _ in range(2):  # twice, because float32 rounds a long sum
            x = x - segments.spread(segments.mean(x), num_samples)
        scale = (segments.mean(jnp.square(x)) + _GUARD) ** -0.5
        x = x * segments.spread(scale, num_samples)
    return jnp.where(inside, x, 0)[..., None], lengths
