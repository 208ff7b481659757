"""Log-mel filter banks, on device, as two matrix products.

A frame's spectrum is `frame @ dft`. The matrix includes, in double precision, all linear operations before the Fourier
transform: the window, and Kaldi's DC removal and pre-emphasis. A matrix product replaces the FFT because XLA gathers a
batch-sharded FFT onto every device (openxla/xla#24).
"""

import functools
import math
from typing import Annotated, ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Float, Float32, Int16

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments, at_rate
from jax_speechlm.frontend.running_mean import running_mean
from jax_speechlm.nn.layers import Count

# Lower bound of the power of a mel bin, and the offset added to it. The samples of librosa and NeMo are in [-1, 1), so
# their unit of power is 2^30 of the unit here.
_FLOOR = {"kaldi": 1.192092955078125e-07, "librosa": 1e-10 * 2.0**30, "nemo": 0.0}
_GUARD = {"kaldi": 0.0, "librosa": 0.0, "nemo": 2.0**-24 * 2.0**30}
_LOG_UNIT = {"kaldi": 0.0, "librosa": 30 * math.log(2), "nemo": 30 * math.log(2)}
# First value of the running mean: about the mean of all bins over the train split of asterisk-en.
START = {"kaldi": 16.0, "librosa": 12.0, "nemo": 11.0}
PRE_EMPHASIS = 0.97
_LOWEST = 20.0  # Hz, the lower edge of Kaldi's lowest bin

Taper: TypeAlias = Literal["hann", "hamming", "povey", "blackman"]
"""Window functions."""

# With a loud low tone, float32 rounding would change the power of quiet bins by a tenth. Two measures prevent that.
# Samples enter as differences, which are small where speech is loud (the matrix accumulates them again). And the matrix
# is split in two: coarse values of this number of significant bits, whose products with integers add up exactly, and a
# small remainder.
_COARSE_BITS = {"kaldi": 8, "librosa": 6, "nemo": 8}


