"""Cepstra as features of recognizers, classifiers and probes: MFCC, linear prediction (LPC), and LPC's cepstrum."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Float, Float32, Int16

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments, at_rate
from jax_speechlm.frontend.logmel import PRE_EMPHASIS, LogMel, Taper, log_mel, normalize, pad_ends, tapers, windows_of
from jax_speechlm.frontend.mfcc import dct, slopes
from jax_speechlm.nn.layers import Count

_ROUNDING = 1 / 12
"""Variance of the rounding of samples to int16, added to the power of every sample: silence is predicted by nothing."""
_LEAST_NOISE = 1e-5
"""Share of a window's power that is added as white noise, so that float32 predicts pure tones too."""


class Cepstra(Config):
    """Settings of cepstral features, from Kaldi's windows of 25 ms every 10 ms, whole windows only.

    Attributes:
      variant: "mfcc" is the orthonormal cosine transform of log-mel bins. "lpc" is linear prediction: the logarithm of
        the power that remains, and the coefficients a of A(z) = 1 + a1 z^-1 + ... "lpcc" is the cepstrum of the filter
        that they describe.
      taper: window function.
      order: coefficients of a window after the first.
      num_filters: mel bins of "mfcc".
      differences: 1 adds the slope of each value over five windows, 2 the slope of that too.
      sample_rate: of the audio, in Hz; a multiple of 200.
      stack: windows concatenated to one feature vector.
      normalize: whether all values are normalised to zero mean and unit variance over the utterance (CMVN).
    """

    variant: Literal["mfcc", "lpc", "lpcc"] = "mfcc"
    taper: Taper = "hamming"
    order: Annotated[int, pydantic.Field(ge=1, le=40)] = 12
    num_filters: pydantic.PositiveInt = 40
    differences: Literal[0, 1, 2] = 2
    sample_rate: pydantic.PositiveInt = DEFAULT_SAMPLE_RATE
    stack: pydantic.PositiveInt = 1
    normalize: bool = True

    @pydantic.model_validator(mode="after")
    def _has_as_many_filters(self):
        if self.variant == "mfcc" and self.num_filters <= self.order:
            raise ValueError(
                f"{self.num_filters} mel bins have no cepstrum of order {self.order}: set num_filters above order"
            )
        _ = self.log_mel  # checks the sample rate
        return self

    @property
    def log_mel(self) -> LogMel:
        """The log-mel features with the same windows, one to a vector."""
        bins = {"num_mel_bins": self.num_filters, "taper": self.taper}
        return LogMel(sample_rate=self.sample_rate, stack=1, normalize=False, **bins)

    @property
    def num_mel_bins(self) -> int:
        """Values of a window, over which no frequency masks range."""
        return (self.order + 1) * (self.differences + 1)

    @property
    def input_dim(self) -> int:
        """Values of a feature vector."""
        return self.num_mel_bins * self.stack

    @property
    def window(self) -> int:
        """Samples of a window: 25 ms."""
        return self.log_mel.window

    @property
    def hop(self) -> int:
        """Samples from one window to the next: 10 ms."""
        return self.log_mel.hop

    @property
    def frame_samples(self) -> int:
        """Hop length in samples between feature vectors."""
        return self.hop * self.stack

    @property
    def context_samples(self) -> int:
        """Samples of a feature vector beyond its hop length."""
        return self.log_mel.context_samples

    @property
    def gap_samples(self) -> int:
        """Samples between two utterances of a row: none, as windows end where their utterance does."""
        return self.log_mel.gap_samples

    def num_frames(self, num_samples: Count) -> Count:
        """Returns the number of feature vectors of `num_samples` samples."""
        return self.log_mel.num_frames(num_samples) // self.stack


