"""Log-mel filter banks from 16 kHz samples, on device, as two matrix products.

A frame's spectrum is `frame @ dft`: the window and all else linear that comes before the Fourier transform (Kaldi's DC
removal and pre-emphasis) is folded into the matrix, in double precision. There is no FFT: XLA gathers a batch-sharded
FFT onto every device (openxla/xla#24), while a matrix product stays where its rows are.
"""

import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Float, Float32, Int, Int16, Int32

from data_pipelines.core.audio_format import SAMPLE_RATE
from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.nn.layers import Count

WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms

# The least power of a mel bin, and what is added to it. Librosa's and NeMo's samples lie in [-1, 1), so their unit of
# power is 2^30 of ours.
_FLOOR = {"kaldi": 1.192092955078125e-07, "librosa": 1e-10 * 2.0**30, "nemo": 0.0}
_GUARD = {"kaldi": 0.0, "librosa": 0.0, "nemo": 2.0**-24 * 2.0**30}
_LOG_UNIT = {"kaldi": 0.0, "librosa": 30 * math.log(2), "nemo": 30 * math.log(2)}
_PRE_EMPHASIS = 0.97

_SPAN = {"kaldi": WINDOW, "librosa": WINDOW, "nemo": WINDOW + 1}  # samples that a window is made of

# Float32 sums would spoil the quiet bins beside a loud low tone, by a tenth of their power. Two things prevent that.
# Samples enter as differences, small where speech is loud (the matrix sums them up again). And the matrix is the sum of
# two: integers times one of so many significant binary places add up exactly, and what the other adds is small.
_COARSE_BITS = {"kaldi": 8, "librosa": 6, "nemo": 8}


class LogMel(Config):
    """Which log-mel features to compute. 25 ms windows, 10 ms apart.

    Attributes:
      variant: "kaldi" is Kaldi's fbank as Hugging Face's `SeamlessM4TFeatureExtractor` has it, of whole windows only.
        "librosa" is the logarithm of `librosa.feature.melspectrogram(y, sr=16000, n_fft=400, hop_length=160)`, at least
        1e-10; windows are centred, the ends padded with zeros. "nemo" is NeMo's as Hugging Face's
        `ParakeetFeatureExtractor` has it: librosa's mel scale on pre-emphasised samples, windows centred, as many as
        there are whole hops. All logarithms are natural.
      num_mel_bins: mel bins a frame.
      stack: frames laid end to end in one feature vector; 2 gives the conformer one vector each 20 ms, 4 each 40 ms.
        Frames that do not fill the last vector are dropped.
      normalize: whether each mel bin gets zero mean and unit variance over the utterance.
    """

    OLD_NAMES: ClassVar[dict[str, str]] = {"flavour": "variant"}

    variant: Literal["kaldi", "librosa", "nemo"] = "kaldi"
    num_mel_bins: pydantic.PositiveInt = 80
    stack: pydantic.PositiveInt = 2
    normalize: bool = True

    @property
    def input_dim(self) -> int:
        """Size of one feature vector."""
        return self.num_mel_bins * self.stack

    @property
    def frame_samples(self) -> int:
        """Samples from one feature vector to the next."""
        return HOP * self.stack

    @property
    def context_samples(self) -> int:
        """Samples that a feature vector needs beyond these; negative where the ends are padded."""
        return {"kaldi": WINDOW - HOP, "librosa": -HOP, "nemo": 0}[self.variant]

    def num_frames(self, num_samples: Count) -> Count:
        """Feature vectors that come from so many samples."""
        return _num_windows(num_samples, self.variant) // self.stack


def _num_windows(num_samples: Count, variant: str) -> Count:
    if variant == "nemo":
        return num_samples // HOP
    windows = (num_samples - WINDOW) // HOP + 1 if variant == "kaldi" else num_samples // HOP + 1
    enough = num_samples >= (WINDOW if variant == "kaldi" else 1)
    return windows * enough


def log_mel(
    audio: Int16[Array, "batch samples"] | Float32[Array, "batch samples"],
    audio_length: Int[Array, " batch"],
    config: LogMel,
) -> tuple[Float32[Array, "batch time features"], Int32[Array, " batch"]]:
    """Log-mel features of each utterance, which do not depend on what follows it in its row.

    Args:
      audio: samples at 16 kHz: int16, or float32 on the same scale (-32768 to 32767).
      audio_length: samples of each row; may be 0.

    Returns:
      Features, 0 at padding, and the number of feature vectors of each row.
    """
    num_windows = _num_windows(audio.shape[1], config.variant)
    windows = _num_windows(audio_length, config.variant)
    audio = jnp.where(frame_mask(audio_length, audio.shape[1]), audio.astype(jnp.float32), 0)
    if config.variant == "nemo":
        audio = _let_fade(jnp.pad(audio, ((0, 0), (0, HOP))), audio_length)
    dft, filters = _matrices(config.variant, config.num_mel_bins)
    # Samples and spectra span more bits than a bfloat16 product, an accelerator's default, would keep.
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    frames = _frames(audio, num_windows, config.variant)
    coarse, fine = jnp.split(product(jnp.diff(frames, prepend=0), dft), 2, axis=-1)
    real, imaginary = jnp.split(coarse + fine, 2, axis=-1)
    power = product(jnp.square(real) + jnp.square(imaginary), filters)
    power = jnp.maximum(power, _FLOOR[config.variant]) + _GUARD[config.variant]
    features = jnp.log(power)

    mask = frame_mask(windows, num_windows)[..., None]
    if config.normalize:
        features = normalize(features, mask, windows, config.variant)
    else:
        features = features - _LOG_UNIT[config.variant]  # which normalising takes away, and rounding would not
    length = windows // config.stack
    vectors = num_windows // config.stack
    features = features[:, : vectors * config.stack].reshape(features.shape[0], vectors, config.input_dim)
    return jnp.where(frame_mask(length, vectors)[..., None], features, 0), length.astype(jnp.int32)