class LogMel(Config):
    """Settings of the log-mel features, from windows of 25 ms every 10 ms.

    Attributes:
      variant: "kaldi" is Kaldi's fbank as in Hugging Face's `SeamlessM4TFeatureExtractor`, with whole windows only.
        "librosa" is the logarithm of `librosa.feature.melspectrogram(y, sr=16000, n_fft=400, hop_length=160)`, at least
        1e-10, with centred windows and zeros beyond the ends. "nemo" is NeMo's as in Hugging Face's
        `ParakeetFeatureExtractor`: librosa's mel scale on pre-emphasised samples, centred windows, one for each whole
        hop. All logarithms are natural.
      num_mel_bins: mel bins of a frame.
      sample_rate: of the audio, in Hz; a multiple of 200, so that windows and hops are whole samples.
      stack: frames concatenated to one feature vector; 2 gives one vector every 20 ms, 4 every 40 ms. Frames that do
        not fill the last vector are dropped.
      normalize: whether mel bins are normalised to zero mean and unit variance over the utterance; "running" subtracts
        from each bin its mean over the windows so far, weighted exponentially with a time constant of 3 s. Streaming
        needs "running" or False.
      taper: window function of the variant "kaldi"; None is the variant's own, Povey's, or a Hann window of the others.
      warp: of the frequencies of the variant "kaldi" (VTLN), a speaker's over the average: features of a voice with
        formants at 1.1 times the usual frequencies are usual with 1.1.
    """

    OLD_NAMES: ClassVar[dict[str, str]] = {"flavour": "variant"}

    variant: Literal["kaldi", "librosa", "nemo"] = "kaldi"
    sample_rate: pydantic.PositiveInt = DEFAULT_SAMPLE_RATE
    num_mel_bins: pydantic.PositiveInt = 80
    stack: pydantic.PositiveInt = 2
    normalize: bool | Literal["running"] = True
    taper: Taper | None = None
    warp: Annotated[float, pydantic.Field(ge=0.7, le=1.4)] = 1.0

    @pydantic.model_validator(mode="after")
    def _is_kaldis(self):
        if (self.taper is not None or self.warp != 1) and self.variant != "kaldi":
            raise ValueError(
                f"taper ({self.taper}) and warp ({self.warp:g}) are settings of the variant kaldi: set them to None "
                "and 1, or the variant"
            )
        return self

    @pydantic.field_validator("sample_rate")
    @classmethod
    def _has_whole_windows(cls, value: int) -> int:
        if value % 200:
            raise ValueError(f"sample_rate ({value}) must be a multiple of 200 Hz, such as 8000, 16000 or 24000")
        return value

    @property
    def window(self) -> int:
        """Samples of a window: 25 ms."""
        return self.sample_rate // 40

    @property
    def hop(self) -> int:
        """Samples from one window to the next: 10 ms."""
        return self.sample_rate // 100

    @property
    def input_dim(self) -> int:
        """Values of a feature vector."""
        return self.num_mel_bins * self.stack

    @property
    def frame_samples(self) -> int:
        """Hop length in samples between feature vectors."""
        return self.hop * self.stack

    @property
    def context_samples(self) -> int:
        """Samples of a feature vector beyond its hop length; negative if the ends are padded."""
        return {"kaldi": self.window - self.hop, "librosa": -self.hop, "nemo": 0}[self.variant]

    @property
    def gap_samples(self) -> int:
        """Samples between two utterances of a row, so that the windows of each do not read the other.

        NeMo's windows read the decay of pre-emphasis after an utterance, and zeros before the next.
        """
        if self.variant == "nemo":
            return (self.window // 2 - self.hop + 1) + (self.window // 2 + 1)
        return {"kaldi": 0, "librosa": self.window // 2}[self.variant]

    def num_frames(self, num_samples: Count) -> Count:
        """Returns the number of feature vectors of `num_samples` samples."""
        return _num_windows(num_samples, self) // self.stack


def _num_windows(num_samples: Count, config: LogMel) -> Count:
    if config.variant == "nemo":
        return num_samples // config.hop
    shortest = config.window if config.variant == "kaldi" else 1
    outside = config.window if config.variant == "kaldi" else 0
    return ((num_samples - outside) // config.hop + 1) * (num_samples >= shortest)


def log_mel(
    audio: Int16[Array, "batch samples"] | Float32[Array, "batch samples"], lengths: Lengths, config: LogMel
) -> tuple[Float32[Array, "batch time features"], Lengths]:
    """Computes log-mel features, which depend neither on the padding of a row nor on its other utterances.

    Args:
      audio: samples at `config.sample_rate`: int16, or float32 on the same scale (-32768 to 32767).
      lengths: samples per row, or the utterances of packed rows, which start at whole feature vectors and leave
        `config.gap_samples` between each other; lengths may be 0.

    Returns:
      Features, 0 at padding, and the number of feature vectors per row, or the utterances in feature vectors.
    """
    segments = Segments.of(lengths)
    num_windows = _num_windows(audio.shape[1], config)
    windows = segments.at_rate(config.hop, lambda length: _num_windows(length, config))
    audio = jnp.where(segments.mask(audio.shape[1]), audio.astype(jnp.float32), 0)
    if config.variant == "nemo":
        audio = let_decay(jnp.pad(audio, ((0, 0), (0, config.hop))), segments, config)
    features = log_power(pad_ends(audio, config), num_windows, config)
    if config.normalize is True:
        features = normalize(features, windows, config.variant)
    else:
        features, _ = without_level(features, config, segments=windows)
    vectors, num_vectors = at_rate(lengths, config.frame_samples, config.num_frames), num_windows // config.stack
    features = features[:, : num_vectors * config.stack].reshape(features.shape[0], num_vectors, config.input_dim)
    return jnp.where(Segments.of(vectors).mask(num_vectors)[..., None], features, 0), vectors


def let_decay(
    audio: Float[Array, "batch samples"], segments: Segments, config: LogMel
) -> Float[Array, "batch samples"]:
    """Continues utterances after their last sample, as far as NeMo's windows read, by the decay that pre-emphasis maps
    to zeros."""
    num = config.window // 2 - config.hop + 1
    after = jnp.arange(audio.shape[1])[:, None] - (segments.start + segments.length - 1)[:, None]
    last = jnp.sum(jnp.where(after == 0, audio[..., None], 0), axis=1, keepdims=True)
    decays = (after > 0) & (after <= num) & (segments.length > 0)[:, None]
    return audio + jnp.sum(jnp.where(decays, last * PRE_EMPHASIS ** jnp.maximum(after, 0), 0), axis=-1)


def span(config: LogMel) -> int:
    """Returns the samples that a window's features depend on."""
    return config.window + (config.variant == "nemo")


def samples_before(config: LogMel) -> int:
    """Returns the zeros that the first window reads before the first sample."""
    return {"kaldi": 0, "librosa": config.window // 2, "nemo": config.window // 2 + 1}[config.variant]


def pad_ends(audio: Float[Array, "batch samples"], config: LogMel) -> Float[Array, "batch more_samples"]:
    """Returns rows with the zeros that windows read before the first sample, and more than enough after the last."""
    # Padding by the largest amount needed and cutting the excess keeps sizes symbolic (`jax.export`).
    return jnp.pad(audio, ((0, 0), (samples_before(config), -(-span(config) // config.hop) * config.hop)))


def log_power(
    padded: Float[Array, "batch samples"], num_windows: int, config: LogMel
) -> Float[Array, "batch windows bins"]:
    """Computes the logarithm of the power of mel bins.

    Args:
      padded: samples, of which each hop begins a window.
      num_windows: windows to compute; of the last, `span` samples are there.
    """
    dft, filters = _matrices(config)
    # Samples and spectra need more bits than bfloat16 products, the default of accelerators, keep.
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    frames = windows_of(padded, num_windows, config)
    coarse, fine = jnp.split(product(jnp.diff(frames, prepend=0), dft), 2, axis=-1)
    real, imaginary = jnp.split(coarse + fine, 2, axis=-1)
    power = product(jnp.square(real) + jnp.square(imaginary), filters)
    return jnp.log(jnp.maximum(power, _FLOOR[config.variant]) + _GUARD[config.variant])


def windows_of(
    padded: Float[Array, "batch samples"], num_windows: int, config: LogMel
) -> Float[Array, "batch windows span"]:
    """Returns overlapping windows, concatenated from slices of whole hops, which is faster than a gather.

    Args:
      padded: rows as of `pad_ends`.
    """
    hop, hops = config.hop, -(-span(config) // config.hop)
    padded = padded[:, : (num_windows + hops - 1) * hop]
    blocks = padded.reshape(padded.shape[0], num_windows + hops - 1, hop)
    return jnp.concatenate([blocks[:, i : i + num_windows] for i in range(hops)], axis=-1)[..., : span(config)]


def without_level(
    features: Float[Array, "batch windows bins"],
    config: LogMel,
    start: Float[Array, "batch bins"] | None = None,
    segments: Segments | None = None,
) -> tuple[Float[Array, "batch windows bins"], Float[Array, "batch bins"]]:
    """Subtracts the running mean from `log_power`, or without normalisation the constant of its unit of power.

    Args:
      start: running mean before the first window; None at the start of utterances.
      segments: utterances of the rows in windows; None for one utterance, or a later part of it.

    Returns:
      Features, and the running mean after the last window.
    """
    if start is None:
        start = jnp.full((features.shape[0], config.num_mel_bins), START[config.variant], jnp.float32)
    if config.normalize != "running":
        return features - _LOG_UNIT[config.variant], start
    means = running_mean(features, start, segments)
    return features - means, means[:, -1] if means.shape[1] else start


def normalize(
    features: Float[Array, "batch windows bins"], lengths: Lengths, variant: str = "kaldi"
) -> Float[Array, "batch windows bins"]:
    """Normalises bins to zero mean and unit variance over the utterance.

    Args:
      lengths: windows per row, or the utterances of packed rows in windows.
      variant: selects the epsilon of the corresponding extractor of Hugging Face.

    Returns:
      Normalised features; the variance is the sample variance (divided by count - 1).
    """
    segments, num_windows = Segments.of(lengths), features.shape[1]

    def centre(x: Array) -> Array:
        return x - segments.spread(segments.mean(x), num_windows)

    # Centred twice, because float32 rounds a long sum of values far from 0, differently in each runtime, and models are
    # most sensitive to a constant offset of a bin.
    centred = centre(centre(features))
    variance = segments.sum(jnp.square(centred)) / jnp.maximum(segments.length - 1, 1)[..., None]
    scale = 1 / (jnp.sqrt(variance) + 1e-5) if variant == "nemo" else jax.lax.rsqrt(variance + 1e-7)
    return centred * segments.spread(scale, num_windows)


@functools.lru_cache(maxsize=64)
def _matrices(config: LogMel) -> tuple[np.ndarray, np.ndarray]:
    """Returns the DFT matrix [span, 2 x frequencies] and the mel filters [frequencies, bins] of used frequencies."""
    variant, size, sample_rate = config.variant, config.window, config.sample_rate
    n, samples = np.arange(size), span(config)
    fft = size if variant == "librosa" else 2 ** math.ceil(math.log2(size))
    if variant == "kaldi":
        remove_mean = np.eye(size) - 1 / size
        pre_emphasis = np.eye(size) - PRE_EMPHASIS * np.eye(size, k=-1)
        pre_emphasis[0, 0] -= PRE_EMPHASIS  # the first sample is its own predecessor
        linear = tapers(config.taper or "povey", size)[:, None] * (pre_emphasis @ remove_mean)
    elif variant == "nemo":
        pre_emphasis = np.eye(size, samples, k=1) - PRE_EMPHASIS * np.eye(size, samples)
        linear = np.sin(np.pi * n / (size - 1))[:, None] ** 2 * pre_emphasis  # Hann, symmetric
    else:
        linear = np.diag(np.sin(np.pi * n / size) ** 2)  # Hann, periodic
    filters = _mel_filters(config, np.arange(fft // 2 + 1) * sample_rate / fft)
    used = np.flatnonzero(filters.any(axis=1))
    angle = 2 * np.pi * np.outer(used, n) / fft
    dft = np.concatenate([np.cos(angle), np.sin(angle)]) @ linear
    dft = dft @ np.tril(np.ones((samples, samples)))  # a sample is the sum of all differences up to it
    return coarse_and_fine(dft.T, _COARSE_BITS[variant]), filters[used].astype(np.float32)


def tapers(name: Taper, size: int) -> np.ndarray:
    """Returns a symmetric window function, float64 [size]."""
    turn = 2 * np.pi * np.arange(size) / (size - 1)
    hann = 0.5 - 0.5 * np.cos(turn)
    return {
        "hann": hann,
        "hamming": 0.54 - 0.46 * np.cos(turn),
        "povey": hann**0.85,
        "blackman": 0.42 - 0.5 * np.cos(turn) + 0.08 * np.cos(2 * turn),
    }[name]


def coarse_and_fine(dft: np.ndarray, bits: int) -> np.ndarray:
    """Returns a matrix [span, values] as coarse values and remainders, float32 [span, 2 x values].

    Args:
      bits: significant bits of the coarse values, of each column's largest.
    """
    unit = 2.0 ** (np.ceil(np.log2(np.abs(dft).max(axis=0, keepdims=True))) - bits)
    coarse = np.round(dft / unit) * unit
    return np.concatenate([coarse, dft - coarse], axis=1).astype(np.float32)


def _mel_filters(config: LogMel, hertz: np.ndarray) -> np.ndarray:
    """Returns triangular filters [frequencies, bins], edges equally spaced in mel, up to half the rate.

    Kaldi: from 20 Hz; mel = 1127 ln(1 + f / 700), triangles linear in mel, of height 1. Librosa: from 0 Hz; Slaney's
    mel (linear to 1 kHz, then logarithmic), triangles linear in hertz, of area 1.
    """
    if config.variant != "kaldi":
        return mel_filters(config.num_mel_bins, hertz, 0.0, config.sample_rate / 2)

    def mel(hertz: np.ndarray | int | float) -> np.ndarray | float:
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(mel(_LOWEST), mel(config.sample_rate / 2), config.num_mel_bins + 2)
    if config.warp != 1:
        edges = mel(warped_hertz(700 * np.expm1(edges / 1127), config.warp, config.sample_rate))
    return _triangles(edges, mel(hertz))


def warped_hertz(hertz: np.ndarray, warp: float, sample_rate: int) -> np.ndarray:
    """Returns the frequencies in a voice that correspond to these in the average voice: `warp` times as high.

    Towards the lowest and the highest frequency, which stay, the map has other slopes (as in Kaldi's `VtlnWarpFreq`,
    for which a factor is the inverse).
    """
    highest = sample_rate / 2
    low, high = 100 * max(1.0, 1 / warp), (highest - 500) * min(1.0, 1 / warp)
    known = [_LOWEST, low, high, highest]
    return np.interp(hertz, known, [_LOWEST, low * warp, high * warp, highest])


def mel_filters(num_mel_bins: int, hertz: np.ndarray, low_hertz: float, high_hertz: float) -> np.ndarray:
    """Returns librosa's filters [frequencies, bins]: Slaney's mel scale, triangles linear in hertz, of area 1.

    Slaney's mel scale is linear to 1 kHz, then logarithmic.
    """

    def mel(hertz: float) -> float:
        # 15 mel is 1 kHz, 27 mel a factor of 6.4
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    mels = np.linspace(mel(low_hertz), mel(high_hertz), num_mel_bins + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    return _triangles(edges, hertz) * 2 / (edges[2:] - edges[:-2])


def _triangles(edges: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns triangles of height 1 between every other two edges, at points [points, bins]."""
    rise = (at[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - at[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rise, fall))