def cepstra(
    audio: Int16[Array, "batch samples"] | Float32[Array, "batch samples"], lengths: Lengths, config: Cepstra
) -> tuple[Float32[Array, "batch time features"], Lengths]:
    """Computes cepstral features, which depend neither on the padding of a row nor on its other utterances.

    Args:
      audio: samples at `config.sample_rate`: int16, or float32 on the same scale (-32768 to 32767).
      lengths: samples per row, or the utterances of packed rows, which start at whole feature vectors.

    Returns:
      Features, 0 at padding, and the number of feature vectors per row, or the utterances in feature vectors.
    """
    mel = config.log_mel
    windows = Segments.of(at_rate(lengths, mel.hop, mel.num_frames))
    if config.variant == "mfcc":
        bins_BxTxF, _ = log_mel(audio, lengths, mel)
        matrix = dct(config.num_filters, config.order + 1)
        x_BxTxC = jnp.matmul(bins_BxTxF, matrix, precision=jax.lax.Precision.HIGHEST)
    else:
        audio = jnp.where(Segments.of(lengths).mask(audio.shape[1]), audio.astype(jnp.float32), 0)
        frames_BxTxN = windows_of(pad_ends(audio, mel), mel.num_frames(audio.shape[1]), mel)
        power, coefficients = linear_prediction(_tapered(frames_BxTxN, config.taper), config.order)
        rest = coefficients if config.variant == "lpc" else cepstrum_of_prediction(coefficients)
        x_BxTxC = jnp.concatenate([jnp.log(power)[..., None], rest], axis=-1)
    parts = [x_BxTxC]
    for _ in range(config.differences):
        parts.append(slopes(parts[-1], windows))
    x_BxTxC = jnp.concatenate(parts, axis=-1)
    if config.normalize:
        x_BxTxC = normalize(x_BxTxC, windows)
    vectors, num_vectors = at_rate(lengths, config.frame_samples, config.num_frames), x_BxTxC.shape[1] // config.stack
    x = x_BxTxC[:, : num_vectors * config.stack].reshape(len(x_BxTxC), num_vectors, config.input_dim)
    return jnp.where(Segments.of(vectors).mask(num_vectors)[..., None], x, 0), vectors


def _tapered(frames: Float[Array, "batch time samples"], taper: Taper) -> Float[Array, "batch time samples"]:
    """Returns windows without their mean, pre-emphasised and tapered, as Kaldi's before the Fourier transform."""
    frames = frames - frames.mean(-1, keepdims=True)
    before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    return (frames - PRE_EMPHASIS * before) * np.float32(tapers(taper, frames.shape[-1]))


def linear_prediction(
    frames: Float[Array, "*batch samples"], order: int
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch {order}"]]:
    """Predicts samples from those before, by the autocorrelation method.

    Returns:
      The mean power of the error of a sample, and the coefficients a: sample n is about -sum_k a_k x[n - k].
    """
    size = frames.shape[-1]
    lags = [jnp.sum(frames[..., : size - lag] * frames[..., lag:], axis=-1) / size for lag in range(order + 1)]
    lags[0] = lags[0] * (1 + _LEAST_NOISE) + _ROUNDING
    return levinson(jnp.stack(lags, axis=-1))


def levinson(
    autocorrelation: Float[Array, "*batch lags"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch order"]]:
    """Solves the normal equations of linear prediction by the recursion of Levinson and Durbin.

    Args:
      autocorrelation: at lags from 0 to the order; of lag 0 above 0.

    Returns:
      The power of the error, and the coefficients a of A(z) = 1 + a1 z^-1 + a2 z^-2 + ...
    """
    power, known = autocorrelation[..., 0], autocorrelation[..., 1:]
    a = autocorrelation[..., :0]
    for order in range(known.shape[-1]):
        # Coefficient k meets the autocorrelation at lag order + 1 - k.
        ahead = known[..., order] + jnp.sum(a * known[..., :order][..., ::-1], axis=-1)
        reflection = -ahead / power
        a = jnp.concatenate([a + reflection[..., None] * a[..., ::-1], reflection[..., None]], axis=-1)
        power = power * (1 - jnp.square(reflection))
    return power, a


def cepstrum_of_prediction(coefficients: Float[Array, "*batch order"]) -> Float[Array, "*batch order"]:
    """Returns the cepstrum, from its first value on, of 1 / A(z), by Atal's recursion (1974)."""
    cepstrum: list[Array] = []
    for n in range(1, coefficients.shape[-1] + 1):
        earlier = sum(k / n * cepstrum[k - 1] * coefficients[..., n - k - 1] for k in range(1, n))
        cepstrum.append(-coefficients[..., n - 1] - earlier)
    return jnp.stack(cepstrum, axis=-1)
