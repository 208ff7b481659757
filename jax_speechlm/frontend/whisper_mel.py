"""Log-mel features of Whisper (Radford et al. 2022, section 2.2), as its models on Hugging Face take them."""

import functools
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

_WINDOW, _HOP = 400, 160  # samples: 25 ms, 10 ms
_FLOOR = 1e-10  # lower bound of the power of a bin, for samples in [-1, 1)
_RANGE = 8.0  # powers of ten below the loudest bin that are told apart
_COARSE_BITS = 7


class WhisperMel(Config):
    """Settings of Whisper's features: windows of 25 ms every 10 ms, as of `WhisperFeatureExtractor` of transformers.

    A value is (max(x, loudest - 8) + 4) / 4 for the base-10 logarithm x of a bin's power on Slaney's mel scale and the
    loudest x of the utterance.

    Attributes:
      num_mel_bins: mel bins of a frame: 80, or 128 in Whisper large-v3.
      window_seconds: every utterance becomes a stretch of this length, filled with silence or cut at its end, as
        Whisper was trained: 30 s. None computes the frames of its own samples only, which suits objectives such as CTC
        on short utterances.
      sample_rate: of the audio, in Hz.
    """

    variant: Literal["whisper"] = "whisper"
    num_mel_bins: pydantic.PositiveInt = 80
    window_seconds: pydantic.PositiveInt | None = 30
    sample_rate: Literal[16_000] = DEFAULT_SAMPLE_RATE

    @pydantic.field_validator("num_mel_bins")
    @classmethod
    def _has_filters(cls, value: int) -> int:
        if value > 2 * _WINDOW or not _filters(value).any(axis=0).all():
            raise ValueError(f"num_mel_bins ({value}) leaves bins without a frequency of the transform: set 80 or 128")
        return value

    @property
    def stack(self) -> int:
        """Frames of a feature vector."""
        return 1

    @property
    def input_dim(self) -> int:
        """Values of a frame."""
        return self.num_mel_bins

    @property
    def frame_samples(self) -> int:
        """Samples from one frame to the next."""
        return _HOP

    @property
    def context_samples(self) -> int:
        """Samples of a frame beyond its hop: none, as the ends are reflected."""
        return 0

    @property
    def gap_samples(self) -> int:
        """Samples between two utterances of a row, where the end of one and the start of the next are reflected."""
        return _WINDOW if self.window_seconds is None else 0

    def num_frames(self, num_samples: Count) -> Count:
        """Returns the number of frames of an utterance of `num_samples` samples."""
        if self.window_seconds is None:
            return num_samples // _HOP
        return self.window_seconds * self.sample_rate // _HOP * (num_samples >= 1)


def whisper_mel(
    audio: Int16[Array, "batch samples"] | Float32[Array, "batch samples"], lengths: Lengths, config: WhisperMel
) -> tuple[Float32[Array, "batch time bins"], Lengths]:
    """Computes features, which depend neither on the padding of a row nor on its other utterances.

    Args:
      audio: samples at `config.sample_rate`: int16, or float32 on the same scale (-32768 to 32767).
      lengths: samples per row, or the utterances of packed rows, which start at whole frames and leave
        `config.gap_samples` between each other; lengths may be 0.

    Returns:
      Features, 0 at padding, and the number of frames per row, or the utterances in frames. With `window_seconds`, the
      utterances of a row stand one window after another.
    """
    segments = Segments.of(lengths)
    if config.window_seconds is not None:
        return _of_windows(audio, segments, lengths, config)
    num_frames = config.num_frames(audio.shape[1])
    x_BxTxF = _log_mel(spectrum.reflected(audio, segments, _WINDOW // 2), num_frames, config.num_mel_bins)
    frames = at_rate(lengths, _HOP, config.num_frames)
    in_frames = Segments.of(frames)
    belongs_BxTxN = in_frames.belongs(num_frames)
    loudest_BxN = jnp.max(x_BxTxF.max(-1)[..., None], axis=1, where=belongs_BxTxN, initial=jnp.log10(_FLOOR))
    x_BxTxF = _scaled(x_BxTxF, in_frames.spread(loudest_BxN, num_frames)[..., None])
    return jnp.where(in_frames.mask(num_frames)[..., None], x_BxTxF, 0), frames


def _of_windows(
    audio: Array, segments: Segments, lengths: Lengths, config: WhisperMel
) -> tuple[Float32[Array, "batch time bins"], Lengths]:
    """Computes features of utterances that are filled with silence to a window each."""
    batch, num, size = len(audio), segments.num, config.window_seconds * config.sample_rate
    if num == 1:
        # Padding by the largest amount needed and cutting the excess keeps sizes symbolic (`jax.export`).
        windows = jnp.pad(audio, ((0, 0), (0, size)))[:, :size]
    else:
        index = (segments.start[..., None] + jnp.arange(size)).reshape(batch, num * size)
        windows = jnp.take_along_axis(audio, index, axis=1, mode="clip").reshape(batch * num, size)
    inside = jnp.arange(size) < segments.length.reshape(batch * num, 1)
    windows = jnp.where(inside, windows.astype(jnp.float32), 0)
    frames = segments.length.astype(jnp.int32)
    frames = config.num_frames(frames)
    each = size // _HOP
    x = _log_mel(stft.reflect(windows, _WINDOW // 2), each, config.num_mel_bins)
    x = _scaled(x, x.max((1, 2), keepdims=True))
    x = jnp.where(frames.reshape(-1, 1, 1) > 0, x, 0).reshape(batch, num * each, config.num_mel_bins)
    if not isinstance(lengths, Segments):
        return x, frames[:, 0]
    start = jnp.broadcast_to(each * jnp.arange(num, dtype=jnp.int32), frames.shape)
    return x, Segments(start, frames)


def _log_mel(
    audio: Float[Array, "batch padded"], num_frames: stft.Size, num_mel_bins: int
) -> Float32[Array, "batch time bins"]:
    """Returns base-10 logarithms of the bins' powers of rows that half a window has been added to on each side."""
    *matrices, filters = _matrices(num_mel_bins)
    power = spectrum.power(audio, num_frames, _HOP, tuple(matrices))
    return jnp.log10(jnp.maximum(spectrum.product(power, filters), _FLOOR))


def _scaled(x: Float[Array, "batch time bins"], loudest: Float[Array, "batch _ 1"]) -> Float[Array, "batch time bins"]:
    return (jnp.maximum(x, loudest - _RANGE) + 4) / 4


def _filters(num_mel_bins: int) -> np.ndarray:
    hertz = np.arange(_WINDOW // 2 + 1) * DEFAULT_SAMPLE_RATE / _WINDOW
    return mel_filters(num_mel_bins, hertz, 0.0, DEFAULT_SAMPLE_RATE / 2)


@functools.cache
def _matrices(num_mel_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns both halves of the DFT (`spectrum.half_dfts`) and the mel filters, of used frequencies."""
    filters = _filters(num_mel_bins)
    used = np.flatnonzero(filters.any(axis=1))
    return *spectrum.half_dfts(_WINDOW, _WINDOW, used, _COARSE_BITS), filters[used].astype(np.float32)
