"""Warps of frequency: of Kaldi's filters, of voices in training, and of a recognizer's search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel, log_mel, warped_hertz
from jax_speechlm.frontend.synthesis_mel import SynthesisMel

RATE = 8000
PLAIN = LogMel(sample_rate=RATE, num_mel_bins=20, stack=1, normalize=False)
compute = jax.jit(log_mel, static_argnames="config")


def kaldis(hertz, factor, low=20.0, high=RATE / 2):
    """`VtlnWarpFreq` of Kaldi's mel-computations.cc for one frequency, with its default cut-offs, by its cases."""
    lower, upper = 100 * max(1.0, factor), (high - 500) * min(1.0, factor)
    scale = 1 / factor
    if hertz < lower:
        return low + (scale * lower - low) / (lower - low) * (hertz - low)
    if hertz < upper:
        return scale * hertz
    return high + (high - scale * upper) / (high - upper) * (hertz - high)


@pytest.mark.parametrize("warp", [0.8, 0.95, 1.0, 1.2])
def test_frequencies_are_warped_as_kaldi_does(warp):
    hertz = np.linspace(20, RATE / 2, 57)
    wanted = [kaldis(each, 1 / warp) for each in hertz]
    np.testing.assert_allclose(warped_hertz(hertz, warp, RATE), wanted, rtol=1e-9)


def vowel(scale, num_samples=4000):
    """Noise with two formants at `scale` times 600 and 1500 Hz, the same noise for every scale."""
    frequency = np.fft.rfftfreq(num_samples, 1 / RATE)
    noise = np.fft.rfft(np.random.default_rng(0).standard_normal(num_samples))
    envelope = sum(np.exp(-0.5 * ((frequency / scale - formant) / 120) ** 2) for formant in (600, 1500)) + 0.01
    return (20_000 * np.fft.irfft(noise * envelope)).astype(np.int16)


def test_the_warp_of_a_voice_makes_its_features_usual():
    length = np.array([4000])
    usual = compute(vowel(1.0)[None], length, config=PLAIN)[0].mean(1)
    warps = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
    for scale in (0.9, 1.0, 1.1):
        audio = vowel(scale)[None]
        of_warps = [compute(audio, length, config=PLAIN.replace(warp=warp))[0].mean(1) for warp in warps]
        distances = [float(np.abs(each - usual).mean()) for each in of_warps]
        assert warps[int(np.argmin(distances))] == pytest.approx(scale)


def test_utterances_get_voices_of_their_own_in_packed_rows_too():
    rng = np.random.default_rng(0)
    audio, lengths = (2000 * rng.standard_normal((3, 4000))).astype(np.int16), np.array([4000, 1600, 0])
    frontend = FrontEnd(mel=PLAIN, augment=Augment(vocal_tract=0.1))
    train = jax.jit(lambda batch: features(batch, frontend, jax.random.key(1)))
    ids = np.array([4, 7, 9])
    rows, counts = train({"audio": audio, "audio_length": lengths, "example_id": ids})
    order = np.array([1, 2, 0])
    again, _ = train({"audio": audio[order], "audio_length": lengths[order], "example_id": ids[order]})
    np.testing.assert_array_equal(again, rows[order])
    packed = np.zeros((1, 5600), np.int16)
    packed[0, :4000], packed[0, 4000:5600] = audio[0], audio[1, :1600]
    starts = {"audio_start": np.array([[0, 4000]]), "audio_length": lengths[None, :2], "example_id": ids[None, :2]}
    together, segments = train({"audio": packed, **starts})
    assert isinstance(segments, Segments)
    np.testing.assert_allclose(together[0, : counts[0]], rows[0, : counts[0]], atol=1e-4)
    np.testing.assert_allclose(together[0, 50 : 50 + counts[1]], rows[1, : counts[1]], atol=1e-4)
    every = [compute(audio, lengths, config=PLAIN.replace(warp=w))[0] for w in (0.9, 0.95, 1.0, 1.05, 1.1)]
    for row in range(2):
        assert min(float(np.abs(each[row] - rows[row]).max()) for each in every) < 1e-4


def test_features_without_kaldis_filters_have_no_warps():
    with pytest.raises(ValueError, match="variant kaldi"):
        LogMel(variant="nemo", warp=1.1)
    with pytest.raises(ValueError, match="vocal_tract warps the mel filters"):
        FrontEnd(mel=SynthesisMel(), augment=Augment(vocal_tract=0.1))
    silence = compute(jnp.zeros((1, 800), jnp.int16), jnp.array([800]), config=PLAIN.replace(warp=0.8))[0]
    assert np.isfinite(silence).all()
