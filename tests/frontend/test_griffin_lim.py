import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_speechlm.frontend import griffin_lim as module
from jax_speechlm.frontend.synthesis_mel import SynthesisMel, synthesis_mel

CONFIG = SynthesisMel()
OTHER = SynthesisMel(sample_rate=24_000, hop=300, window=1200, num_mel_bins=100, low_hertz=0, high_hertz=12_000)

griffin_lim = jax.jit(module.griffin_lim, static_argnames=("hop", "window_length", "iterations", "momentum"))
mel_to_audio = jax.jit(module.mel_to_audio, static_argnames=("config", "iterations", "momentum"))


def voiced(samples, rate=16_000):
    """Returns harmonics of a gliding pitch in formant-like bands, on the int16 scale."""
    time = np.arange(samples) / rate
    turns = np.cumsum(120 + 40 * np.sin(2 * np.pi * 1.5 * time)) / rate
    harmonics = np.arange(1, 40)[:, None]
    level = 1 / (1 + ((harmonics * 120 - 600) / 300) ** 2) + 0.3 / (1 + ((harmonics * 120 - 2400) / 400) ** 2)
    audio = np.sum(level * np.sin(2 * np.pi * harmonics * turns), axis=0)
    noise = np.random.default_rng(0).standard_normal(samples)
    return (4000 * audio * (0.6 + 0.4 * np.sin(2 * np.pi * 2 * time)) + 30 * noise).astype(np.int16)


def spectrum(audio, n_fft, hop, window):
    return np.abs(librosa.stft(audio, n_fft=n_fft, hop_length=hop, win_length=window)).T.astype(np.float32)


@pytest.mark.parametrize(("n_fft", "hop", "window"), [(512, 128, 512), (1024, 300, 900)])
@pytest.mark.parametrize("momentum", [0.99, 0.0])
@pytest.mark.parametrize("samples", [8_000, 8_099])
def test_samples_are_those_of_librosa(n_fft, hop, window, momentum, samples):
    audio = voiced(samples) / 2.0**15
    amplitude = spectrum(audio, n_fft, hop, window)
    frames = np.array([len(amplitude)])
    sizes = {"hop_length": hop, "win_length": window, "n_fft": n_fft, "length": samples}
    # From phase 0. Rounding turns the phases of quiet bins, more with every iteration, so a few of them are compared.
    for iterations, atol in ((0, 1e-6), (1, 1e-5), (8, 1e-4)):
        found = griffin_lim(
            amplitude[None],
            frames,
            hop,
            window,
            num_samples=np.array([samples]),
            iterations=iterations,
            momentum=momentum,
            phase=np.zeros((1, 1, n_fft // 2 + 1), np.float32),
        )
        expected = librosa.griffinlim(
            amplitude.T.astype(np.float64), n_iter=iterations, momentum=momentum, init=None, dtype=np.float64, **sizes
        )
        assert found.shape == (1, len(amplitude) * hop)
        np.testing.assert_allclose(found[0, :samples], expected, rtol=0, atol=atol)
        assert not np.any(found[0, samples:])


def test_iterations_bring_the_spectrogram_nearer():
    audio = voiced(8_000) / 2.0**15
    amplitude = spectrum(audio, 1024, 256, 1024)

    def distance(**options):
        found = griffin_lim(amplitude[None], np.array([len(amplitude)]), 256, num_samples=np.array([8_000]), **options)
        found = spectrum(np.asarray(found[0, :8_000], np.float64), 1024, 256, 1024)
        return np.linalg.norm(found - amplitude) / np.linalg.norm(amplitude)

    few, plain, fast = distance(iterations=2), distance(iterations=32, momentum=0.0), distance(iterations=32)
    assert fast < plain < few
    assert fast < 0.15


@pytest.mark.parametrize("config", [CONFIG, OTHER])
def test_amplitudes_have_the_mel_spectrogram(config):
    """Much nearer to it than those of librosa, whose least squares are of the loud bins."""
    audio = voiced(config.sample_rate // 4, config.sample_rate)
    mel, _ = synthesis_mel(jnp.asarray(audio)[None], None, config)
    found = np.asarray(module.amplitude_of_mel(mel, config))[0]
    of_librosa = librosa.feature.inverse.mel_to_stft(
        10 ** np.asarray(mel[0], np.float64).T,
        sr=config.sample_rate,
        n_fft=config.n_fft,
        power=1.0,
        fmin=config.low_hertz,
        fmax=config.high_hertz,
    ).T
    assert found.shape == of_librosa.shape
    assert found.min() >= 0

    def distance(amplitude):
        return np.abs(np.log10(np.maximum(amplitude @ config.filters(), config.floor)) - mel[0]).mean()

    assert distance(found) < min(1e-3, distance(of_librosa) / 10)


@pytest.mark.parametrize("config", [CONFIG, OTHER])
def test_speech_comes_back_with_its_mel_spectrogram(config):
    samples = config.sample_rate // 2 + 77
    audio = voiced(samples, config.sample_rate)
    mel, frames = synthesis_mel(jnp.asarray(audio)[None], None, config)
    found = mel_to_audio(mel, frames, config=config, num_samples=np.array([samples]))
    assert found.shape == (1, mel.shape[1] * config.hop)
    assert not np.any(found[0, samples:])
    again, _ = synthesis_mel(found[:, :samples] * 2**15, None, config)
    assert np.sqrt(np.mean(np.square(again - mel))) < 0.15
    np.testing.assert_allclose(found.std(), (audio / 2**15).std(), rtol=0.1)


def test_neither_padding_nor_other_rows_change_the_samples():
    rows = [voiced(length) for length in (6_000, 3_111, 256)]
    mels = [np.asarray(synthesis_mel(jnp.asarray(row)[None], jnp.array([len(row)]), CONFIG)[0][0]) for row in rows]
    lengths = np.array([len(mel) for mel in mels])
    padded = np.stack([np.pad(mel, ((0, 31 - len(mel)), (0, 0)), constant_values=0.7) for mel in mels])
    options = {"config": CONFIG, "iterations": 8}
    together = mel_to_audio(padded, lengths, **options)
    for row, (mel, length) in enumerate(zip(mels, lengths, strict=True)):
        alone = mel_to_audio(mel[None], np.array([length]), **options)
        np.testing.assert_allclose(together[row, : length * 256], alone[0], atol=1e-5)
        assert not np.any(together[row, length * 256 :])
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(mel_to_audio(padded[order], lengths[order], **options), together[order], atol=1e-5)


def test_silence_and_rows_without_frames_are_finite():
    mel = np.full((2, 9, 80), -10.0, np.float32)
    audio = mel_to_audio(mel, np.array([9, 0]), config=CONFIG, iterations=4)
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() < 1e-6


def test_a_batch_sharded_over_devices_gathers_nothing():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    mel = jax.ShapeDtypeStruct((16, 9, 80), jnp.float32, sharding=rows)
    lengths = jax.ShapeDtypeStruct((16,), jnp.int32, sharding=rows)
    sharded = jax.jit(lambda mel, lengths: module.mel_to_audio(mel, lengths, CONFIG), out_shardings=rows)
    text = sharded.lower(mel, lengths).compile().as_text()
    assert not [op for op in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if op in text]
