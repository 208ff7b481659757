"""Losses between waveforms, each a value per row: distances of spectra, and those of adversarial training.

Rows are compared up to their lengths; beyond them both waveforms have to be 0.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.frontend.synthesis_mel import SynthesisMel, synthesis_mel
from jax_speechlm.nn.stft import stft

Windows: TypeAlias = Annotated[
    tuple[Annotated[int, pydantic.Field(ge=4, multiple_of=4)], ...], pydantic.Field(min_length=1)
]
"""Lengths of the Fourier transforms of the spectral loss, in samples."""

WINDOWS = 512, 1024, 2048
"""Their defaults."""

_SMALLEST_POWER = 1e-7  # of a spectrum, as in the reference implementation of Yamamoto et al.
_MEL_FLOOR = 1e-5  # of an amplitude, as in HiFi-GAN: below it lies the noise of the samples' rounding


def magnitudes(audio: Float[Array, "rows samples"], window: int) -> Float[Array, "rows frames frequencies"]:
    """Returns the magnitudes of the Fourier transform, at least 3e-4, in centred windows a quarter of their length
    apart; beyond the ends are zeros."""
    real, imaginary = stft(audio, window, window // 4, mode="constant")
    return jnp.sqrt(jnp.maximum(jnp.square(real) + jnp.square(imaginary), _SMALLEST_POWER))


def spectral_convergence(
    real: Float[Array, "rows frames values"], fake: Float[Array, "rows frames values"], mask: Bool[Array, "rows frames"]
) -> Float[Array, " rows"]:
    """Returns the norm of the difference of two spectra as a share of the norm of the first (Arik et al. 2019)."""

    def norm(x: Array) -> Array:
        total = jnp.sum(jnp.square(x), axis=(1, 2), where=mask[..., None])
        return jnp.sqrt(jnp.maximum(total, 1e-12))  # whose gradient is finite where the spectra are equal

    return jnp.where(mask.any(axis=1), norm(real - fake) / norm(real), 0)


def mean_distance(
    one: Float[Array, "rows frames values"],
    other: Float[Array, "rows frames values"],
    mask: Bool[Array, "rows frames"],
) -> Float[Array, " rows"]:
    """Returns the mean absolute difference over the frames of each row; 0 without frames."""
    count = jnp.maximum(mask.sum(axis=1), 1) * one.shape[2]
    return jnp.sum(jnp.abs(one - other), axis=(1, 2), where=mask[..., None]) / count


def multi_resolution_stft(
    real: Float[Array, "rows samples"],
    fake: Float[Array, "rows samples"],
    lengths: Int[Array, " rows"],
    windows: Sequence[int],
) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
    """Computes the multi-resolution STFT loss (Yamamoto et al. 2020, "Parallel WaveGAN").

    Args:
      lengths: valid samples per row.
      windows: lengths of the Fourier transform, multiples of 4 samples.

    Returns:
      Spectral convergence, and the distance of the natural logarithms of the magnitudes, both as means over `windows`.
    """
    convergence, distance = jnp.zeros(len(real)), jnp.zeros(len(real))
    for window in windows:
        one, other = magnitudes(real, window), magnitudes(fake, window)
        mask = frame_mask(-(-lengths // (window // 4)), one.shape[1])  # frames whose middle is a valid sample
        convergence += spectral_convergence(one, other, mask) / len(windows)
        distance += mean_distance(jnp.log(one), jnp.log(other), mask) / len(windows)
    return convergence, distance


def mel_distance(
    real: Float[Array, "rows samples"],
    fake: Float[Array, "rows samples"],
    lengths: Int[Array, " rows"],
    mel: SynthesisMel,
) -> Float[Array, " rows"]:
    """Returns the distance of the natural logarithms of mel amplitudes, at least 1e-5 each (Kong et al. 2020).

    Args:
      lengths: valid samples per row.
      mel: form of the spectrogram, but for its floor.
    """
    settings = mel.replace(floor=_MEL_FLOOR)
    one, other = (synthesis_mel(audio * 2.0**15, None, settings)[0] for audio in (real, fake))
    return mean_distance(one, other, frame_mask(-(-lengths // mel.hop), one.shape[1])) * math.log(10)


Adversarial = Literal["hinge", "least_squares"]


def generator_loss(scores: Sequence[Float[Array, "rows _"]], kind: Adversarial) -> Float[Array, " rows"]:
    """Returns the loss of a generator for the scores that each discriminator gives what it generated."""
    return _mean_of_means([jnp.maximum(1 - x, 0) if kind == "hinge" else jnp.square(1 - x) for x in scores])


def discriminator_loss(
    real: Sequence[Float[Array, "rows _"]], fake: Sequence[Float[Array, "rows _"]], kind: Adversarial
) -> Float[Array, " rows"]:
    """Returns the loss of discriminators for their scores of recorded and of generated audio."""
    if kind == "hinge":  # Lim and Ye 2017
        terms = [jnp.maximum(1 - x, 0) for x in real], [jnp.maximum(1 + x, 0) for x in fake]
    else:  # Mao et al. 2017
        terms = [jnp.square(1 - x) for x in real], [jnp.square(x) for x in fake]
    return _mean_of_means(terms[0]) + _mean_of_means(terms[1])


def feature_matching(
    real: Sequence[Float[Array, "rows _"]], fake: Sequence[Float[Array, "rows _"]]
) -> Float[Array, " rows"]:
    """Returns the mean distance of the hidden states of discriminators (Kumar et al. 2019), all of equal weight."""
    return _mean_of_means([jnp.abs(one - other) for one, other in zip(real, fake, strict=True)])


def _mean_of_means(terms: Sequence[Float[Array, "rows _"]]) -> Float[Array, " rows"]:
    return sum(jnp.mean(term, axis=1) for term in terms) / len(terms)
