"""Measures of commands, counted by hand, and noise at a given ratio."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.batching.noise import NoiseReader
from jax_speechlm.evaluation.intent import score_commands
from jax_speechlm.evaluation.noise import add_noise, noisy
from jax_speechlm.inference.intent import Command


def command(intent, **slots):
    return Command(intent, slots, 1.0)


ACTUAL = [command("order", size="large", milk="soy"), command("order", size="small"), command("stop"), command("stop")]
PREDICTED = [
    command("order", size="large", milk="oat"),
    command("order", size="small"),
    command("order", size="small"),
    command(None),
]


def test_measures_are_those_counted_by_hand():
    score = score_commands(ACTUAL, PREDICTED)
    assert (score.intent, score.exact, score.rejected) == (0.5, 0.25, 0.25)
    assert score.f1 == pytest.approx(2 * 2 / (3 + 4))  # two right; three actual and four predicted values
    assert score.by_slot == {"milk": 0.0, "size": pytest.approx(2 * 2 / (2 + 3))}
    assert score.f1_interval is None
    many = score_commands(ACTUAL * 10, PREDICTED * 10)
    assert (many.f1, many.exact) == (score.f1, score.exact)
    for value, (low, high) in (
        (many.f1, many.f1_interval),
        (many.exact, many.exact_interval),
        (many.rejected, many.rejected_interval),
        (many.by_slot["size"], many.by_slot_intervals["size"]),
    ):
        assert low < value < high
    assert many.by_slot_intervals["milk"] is None  # ten utterances have it
    with pytest.raises(ValueError, match="nothing to evaluate"):
        score_commands([], [])


@given(snr=st.floats(-5, 30), seed=st.integers(0, 99), loud=st.sampled_from([300, 9000, 30000]))
def test_the_noise_has_the_wanted_ratio(snr, seed, loud):
    rng = np.random.default_rng(seed)
    speech, noise = (np.clip(rng.normal(0, level, 4000), -32768, 32767).astype(np.int16) for level in (loud, 500))
    mixed = add_noise(speech, noise, snr).astype(np.float64)
    assert np.abs(mixed).max() <= 32767
    # The sum may have been made quieter, so that the parts are found by least squares.
    (gain, share), *_ = np.linalg.lstsq(np.stack([speech, noise], 1).astype(np.float64), mixed, rcond=None)
    measured = 10 * np.log10(np.sum((gain * speech) ** 2) / np.sum((share * noise.astype(np.float64)) ** 2))
    rounding = 10 ** (snr / 20) * 0.3 / (gain * loud)  # of the sum to whole numbers, relative to the noise
    assert measured == pytest.approx(snr, abs=0.01 + 20 * rounding)


def test_silence_and_padding_stay_as_they_are():
    silence = np.zeros(8, np.int16)
    np.testing.assert_array_equal(add_noise(silence, silence + 5, 0.0), silence)

    class Fives(NoiseReader):
        def __init__(self):
            """Reads nothing."""

        def stretch(self, step, place, num_samples):
            return np.full(num_samples, 5 + place, np.int16)

    audio = np.full((3, 8), 100, np.int16)
    batch = {"audio": audio, "audio_length": np.array([8, 4, 0]), "example_id": np.array([4, 2, -1])}
    (out,) = noisy([batch], Fives(), 0.0)
    np.testing.assert_array_equal(out["audio"][0], 200)
    np.testing.assert_array_equal(out["audio"][1], [200] * 4 + [100] * 4)
    np.testing.assert_array_equal(out["audio"][2], audio[2])
