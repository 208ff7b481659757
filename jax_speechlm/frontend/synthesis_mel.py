"""Mel spectrograms that speech is synthesised from: base-10 logarithms of mel amplitudes, not normalised.

Acoustic models predict them and vocoders turn them into samples, so they have the exact form of SpeechT5's, which the
vocoders of Hugging Face's transformers take too (`SpeechT5HifiGan`).
"""

import functools
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Float, Float32, Int16

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments, at_rate
from jax_speechlm.frontend import spectrum
from jax_speechlm.frontend.logmel import mel_filters
from jax_speechlm.nn import stft
from jax_speechlm.nn.layers import Count

_COARSE_BITS = 7
_SMALLEST_POWER = 1e-24
"""Below every floor in use, and far enough from 0 for a finite gradient of the amplitude."""


class SynthesisMel(Config):
    """Settings of mel spectrograms for synthesis: centred windows, the ends of an utterance reflected.

    Attributes:
      variant: "speecht5" is `SpeechT5FeatureExtractor(audio_target=...)` of Hugging Face's transformers: amplitudes,
        Slaney's mel scale, filters of area 1, base-10 logarithms.
      sample_rate: of the audio, in Hz.
      hop: samples from one window to the next.
      window: samples of a Hann window; the Fourier transform has the next power of two.
      num_mel_bins: mel bins of a frame.
      low_hertz: lower edge of the lowest bin.
      high_hertz: upper edge of the highest bin.
      floor: lower bound of the amplitude of a bin, for samples in [-1, 1).
    """

    variant: Literal["speecht5"] = "speecht5"
    sample_rate: pydantic.PositiveInt = DEFAULT_SAMPLE_RATE
    hop: pydantic.PositiveInt = 256
    window: pydantic.PositiveInt = 1024
    num_mel_bins: pydantic.PositiveInt = 80
    low_hertz: pydantic.NonNegativeFloat = 80.0
    high_hertz: pydantic.PositiveFloat = 7600.0
    floor: pydantic.confloat(ge=1e-11) = 1e-10

    @pydantic.model_validator(mode="after")
    def _fit(self):
        """Refuses windows and bins that cannot be computed."""
        if self.window % 2 or self.window < self.hop:
            raise ValueError(f"window ({self.window}) must be even and at least hop ({self.hop})")
        if not self.low_hertz < self.high_hertz <= self.sample_rate / 2:
            raise ValueError(
                f"low_hertz ({self.low_hertz:g}) must be below high_hertz ({self.high_hertz:g}), which is at most half "
                f"of sample_rate ({self.sample_rate})"
            )
        if not self.filters().any(axis=0).all():
            raise ValueError(
                f"num_mel_bins ({self.num_mel_bins}) leaves bins without a frequency of the transform: set fewer bins, "
                f"or a longer window than {self.window} samples"
            )
        return self

    @property
    def n_fft(self) -> int:
        """Samples of the Fourier transform."""
        return 2 ** math.ceil(math.log2(self.window))

    @property
    def input_dim(self) -> int:
        """Values of a frame."""
        return self.num_mel_bins

    @property
    def frame_samples(self) -> int:
        """Samples from one frame to the next."""
        return self.hop

    @property
    def context_samples(self) -> int:
        """Samples of a frame beyond its hop; negative, as the ends are padded."""
        return -self.hop

    @property
    def gap_samples(self) -> int:
        """Samples between two utterances of a row, where the end of one and the start of the next are reflected."""
        return self.window

    def num_frames(self, num_samples: Count) -> Count:
        """Returns the number of frames of `num_samples` samples."""
        return (num_samples // self.hop + 1) * (num_samples >= 1)

    def filters(self) -> np.ndarray:
        """Returns the mel filters, float64 [n_fft / 2 + 1, bins]."""
        hertz = np.arange(self.n_fft // 2 + 1) * self.sample_rate / self.n_fft
        return mel_filters(self.num_mel_bins, hertz, self.low_hertz, self.high_hertz)


def synthesis_mel(
    audio: Int16[Array, "batch samples"] | Float32[Array, "batch samples"],
    lengths: Lengths | None,
    config: SynthesisMel,
) -> tuple[Float32[Array, "batch time bins"], Lengths]:
    """Computes mel spectrograms, which depend neither on the padding of a row nor on its other utterances.

    Args:
      audio: samples at `config.sample_rate`: int16, or float32 on the same scale (-32768 to 32767).
      lengths: samples per row, or the utterances of packed rows, which start at whole frames and leave
        `config.gap_samples` between each other; lengths may be 0. None of rows without padding that are longer than
        half a window: the gradient of the audio is then free of scatters.

    Returns:
      Base-10 logarithms of mel amplitudes, 0 at padding, and the number of frames per row, or the utterances in frames.
    """
    num_rows, num_samples = audio.shape
    num_frames, reach = config.num_frames(num_samples), config.window // 2
    if lengths is None:
        audio = stft.reflect(audio.astype(jnp.float32), reach)
        return _mel(audio, num_frames, config), jnp.full(num_rows, num_frames, jnp.int32)
    mel = _mel(spectrum.reflected(audio, Segments.of(lengths), reach), num_frames, config)
    frames = at_rate(lengths, config.hop, config.num_frames)
    return jnp.where(Segments.of(frames).mask(num_frames)[..., None], mel, 0), frames


def _mel(
    audio: Float[Array, "batch padded"], num_frames: int, config: SynthesisMel
) -> Float32[Array, "batch time bins"]:
    """Returns the spectrograms of rows that half a window has been added to on each side."""
    *matrices, filters = _matrices(config)
    power = spectrum.power(audio, num_frames, config.hop, tuple(matrices))
    mel = spectrum.product(jnp.sqrt(jnp.maximum(power, _SMALLEST_POWER)), filters)
    return jnp.log10(jnp.maximum(mel, config.floor))


@functools.cache
def _matrices(config: SynthesisMel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns both halves of the DFT (`spectrum.half_dfts`) and the mel filters, of used frequencies."""
    filters = config.filters()
    used = np.flatnonzero(filters.any(axis=1))
    return *spectrum.half_dfts(config.window, config.n_fft, used, _COARSE_BITS), filters[used].astype(np.float32)
