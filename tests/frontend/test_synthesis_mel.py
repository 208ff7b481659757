from functools import partial

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend import synthesis_mel as module
from jax_speechlm.frontend.augment import SPEC_AUGMENT, Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.objectives.base import check_features

CONFIG = SynthesisMel()
OTHER_RATES = [
    SynthesisMel(sample_rate=22_050, high_hertz=8_000, low_hertz=0),
    SynthesisMel(sample_rate=24_000, hop=300, window=1200, num_mel_bins=100, low_hertz=0, high_hertz=12_000),
]

synthesis_mel = jax.jit(module.synthesis_mel, static_argnames="config")


def speech_like(seed, samples):
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (3000 * noise * np.sin(np.arange(samples) / 900)).astype(np.int16)


def tone(samples):
    """A loud low tone, where a plain float32 transform is wrong by 1e-2 in the quiet bins."""
    return (20_000 * np.sin(np.arange(samples) * 2 * np.pi * 100 / 16_000)).astype(np.int16)


def of_librosa(samples, config):
    """Returns the features in float64."""
    spectrum = librosa.stft(
        samples / 2.0**15,
        n_fft=config.n_fft,
        win_length=config.window,
        hop_length=config.hop,
        center=False,
    )
    edges = {"fmin": config.low_hertz, "fmax": config.high_hertz, "dtype": np.float64}
    filters = librosa.filters.mel(sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.num_mel_bins, **edges)
    return np.log10(np.maximum(np.abs(spectrum).T @ filters.T, config.floor))


