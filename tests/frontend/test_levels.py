"""Levels against pyloudnorm, numpy and the coefficients that ITU-R BS.1770 states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.levels import k_weighting, level, loudness, normalise_level

measure_level = jax.jit(level, static_argnames=("measure", "sample_rate"))
normalise = jax.jit(normalise_level, static_argnames=("measure", "target", "sample_rate"))
RATE = 8000


def rows(num_samples=24_000):
    """Two rows of wandering noise, int16, and their lengths."""
    rng = np.random.default_rng(0)
    envelope = np.exp(np.cumsum(rng.standard_normal((2, num_samples)) * 0.02, axis=1)).clip(0.01, 20)
    audio = np.clip(400 * envelope * rng.standard_normal((2, num_samples)), -32768, 32767)
    return audio.astype(np.int16), np.array([num_samples, 9000])


def test_filters_are_the_standards_at_48_khz():
    shelf, high_pass = k_weighting(48_000)
    table = (1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585)
    np.testing.assert_allclose(shelf, table, atol=1e-9)
    np.testing.assert_allclose(high_pass, (1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621), atol=1e-9)


@pytest.mark.parametrize("rate", [8000, 22_050])
def test_loudness_equals_pyloudnorms(rate):
    pyloudnorm = pytest.importorskip("pyloudnorm", reason="pip install -e '.[tts]'")
    audio, lengths = rows(rate * 3)
    audio[1, : lengths[1] // 2] //= 100  # which the gate leaves out
    lengths[1] = lengths[1] // (rate // 10) * (rate // 10)  # pyloudnorm may count a partial block
    meter = pyloudnorm.Meter(rate, filter_class="DeMan")
    wanted = [meter.integrated_loudness(row[:length] / 2.0**15) for row, length in zip(audio, lengths, strict=True)]
    np.testing.assert_allclose(measure_level(audio, lengths, measure="loudness", sample_rate=rate), wanted, atol=1e-4)


@pytest.mark.parametrize("measure", ["peak", "rms", "loudness"])
def test_rows_get_the_level_whatever_the_padding(measure):
    audio, lengths = rows()
    audio = audio // 4
    junk = audio.copy()
    junk[1, 9000:] = 32_000
    changed = np.asarray(normalise(junk, lengths, measure=measure, target=-30.0, sample_rate=RATE))
    np.testing.assert_allclose(measure_level(changed, lengths, measure=measure, sample_rate=RATE), -30, atol=1e-3)
    assert not changed[1, 9000:].any()
    alone = normalise(audio[1:, :9000], lengths[1:], measure=measure, target=-30.0, sample_rate=RATE)
    np.testing.assert_allclose(changed[1, :9000], alone[0], rtol=1e-5, atol=1e-3)
    floats = audio[1, :9000] / 2.0**15
    direct = {"peak": np.abs(floats).max(), "rms": np.sqrt(np.mean(floats**2))}
    if measure in direct:
        found = measure_level(audio, lengths, measure=measure, sample_rate=RATE)[1]
        assert found == pytest.approx(20 * np.log10(direct[measure]), abs=1e-4)


def test_no_gain_clips_or_is_enormous():
    audio, lengths = rows()
    audio = (audio // 100).astype(np.int16)
    audio[0, 5] = 20_000
    changed = np.asarray(normalise(audio, lengths, measure="rms", target=-3.0, sample_rate=RATE))
    assert np.abs(changed[0]).max() == pytest.approx(32_768 * 10 ** (-1 / 20), rel=1e-4)
    np.testing.assert_allclose(changed[1, :9000], 10**1.5 * audio[1, :9000], rtol=1e-4)


@pytest.mark.parametrize("measure", ["peak", "rms", "loudness"])
def test_bad_input(measure):
    """Silence, no samples, one sample, and a row that is not finite."""
    audio = np.zeros((4, 4000), np.float32)
    audio[2, 0], audio[3] = 100.0, np.nan
    lengths = np.array([4000, 0, 1, 4000])
    levels = np.asarray(measure_level(audio, lengths, measure=measure, sample_rate=RATE))
    assert levels[0] == levels[1] == {"peak": -100, "rms": -100, "loudness": -70}[measure]
    assert -70 <= levels[2] < 0
    changed = np.asarray(normalise(audio, lengths, measure=measure, target=-20.0, sample_rate=RATE))
    assert not changed[:2].any()
    assert np.isfinite(changed[2]).all()


def test_rates_whose_blocks_are_not_whole_samples_are_refused():
    with pytest.raises(ValueError, match="multiple of 10 Hz"):
        loudness(jnp.zeros((1, 4000)), jnp.array([4000]), 11_025)
