from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.augment import SPEC_AUGMENT, Augment, augment_audio, spec_augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import log_mel

ROWS, SAMPLES, BINS = 6, 8000, 16
LENGTHS = jnp.array([8000, 8000, 5000, 1600, 400, 0])
KEYS = jax.random.split(jax.random.key(0), ROWS)
AUDIO = jnp.asarray(2000 * np.random.default_rng(0).standard_normal((ROWS, SAMPLES)), jnp.int16)
VALID = np.arange(SAMPLES) < np.asarray(LENGTHS)[:, None]
NOISE = jnp.asarray(500 * np.random.default_rng(1).standard_normal((ROWS, SAMPLES)), jnp.int16)

augment = jax.jit(augment_audio, static_argnames="config")
mask = jax.jit(spec_augment, static_argnames=("config", "num_mel_bins"))


def power(x, valid):
    return np.sum(np.square(np.where(valid, x, 0.0)), axis=1) / np.maximum(valid.sum(1), 1)


def test_nothing_changes_by_default():
    audio, length = augment(AUDIO, LENGTHS, KEYS, config=Augment())
    np.testing.assert_array_equal(audio, np.where(VALID, AUDIO, 0))
    np.testing.assert_array_equal(length, LENGTHS)
    x = jnp.ones((ROWS, 20, 2 * BINS))
    np.testing.assert_array_equal(mask(x, LENGTHS // 400, KEYS, config=Augment(), num_mel_bins=BINS), x)


class TestNoise:
    @pytest.mark.parametrize("kind", ["mix_probability", "noise_probability"])
    def test_is_added_at_the_drawn_ratio(self, kind):
        config = Augment(snr_db=(6.0, 6.0), **{kind: 1.0})
        audio, _ = augment(AUDIO, LENGTHS, KEYS, config=config, noise=NOISE)
        added = np.asarray(audio) - np.where(VALID, AUDIO, 0)
        ratio = power(AUDIO, VALID) / np.maximum(power(added, VALID), 1e-9)
        noisy = np.array([True] * 4 + [kind == "noise_probability", False])  # after row 4 comes an empty row
        np.testing.assert_allclose(10 * np.log10(ratio[noisy]), 6.0, atol=0.01)
        assert not np.any(added[~noisy])
        assert not np.any(audio[~VALID])

    def test_ratios_fill_their_range(self):
        keys = jax.random.split(jax.random.key(1), 200)
        audio = jnp.tile(AUDIO[:1], (200, 1))
        length, noise = jnp.full(200, SAMPLES), jnp.tile(NOISE[:1], (200, 1))
        config = Augment(noise_probability=0.5, snr_db=(0.0, 20.0))
        noisy, _ = augment(audio, length, keys, config=config, noise=noise)
        added = power(np.asarray(noisy) - np.asarray(audio, np.float32), np.ones((200, SAMPLES), bool))
        touched = added > 1
        assert 70 < touched.sum() < 130
        ratio = 10 * np.log10(power(audio, np.ones((200, SAMPLES), bool))[touched] / added[touched])
        assert -0.01 < ratio.min() < 2
        assert 18 < ratio.max() < 20.01

    def test_mixes_in_the_next_utterance_looped(self):
        audio, _ = augment(AUDIO, LENGTHS, KEYS, config=Augment(mix_probability=1.0))
        added = np.asarray(audio)[2, :5000] - np.asarray(AUDIO, np.float32)[2, :5000]  # row 3 is 1,600 samples long
        np.testing.assert_allclose(added[1600:3200], added[:1600], atol=0.1)
        shifts = [np.roll(np.asarray(AUDIO, np.float32)[3, :1600], -shift) for shift in range(1600)]
        assert np.max(np.corrcoef(np.array([added[:1600], *shifts]))[0, 1:]) > 0.999

    def test_missing_noise_is_an_error(self):
        with pytest.raises(ValueError, match=r"set data.noise_set"):
            augment_audio(AUDIO, LENGTHS, KEYS, Augment(noise_probability=0.1))


def test_gain_is_one_factor_a_row_within_its_limit():
    audio, _ = augment(AUDIO, LENGTHS, KEYS, config=Augment(gain_db=6.0))
    decibels = [10 * np.log10(p) for p in power(audio, VALID)[:5] / power(AUDIO, VALID)[:5]]
    assert np.max(np.abs(decibels)) <= 6.0
    assert np.std(decibels) > 0.5
    np.testing.assert_allclose(audio[0] / 10 ** (decibels[0] / 20), AUDIO[0], atol=0.1)


def test_crop_keeps_a_stretch_of_the_utterance():
    audio, length = augment(AUDIO, LENGTHS, KEYS, config=Augment(crop_seconds=0.1))
    assert audio.shape == (ROWS, 1600)
    assert length.tolist() == [1600, 1600, 1600, 1600, 400, 0]
    starts = []
    for row in range(4):
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(AUDIO[row, : LENGTHS[row]]), 1600)
        found = np.flatnonzero((windows == np.asarray(audio[row])).all(1))
        assert len(found) == 1
        starts.append(int(found[0]))
    assert len(set(starts)) > 1
    assert starts[3] == 0


class TestSpecAugment:
    config = Augment(time_masks=2, time_mask_ratio=0.2, freq_masks=1, freq_mask_bins=5)
    ones = jnp.ones((200, 50, 2 * BINS))
    length = jnp.full(200, 40)
    keys = jax.random.split(jax.random.key(2), 200)

    def test_spans_and_bands_have_the_promised_sizes(self):
        masked = np.asarray(mask(self.ones, self.length, self.keys, config=self.config, num_mel_bins=BINS)) == 0
        times, bands = masked.all(2), masked[:, :40].all(1)
        assert not times[:, 40:].any()
        assert times.sum(1).max() in (15, 16)  # two spans of at most 8
        assert (times.sum(1) == 0).any()
        assert times[:, :40].any(0).all()  # every frame is hit in some row
        np.testing.assert_array_equal(bands[:, :BINS], bands[:, BINS:])  # the same band in both stacked frames
        assert set(bands[:, :BINS].sum(1)) == set(range(6))
        assert (np.abs(np.diff(bands[:, :BINS].astype(int))).sum(1) <= 2).all()  # one contiguous band
        np.testing.assert_array_equal(masked[:, :40], times[:, :40, None] | bands[:, None, :])

    def test_a_row_draws_from_its_own_key(self):
        order = np.random.default_rng(0).permutation(200)
        a = mask(self.ones, self.length, self.keys, config=self.config, num_mel_bins=BINS)
        b = mask(self.ones, self.length, self.keys[order], config=self.config, num_mel_bins=BINS)
        np.testing.assert_array_equal(b, a[order])


def test_an_utterance_of_a_packed_row_is_augmented_as_it_is_alone():
    config = Augment(gain_db=6.0, noise_probability=0.7, snr_db=(0.0, 20.0))
    lengths, start = np.array([3000, 1600, 2500, 400]), np.array([0, 3200, 4800, 7360])
    noise, keys = NOISE[:1], KEYS[:4]
    alone, _ = augment(AUDIO[:4], jnp.array(lengths), keys, config=config, noise=jnp.repeat(noise, 4, axis=0))
    row = np.full((1, SAMPLES), 777, np.int16)
    for number, (at, length) in enumerate(zip(start, lengths, strict=True)):
        row[0, at : at + length] = AUDIO[number, :length]
    segments = Segments(jnp.array(start)[None], jnp.array(lengths)[None])
    packed, same = augment(jnp.array(row), segments, keys[None], config=config, noise=noise)
    np.testing.assert_array_equal(same.length, segments.length)
    for number, (at, length) in enumerate(zip(start, lengths, strict=True)):
        np.testing.assert_allclose(packed[0, at : at + length], alone[number, :length], rtol=1e-5, atol=5e-3)
    assert not packed[0, ~np.asarray(segments.mask(SAMPLES))[0]].any()


def test_packed_rows_are_not_cropped():
    segments = Segments(jnp.array([[0, 3200]]), jnp.array([[3000, 1600]]))
    with pytest.raises(ValueError, match=r"crop_seconds.*data\.packed to False"):
        augment_audio(AUDIO[:1], segments, KEYS[None, :2], Augment(crop_seconds=0.1))


BATCH = {"audio": AUDIO, "audio_length": LENGTHS, "example_id": jnp.arange(ROWS) * 7, "noise": NOISE}


class TestFrontEnd:
    config = FrontEnd(augment=SPEC_AUGMENT.replace(gain_db=3.0, noise_probability=0.5))

    def test_without_a_key_it_is_log_mel(self):
        x, length = features(BATCH, self.config, None)
        expected, expected_length = log_mel(AUDIO, LENGTHS, self.config.mel)
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_array_equal(length, expected_length)

    def test_what_a_row_draws_follows_its_example_id(self):
        run = jax.jit(lambda batch: features(batch, self.config, jax.random.key(3))[0])
        x = run(BATCH)
        order = jnp.array([3, 1, 5, 0, 4, 2])
        np.testing.assert_allclose(run({name: value[order] for name, value in BATCH.items()}), x[order], atol=1e-5)
        assert np.abs(x - features(BATCH, self.config, None)[0]).max() > 0.5
        assert np.isfinite(x).all()

    def test_waveform_only_leaves_spec_augment_out(self):
        config = self.config.waveform_only()
        assert config.augment == Augment(gain_db=3.0, noise_probability=0.5)
        assert config.mel == self.config.mel

    def test_sharded_and_augmented_it_gathers_nothing(self):
        """Mixing utterances moves one row to the neighbouring device; nothing else is exchanged."""
        config = FrontEnd(augment=self.config.augment.replace(mix_probability=0.5, crop_seconds=0.3))
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        spec = partial(jax.ShapeDtypeStruct, sharding=rows)
        batch = {name: spec((16, 8000), jnp.int16) for name in ("audio", "noise")} | {
            name: spec((16,), jnp.int32) for name in ("audio_length", "example_id")
        }
        run = jax.jit(lambda batch: features(batch, config, jax.random.key(0)), out_shardings=(rows, rows))
        text = run.lower(batch).compile().as_text()
        assert not [op for op in ("all-gather", "all-to-all", "all-reduce") if op in text]