def expected_of(samples, config):
    return of_librosa(np.pad(samples, config.n_fft // 2, mode="reflect"), config)


def packed(utterances, config, more=0):
    """Returns a row with junk in the gaps, and its segments."""
    lengths = np.array([len(samples) for samples in utterances], np.int32)
    slots = -(-(lengths + config.gap_samples) // config.hop) * config.hop
    start = (np.cumsum(slots) - slots).astype(np.int32)
    row = np.full((1, slots.sum() + more), 9_999, np.int16)
    for at, samples in zip(start, utterances, strict=True):
        row[0, at : at + len(samples)] = samples
    return row, Segments(jnp.array(start)[None], jnp.array(lengths)[None])


@pytest.mark.parametrize("config", [CONFIG, *OTHER_RATES])
@pytest.mark.parametrize("samples", [speech_like(0, 9_999), tone(9_000), np.zeros(3_000, np.int16)])
def test_features_are_those_of_librosa(config, samples):
    mel, length = synthesis_mel(samples[None], np.array([len(samples)]), config=config)
    expected = expected_of(samples, config)
    assert length[0] == config.num_frames(len(samples)) == len(expected)
    np.testing.assert_allclose(mel[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 3, 100, 511, 512, 513, 600])
def test_short_utterances_are_reflected_as_numpy_does(samples):
    audio = speech_like(3, samples)
    mel, length = synthesis_mel(np.pad(audio, (0, 999), constant_values=7)[None], np.array([samples]), config=CONFIG)
    expected = expected_of(audio, CONFIG)
    assert length.tolist() == [len(expected)]
    np.testing.assert_allclose(mel[0, : len(expected)], expected, rtol=0, atol=1e-4)


def test_rows_without_padding_get_the_same_without_lengths():
    audio = np.stack([speech_like(seed, 4_000) for seed in range(2)])
    mel, length = synthesis_mel(audio, None, config=CONFIG)
    expected, frames = synthesis_mel(audio, np.array([4_000, 4_000]), config=CONFIG)
    np.testing.assert_array_equal(length, frames)
    np.testing.assert_allclose(mel, expected, atol=1e-6)


@settings(max_examples=10)
@given(length=st.integers(0, 6000), rows=st.permutations(range(3)))
def test_an_utterance_depends_on_its_own_samples_only(length, rows):
    audio = np.stack([speech_like(seed, 6000) for seed in range(3)])
    lengths = np.array([length, 6000, 2000], np.int32)
    together, frames = synthesis_mel(audio, lengths, config=CONFIG)
    junk = np.where(np.arange(6000) < lengths[:, None], audio, 30_000).astype(np.int16)
    shuffled, _ = synthesis_mel(junk[list(rows)], lengths[list(rows)], config=CONFIG)
    np.testing.assert_allclose(shuffled, together[jnp.array(rows)], atol=1e-5)
    assert np.isfinite(together).all()
    assert not np.any(together[0, frames[0] :])


@pytest.mark.parametrize("config", [CONFIG, *OTHER_RATES])
def test_an_utterance_of_a_packed_row_gets_the_features_that_it_gets_alone(config):
    utterances = [speech_like(seed, length) for seed, length in enumerate([8000, 3177, 1, 300, 6400])]
    row, segments = packed([*utterances, np.zeros(0, np.int16)], config, more=640)
    mel, frames = synthesis_mel(row, segments, config=config)
    np.testing.assert_array_equal(frames.length[0], [*(config.num_frames(len(x)) for x in utterances), 0])
    for first, count, samples in zip(frames.start[0], frames.length[0], utterances, strict=False):
        expected = expected_of(samples, config)
        np.testing.assert_allclose(mel[0, first : first + count], expected, rtol=0, atol=1e-4)
    assert not np.asarray(mel)[0, ~np.asarray(frames.mask(mel.shape[1]))[0]].any()


@pytest.mark.parametrize("gap", [CONFIG.gap_samples, CONFIG.gap_samples - 256])
def test_the_gap_is_as_long_as_it_must_be(gap):
    """With less of it, the reflections of two neighbours meet."""
    first = 4096  # its last window reaches farthest
    audio = np.concatenate([speech_like(0, first), np.zeros(gap, np.int16), speech_like(1, 4000)])[None]
    segments = Segments(jnp.array([[0, first + gap]]), jnp.array([[first, 4000]]))
    mel, frames = synthesis_mel(audio, segments, config=CONFIG)
    expected = np.concatenate([expected_of(speech_like(0, first), CONFIG), expected_of(speech_like(1, 4000), CONFIG)])
    found = np.concatenate([mel[0, at : at + n] for at, n in zip(frames.start[0], frames.length[0], strict=True)])
    assert (np.abs(found - expected).max() < 1e-4) == (gap == CONFIG.gap_samples)


def test_the_gradient_of_the_samples_is_finite_and_right():
    samples = np.concatenate([speech_like(0, 1500), np.zeros(2000, np.int16)]).astype(np.float32)[None]

    def total(audio, lengths):
        return jnp.sum(synthesis_mel(audio, lengths, config=CONFIG)[0])

    for lengths in (None, np.array([3_500])):
        gradient = jax.grad(total)(jnp.asarray(samples), lengths)
        assert np.isfinite(gradient).all()
        direction = np.random.default_rng(1).standard_normal(samples.shape) * (np.abs(samples) > 0)
        ahead, behind = (
            sum(np.sum(expected_of(row, CONFIG)) for row in samples + step * direction) for step in (1e-3, -1e-3)
        )
        np.testing.assert_allclose(np.sum(gradient * direction), (ahead - behind) / 2e-3, rtol=1e-3)


@pytest.mark.parametrize("utterances", [1, 3])
def test_the_sharded_front_end_gathers_nothing(utterances):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    audio = jax.ShapeDtypeStruct((16, 4000), jnp.int16, sharding=rows)
    lengths = jax.ShapeDtypeStruct((16,), jnp.int32, sharding=rows)
    if utterances > 1:
        lengths = Segments(*[jax.ShapeDtypeStruct((16, utterances), jnp.int32, sharding=rows)] * 2)
    sharded = jax.jit(partial(module.synthesis_mel, config=CONFIG), out_shardings=(rows, rows))
    text = sharded.lower(audio, lengths).compile().as_text()
    assert not [op for op in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if op in text]


class TestFrontEnd:
    def test_stored_settings_of_both_kinds_open(self):
        for mel in (LogMel(stack=4), CONFIG, OTHER_RATES[1]):
            assert FrontEnd.from_json(FrontEnd(mel=mel).model_dump_json()).mel == mel
        assert FrontEnd.model_validate({"mel": {"flavour": "nemo", "stack": 1}}).mel == LogMel(variant="nemo", stack=1)
        assert FrontEnd.model_validate({"mel": {}}).mel == LogMel()
        with pytest.raises(ValueError, match="LogMel has no setting 'normalise'; did you mean 'normalize'"):
            FrontEnd.model_validate({"mel": {"normalise": True}})
        with pytest.raises(ValueError, match="SynthesisMel has no setting 'stack'"):
            FrontEnd.model_validate({"mel": {"variant": "speecht5", "stack": 2}})

    def test_waveforms_are_augmented_and_spectrograms_are_not(self):
        audio = np.stack([speech_like(seed, 4_000) for seed in range(2)])
        batch = {"audio": audio, "audio_length": np.array([4_000, 3_000]), "example_id": np.array([3, 4])}
        batch = {name: jnp.asarray(values) for name, values in batch.items()}
        plain, _ = features(batch, FrontEnd(mel=CONFIG), None)
        same, _ = features(batch, FrontEnd(mel=CONFIG), jax.random.key(0))
        np.testing.assert_allclose(same, plain, atol=1e-6)
        louder, length = features(batch, FrontEnd(mel=CONFIG, augment=Augment(gain_db=20.0)), jax.random.key(0))
        for row, frames in enumerate(length):
            change = np.asarray(louder - plain)[row, :frames]
            np.testing.assert_allclose(change, change[0, 0], atol=1e-4)
            assert 0.01 < np.abs(change[0, 0]) < 1
        with pytest.raises(ValueError, match="SpecAugment masks and moves normalised features"):
            FrontEnd(mel=CONFIG, augment=SPEC_AUGMENT)

    def test_speech_encoders_refuse_it(self):
        with pytest.raises(ValueError, match="takes normalised log-mel features"):
            check_features(ConformerConfig(input_dim=80), CONFIG)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 200}, "must be even and at least hop"),
        ({"high_hertz": 9_000}, "at most half of sample_rate"),
        ({"low_hertz": 7_600}, "must be below high_hertz"),
        ({"num_mel_bins": 400}, "leaves bins without a frequency"),
        ({"floor": 0}, "greater than or equal to 0.00000000001"),
    ],
)
def test_settings_that_cannot_be_computed_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SynthesisMel(**wrong)
