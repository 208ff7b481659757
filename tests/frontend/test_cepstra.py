"""Cepstra against scipy: its windows, its cosine transform, its Toeplitz solver; and in packed rows."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import scipy.signal

from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.cepstra import Cepstra, cepstra, cepstrum_of_prediction, levinson
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel, log_mel, tapers
from jax_speechlm.frontend.streaming import check_streams

compute, bins = (jax.jit(function, static_argnames="config") for function in (cepstra, log_mel))
VARIANTS = ("mfcc", "lpc", "lpcc")
LENGTHS = np.array([4000, 1700, 199, 0])
PLAIN = {"sample_rate": 8000, "normalize": False, "differences": 0, "order": 8, "num_filters": 20}


def speech(rows=4, seed=0):
    """Noise of a wandering colour, int16 [rows, 4000], so that no coefficient is 0."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((rows, 4000))
    voiced = scipy.signal.lfilter([1], [1, -1.6, 0.9, -0.1], noise, axis=1)
    mix = 0.5 + 0.5 * np.sin(np.arange(4000) / 400)
    return (500 * (mix * voiced + (1 - mix) * noise)).astype(np.int16)


def expected(samples, variant, taper, order=8):
    """[windows, 9] of one utterance, in float64."""
    frames = librosa.util.frame(samples.astype(np.float64), frame_length=200, hop_length=80).T
    frames = frames - frames.mean(1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    hann = scipy.signal.windows.hann(200)
    frames = frames * (hann**0.85 if taper == "povey" else scipy.signal.get_window(taper, 200, fftbins=False))
    rows = []
    for frame in frames:
        r = np.correlate(frame, frame, "full")[199 : 200 + order] / 200
        r[0] = r[0] * (1 + 1e-5) + 1 / 12
        a = scipy.linalg.solve_toeplitz(r[:-1], -r[1:])
        power = r[0] + a @ r[1:]
        if variant == "lpcc":  # the cepstrum of the filter's own spectrum, by a transform long enough not to alias
            spectrum = np.abs(np.fft.rfft(np.concatenate([[1], a]), 8192)) ** -2
            a = np.fft.irfft(np.log(spectrum))[1 : order + 1]
        rows.append(np.concatenate([[np.log(power)], a]))
    return np.array(rows)


@pytest.mark.parametrize(("variant", "taper"), [("lpc", "hamming"), ("lpcc", "povey"), ("lpc", "blackman")])
def test_prediction_equals_scipys(variant, taper):
    audio = speech()
    x, counts = compute(audio, LENGTHS, config=Cepstra(variant=variant, taper=taper, **PLAIN))
    assert counts.tolist() == [48, 19, 0, 0]
    for row in range(2):
        wanted = expected(audio[row, : LENGTHS[row]], variant, taper)
        np.testing.assert_allclose(x[row, : counts[row]], wanted, atol=2e-3)
        assert not np.any(x[row, counts[row] :])


def test_mfcc_is_the_cosine_transform_of_log_mel():
    audio, config = speech(), Cepstra(**PLAIN)
    x, _ = compute(audio, LENGTHS, config=config)
    mel, _ = bins(audio, LENGTHS, config=config.log_mel)
    np.testing.assert_allclose(x[0], scipy.fft.dct(np.asarray(mel[0]), norm="ortho")[:, :9], atol=1e-4)


@pytest.mark.parametrize("taper", ["hann", "hamming", "povey", "blackman"])
def test_windows_are_scipys_and_change_log_mel(taper):
    wanted = scipy.signal.get_window("hann" if taper == "povey" else taper, 400, fftbins=False)
    np.testing.assert_allclose(tapers(taper, 400), wanted ** (0.85 if taper == "povey" else 1), atol=1e-12)
    plain = {"sample_rate": 8000, "num_mel_bins": 8, "stack": 1, "normalize": False}
    audio, length = jnp.asarray(speech(1)), jnp.array([4000])
    own, other = (bins(audio, length, config=LogMel(taper=each, **plain))[0] for each in (None, taper))
    assert np.array_equal(own, other) == (taper == "povey")


def test_normalised_with_differences():
    audio = speech()
    x, counts = compute(audio, LENGTHS, config=Cepstra(**(PLAIN | {"normalize": True, "differences": 2})))
    plain, _ = compute(audio, LENGTHS, config=Cepstra(**PLAIN))
    for row in range(2):
        values = np.asarray(plain[row, : counts[row]], np.float64)
        first = librosa.feature.delta(values, width=5, mode="nearest", axis=0)
        second = librosa.feature.delta(first, width=5, mode="nearest", axis=0)
        wanted = np.concatenate([values, first, second], axis=1)
        wanted = (wanted - wanted.mean(0)) / wanted.std(0, ddof=1)
        np.testing.assert_allclose(x[row, : counts[row]], wanted, atol=2e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_padding_nor_packing_matters(variant):
    config = Cepstra(**(PLAIN | {"normalize": True, "differences": 2, "variant": variant, "stack": 2}))
    audio = speech()
    junk = np.where(np.arange(4000) < LENGTHS[:, None], audio, 9999).astype(np.int16)
    rows, counts = compute(audio, LENGTHS, config=config)
    np.testing.assert_array_equal(compute(junk, LENGTHS, config=config)[0], rows)
    packed = np.zeros((1, 6400), np.int16)  # utterances start at whole vectors, of 160 samples
    packed[0, :4000], packed[0, 4000:5700] = audio[0], audio[1, :1700]
    together, segments = compute(packed, Segments(jnp.array([[0, 4000]]), jnp.array([[4000, 1700]])), config=config)
    assert segments.start.tolist() == [[0, 25]]
    for row, start in enumerate((0, 25)):
        alone = rows[row, : counts[row]]
        np.testing.assert_allclose(together[0, start : start + counts[row]], alone, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bad_input(variant):
    """Silence, a constant, a pure tone, one window, and a row that is not finite: values and gradients are finite."""
    audio = np.zeros((5, 2000), np.float32)
    audio[1], audio[2] = 3000, 30_000 * np.sin(np.arange(2000))
    audio[3, :200], audio[4] = speech(1)[0, :200], np.nan
    lengths = jnp.array([2000, 2000, 2000, 200, 2000])
    config = Cepstra(**(PLAIN | {"variant": variant, "normalize": True, "differences": 1}))

    def loss(audio):
        x = cepstra(audio, lengths, config)[0]
        return jnp.sum(jnp.square(x[:4])), x

    (_, x), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(audio)
    assert np.isfinite(x[:4]).all()
    assert np.isfinite(gradient[:4]).all()


def test_levinson_and_the_cepstrum_alone():
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((3, 100))
    r = np.stack([[row[: 100 - k] @ row[k:] for k in range(11)] for row in frames])
    power, a = jax.jit(levinson)(r)
    for row in range(3):
        np.testing.assert_allclose(a[row], scipy.linalg.solve_toeplitz(r[row, :-1], -r[row, 1:]), atol=1e-5)
        np.testing.assert_allclose(power[row], r[row, 0] + np.asarray(a[row]) @ r[row, 1:], rtol=1e-5)
    pole = jax.jit(cepstrum_of_prediction)(np.array([-0.5, 0.0, 0.0]))  # of 1 / (1 - z^-1 / 2): 0.5^n / n
    np.testing.assert_allclose(pole, [0.5, 0.125, 0.5**3 / 3], atol=1e-6)


def test_front_ends_take_them_where_they_make_sense():
    frontend = FrontEnd(mel=Cepstra(), augment=Augment(time_masks=1))
    assert FrontEnd.model_validate_json(frontend.model_dump_json()) == frontend
    batch = {"audio": jnp.asarray(speech(2)), "audio_length": jnp.array([4000, 1700]), "example_id": jnp.arange(2)}
    x, lengths = jax.jit(lambda batch, key: features(batch, frontend, key))(batch, jax.random.key(0))
    assert x.shape == (2, 23, frontend.mel.input_dim)
    assert lengths.tolist() == [23, 9]
    with pytest.raises(ValueError, match=r"freq_masks to 0"):
        FrontEnd(mel=Cepstra(), augment=Augment(freq_masks=1))
    with pytest.raises(ValueError, match="mfcc cannot stream"):
        check_streams(Cepstra())
    with pytest.raises(ValueError, match="num_filters above order"):
        Cepstra(order=20, num_filters=20)
    with pytest.raises(ValueError, match="variant kaldi"):
        LogMel(variant="librosa", taper="hann")
