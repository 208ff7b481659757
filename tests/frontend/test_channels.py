"""Rooms, telephones, babble and changes of time: against scipy and plain loops, and the same in packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import soundfile

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.augment import Augment, augment_audio
from jax_speechlm.frontend.cepstra import Cepstra
from jax_speechlm.frontend.filters import fir_filter
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.rooms import read_responses, room_response
from jax_speechlm.frontend.time_warp import warp_time
from jax_speechlm.objectives.base import check_keeps_time

RATE, ROWS, SAMPLES = 8000, 3, 4000
LENGTHS = np.array([4000, 1500, 0])
KEYS = jax.random.split(jax.random.key(3), ROWS)
AUDIO = (2000 * np.random.default_rng(0).standard_normal((ROWS, SAMPLES))).astype(np.int16)
CHANNELS = {
    "room": Augment(room_probability=1.0),
    "telephone": Augment(telephone_probability=1.0),
    "both": Augment(room_probability=0.5, telephone_probability=0.5, gain_db=3.0),
}

augment = jax.jit(augment_audio, static_argnames=("config", "sample_rate"))
warp = jax.jit(warp_time, static_argnames=("share", "jitter"))


@pytest.mark.parametrize(("samples", "taps"), [(1000, 300), (128, 128), (100, 1), (50, 400)])
def test_a_row_is_convolved_with_its_own_response(samples, taps):
    rng = np.random.default_rng(0)
    audio, responses = 1000 * rng.standard_normal((2, samples)), rng.standard_normal((2, taps))
    filtered = jax.jit(fir_filter)(audio, responses)
    for row in range(2):
        wanted = scipy.signal.fftconvolve(audio[row], responses[row])[:samples]
        np.testing.assert_allclose(filtered[row], wanted, atol=1e-6 * 1000 * taps)


def images(size, source, microphone, seconds, taps):
    """The response by a loop over images within 0.1 s."""
    volume = np.prod(size)
    surface = 2 * (size[0] * size[1] + size[1] * size[2] + size[0] * size[2])
    log_kept = -0.161 * volume / (surface * seconds)  # Eyring, of power
    direct, response = np.linalg.norm(source - microphone), np.zeros(taps)
    for m in np.ndindex(13, 13, 17):
        m = np.array(m) - (6, 6, 8)
        for mirrored in np.ndindex(2, 2, 2):
            place = 2 * m * size + np.where(mirrored, -source, source)
            walls = np.abs(2 * m - np.array(mirrored)).sum()
            distance = np.linalg.norm(place - microphone)
            delay = round((distance - direct) * RATE / 343)
            if delay < taps:
                response[delay] += (-1.0) ** walls * direct / distance * np.exp(0.5 * log_kept * walls)
    return response


def test_rooms_are_those_of_a_loop_over_images():
    size, source, microphone = np.array([5.0, 4.0, 3.0]), np.array([1.0, 1.5, 1.2]), np.array([3.3, 2.1, 1.7])
    response = np.asarray(jax.jit(room_response, static_argnums=4)(size, source, microphone, 0.3, RATE))
    assert response[0] == pytest.approx(1.0, rel=1e-5)
    early = round(0.08 * RATE)
    wanted = images(size, source, microphone, 0.3, early)
    # A delay may be rounded the other way; sums over three samples do not change much.
    smooth = np.ones(5) / 5
    difference = np.convolve(response[:early] - wanted, smooth, "valid")
    assert np.sqrt(np.mean(difference**2)) < 0.02 * np.sqrt(np.mean(np.convolve(wanted, smooth, "valid") ** 2))
    # Sound decays by 60 dB in 0.3 s: by 20 dB in 0.1 s, within what a shoebox differs from Eyring's diffuse field.
    power = np.add.reduceat(response**2, np.arange(0, len(response), RATE // 20))
    assert 14 < 10 * np.log10(power[1] / power[3]) < 26


@pytest.mark.parametrize("name", CHANNELS)
def test_neither_padding_nor_order_nor_packing_matters(name):
    config = CHANNELS[name]
    rows, _ = augment(AUDIO, LENGTHS, KEYS, config=config, sample_rate=RATE)
    junk = np.where(np.arange(SAMPLES) < LENGTHS[:, None], AUDIO, 9999).astype(np.int16)
    np.testing.assert_array_equal(augment(junk, LENGTHS, KEYS, config=config, sample_rate=RATE)[0], rows)
    order = np.array([1, 2, 0])
    again, _ = augment(AUDIO[order], LENGTHS[order], KEYS[order], config=config, sample_rate=RATE)
    np.testing.assert_allclose(again, rows[order], atol=0.05)
    packed = np.zeros((1, 6000), np.int16)
    packed[0, :4000], packed[0, 4000:5500] = AUDIO[0], AUDIO[1, :1500]
    segments = Segments(jnp.array([[0, 4000]]), jnp.array([[4000, 1500]]))
    together, _ = augment(packed, segments, KEYS[None, :2], config=config, sample_rate=RATE)
    # A sample at the edge between two of the telephone's levels may fall on the other side: a step of up to 4 %.
    for part, row in ((together[0, :4000], rows[0]), (together[0, 4000:5500], rows[1, :1500])):
        assert np.mean(np.abs(np.asarray(part) - np.asarray(row)) > 0.1) < 0.002
    assert not np.any(together[0, 5500:])


def test_rooms_keep_the_power_and_telephones_the_band():
    time = np.arange(SAMPLES) / RATE
    tones = np.stack([4000 * np.sin(2 * np.pi * hertz * time) for hertz in (100, 1000, 3900)]).astype(np.int16)
    lengths = np.full(3, SAMPLES)
    inside = slice(400, -400)
    for_phone, _ = augment(tones, lengths, KEYS, config=CHANNELS["telephone"], sample_rate=RATE)
    levels = 20 * np.log10(np.std(np.asarray(for_phone)[:, inside], axis=1) / np.std(tones[:, inside], axis=1))
    assert levels[0] < -6
    assert abs(levels[1]) < 0.5
    assert levels[2] < -6
    assert np.abs(np.asarray(for_phone[1] - tones[1])[inside]).max() < 0.05 * 4000  # in time, to a step
    in_room, _ = augment(AUDIO, LENGTHS, KEYS, config=CHANNELS["room"], sample_rate=RATE)
    np.testing.assert_allclose(np.mean(np.square(in_room[0])), np.mean(AUDIO[0].astype(float) ** 2), rtol=1e-3)
    assert np.corrcoef(in_room[0], AUDIO[0])[0, 1] > 0.1  # the direct sound is where it was


def test_recorded_rooms(tmp_path):
    response = np.zeros(3000)
    response[100], response[400] = 0.8, 0.4
    soundfile.write(tmp_path / "room.wav", response, RATE)
    config = Augment(room_probability=1.0, rooms=str(tmp_path))
    audio, _ = augment(AUDIO, LENGTHS, KEYS, config=config, sample_rate=RATE)
    wanted = AUDIO[0].astype(np.float64)
    wanted[300:] += 0.5 * AUDIO[0, :-300]
    np.testing.assert_allclose(audio[0], wanted * np.std(AUDIO[0]) / np.sqrt(np.mean(wanted**2)), rtol=2e-3, atol=2)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"frontend.augment.rooms: .* has no \.wav"):
        read_responses(str(tmp_path / "none"), RATE)
    soundfile.write(tmp_path / "none/silent.wav", np.zeros(100), RATE)
    with pytest.raises(ValueError, match=r"silent\.wav: .* without sound"):
        read_responses(str(tmp_path / "none"), RATE)


def test_babble_is_of_other_rows_at_the_drawn_ratio():
    config = Augment(babble_probability=1.0, babble_voices=2, snr_db=(3.0, 3.0))
    audio, _ = augment(AUDIO, np.array([4000, 1500, 4000]), KEYS, config=config, sample_rate=RATE)
    added = np.asarray(audio[0]) - AUDIO[0]
    assert 10 * np.log10(np.var(AUDIO[0].astype(float)) / np.var(added)) == pytest.approx(3.0, abs=0.05)
    alone, _ = augment(AUDIO[:1], LENGTHS[:1], KEYS[:1], config=config, sample_rate=RATE)
    assert np.isfinite(alone).all()


class TestTime:
    x = jnp.broadcast_to(jnp.arange(40.0)[None, :, None], (ROWS, 40, 2))  # a frame's value is its place
    lengths = np.array([40, 25, 1])

    @pytest.mark.parametrize("kind", ["share", "jitter"])
    def test_frames_keep_their_order_and_the_ends_stay(self, kind):
        change = {"share": 0.0, "jitter": 0.0, kind: 0.2}
        warped = np.asarray(warp(self.x, self.lengths, KEYS, **change))[..., 0]
        for row, length in enumerate(self.lengths):
            places = warped[row, :length]
            assert (np.diff(places) >= -1e-4).all()
            np.testing.assert_allclose(places[[0, -1]], [0, length - 1], atol=1e-4)
            assert not warped[row, length:].any()
        assert np.abs(warped[0] - np.arange(40)).max() > 0.1
        if kind == "jitter":
            np.testing.assert_array_equal(warped, np.round(warped))  # whole frames
        else:
            assert np.abs(warped[0] - np.arange(40)).max() < 0.2 * 39 + 1e-3

    def test_jitter_repeats_and_drops_as_often_as_it_should(self):
        keys = jax.random.split(jax.random.key(0), 100)
        x = jnp.broadcast_to(self.x[:1], (100, 40, 2))
        steps = np.diff(np.asarray(warp(x, np.full(100, 40), keys, share=0.0, jitter=0.1))[..., 0], axis=1)
        assert np.mean(steps == 0) == pytest.approx(0.1, abs=0.03)
        assert np.mean(steps == 2) == pytest.approx(0.1, abs=0.03)

    def test_padding_order_and_packing_change_nothing(self):
        change = {"share": 0.2, "jitter": 0.1}
        x = jnp.asarray(np.random.default_rng(0).standard_normal((ROWS, 40, 2)), jnp.float32)
        rows = np.asarray(warp(x, self.lengths, KEYS, **change))
        longer = jnp.concatenate([x, jnp.full((ROWS, 9, 2), jnp.nan)], axis=1)
        np.testing.assert_allclose(warp(longer, self.lengths, KEYS, **change)[:, :40], rows, atol=1e-5)
        order = np.array([2, 0, 1])
        np.testing.assert_array_equal(warp(x[order], self.lengths[order], KEYS[order], **change), rows[order])
        packed = jnp.concatenate([x[0], x[1, :25], jnp.zeros((3, 2))])[None]
        segments = Segments(jnp.array([[0, 40]]), jnp.array([[40, 25]]))
        together = warp(packed, segments, KEYS[None, :2], **change)
        np.testing.assert_allclose(together[0, :40], rows[0], atol=1e-5)
        np.testing.assert_allclose(together[0, 40:65], rows[1, :25], atol=1e-5)

    def test_front_ends_warp_in_training_only(self):
        frontend = FrontEnd(mel=Cepstra(sample_rate=RATE), augment=Augment(time_warp=0.2))
        batch = {"audio": jnp.asarray(AUDIO), "audio_length": jnp.asarray(LENGTHS), "example_id": jnp.arange(ROWS)}
        train = jax.jit(lambda batch, key: features(batch, frontend, key)[0])
        plain = jax.jit(lambda batch: features(batch, frontend, None)[0])(batch)
        warped = train(batch, jax.random.key(0))
        assert np.abs(warped - plain).max() > 0.1
        with pytest.raises(ValueError, match="move feature vectors away from their labels"):
            check_keeps_time(frontend, "labels")


@pytest.mark.parametrize("name", CHANNELS)
def test_bad_input(name):
    """Silence, one sample, no samples, and a full-scale constant."""
    audio = np.zeros((4, 1000), np.int16)
    audio[1, 0], audio[3] = 50, 32_767
    keys, lengths = jax.random.split(jax.random.key(0), 4), np.array([1000, 1, 0, 1000])
    changed = np.asarray(augment(audio, lengths, keys, config=CHANNELS[name], sample_rate=RATE)[0])
    assert np.isfinite(changed).all()
    assert not changed[[0, 2]].any()
    assert not changed[1, 1:].any()