def _let_fade(audio: Float[Array, "batch samples"], length: Int[Array, " batch"]) -> Float[Array, "batch samples"]:
    """Rows that go on, behind their last sample, as what pre-emphasis turns into the zeros that are to follow it."""
    behind = jnp.arange(audio.shape[1]) - (length - 1)[:, None]
    last = jnp.sum(jnp.where(behind == 0, audio, 0), axis=1, keepdims=True)
    return jnp.where(behind > 0, last * _PRE_EMPHASIS ** jnp.maximum(behind, 0), audio)


def _frames(audio: Float[Array, "batch samples"], num_windows: int, variant: str) -> Float[Array, "batch windows span"]:
    """Overlapping windows, from slices of whole hops laid side by side (a gather would be slower)."""
    span = _SPAN[variant]
    before = {"kaldi": 0, "librosa": WINDOW // 2, "nemo": WINDOW // 2 + 1}[variant]
    hops = -(-span // HOP)
    # More than is ever missing at the end, and the rest cut off again: so sizes may be symbolic (`jax.export`).
    audio = jnp.pad(audio, ((0, 0), (before, hops * HOP)))[:, : (num_windows + hops - 1) * HOP]
    blocks = audio.reshape(audio.shape[0], num_windows + hops - 1, HOP)
    return jnp.concatenate([blocks[:, i : i + num_windows] for i in range(hops)], axis=-1)[..., :span]


def normalize(
    features: Float[Array, "batch windows bins"], mask: Array, count: Int[Array, " batch"], variant: str = "kaldi"
) -> Float[Array, "batch windows bins"]:
    """Zero mean, unit variance (of a sample: count - 1) for each bin over the utterance; Hugging Face's epsilons."""
    count = count[:, None, None]
    mean = lambda x: jnp.sum(x, axis=1, keepdims=True, where=mask) / jnp.maximum(count, 1)  # noqa: E731
    centred = features - mean(features)
    # Again, because float32 rounds a long sum of values far from 0, differently in each runtime, and a bin that lies
    # off by the same in every frame is what a model minds most.
    centred = centred - mean(centred)
    variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True, where=mask) / jnp.maximum(count - 1, 1)
    return centred / (jnp.sqrt(variance) + 1e-5) if variant == "nemo" else centred * jax.lax.rsqrt(variance + 1e-7)


@functools.cache
def _matrices(variant: str, num_mel_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The DFT matrix [span, 2 x frequencies] and the mel filters [frequencies, bins], for the frequencies in use."""
    n, span = np.arange(WINDOW), _SPAN[variant]
    if variant == "kaldi":
        fft = 512
        remove_mean = np.eye(WINDOW) - 1 / WINDOW
        pre_emphasis = np.eye(WINDOW) - _PRE_EMPHASIS * np.eye(WINDOW, k=-1)
        pre_emphasis[0, 0] -= _PRE_EMPHASIS  # the first sample is its own predecessor
        window = np.sin(np.pi * n / (WINDOW - 1)) ** 1.7  # Povey's: a Hann window to the power 0.85
        linear = window[:, None] * (pre_emphasis @ remove_mean)
    elif variant == "nemo":
        fft = 512
        pre_emphasis = np.eye(WINDOW, span, k=1) - _PRE_EMPHASIS * np.eye(WINDOW, span)
        linear = np.sin(np.pi * n / (WINDOW - 1))[:, None] ** 2 * pre_emphasis  # Hann, symmetric
    else:
        fft = WINDOW
        linear = np.diag(np.sin(np.pi * n / WINDOW) ** 2)  # Hann, periodic
    filters = _mel_filters(variant, num_mel_bins, np.arange(fft // 2 + 1) * SAMPLE_RATE / fft)
    used = np.flatnonzero(filters.any(axis=1))
    angle = 2 * np.pi * np.outer(used, n) / fft
    dft = np.concatenate([np.cos(angle), np.sin(angle)]) @ linear
    dft = dft @ np.tril(np.ones((span, span)))  # a sample is the sum of the differences up to it
    place = 2.0 ** (np.ceil(np.log2(np.abs(dft).max(axis=1, keepdims=True))) - _COARSE_BITS[variant])
    coarse = np.round(dft / place) * place
    return np.concatenate([coarse, dft - coarse]).T.astype(np.float32), filters[used].astype(np.float32)


def _mel_filters(variant: str, num_mel_bins: int, hertz: np.ndarray) -> np.ndarray:
    """Triangular filters [frequencies, bins], edges equally spaced in mel from 20 (librosa: 0) to 8000 Hz.

    Kaldi: mel = 1127 ln(1 + f / 700), triangles straight in mel, of height 1. Librosa: Slaney's mel (linear to 1 kHz,
    then logarithmic), triangles straight in hertz, of area 1.
    """
    if variant == "kaldi":
        mel = lambda f: 1127 * np.log1p(np.asarray(f) / 700)  # noqa: E731
        edges, at = np.linspace(mel(20), mel(SAMPLE_RATE / 2), num_mel_bins + 2), mel(hertz)
        height = np.ones(num_mel_bins)
    else:
        top = 15 + 27 * np.log(SAMPLE_RATE / 2 / 1000) / np.log(6.4)  # in mel: 15 is 1 kHz, and 27 more are 6.4 kHz
        mels = np.linspace(0, top, num_mel_bins + 2)
        edges, at = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27)), hertz
        height = 2 / (edges[2:] - edges[:-2])
    rise = (at[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - at[:, None]) / (edges[2:] - edges[1:-1])
    return height * np.maximum(0, np.minimum(rise, fall))
