import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_speechlm.nn import stft as transforms

# As multi-resolution losses use them: hops that do not divide the frame, windows shorter than it, odd margins.
SHAPES = [(512, 128, 512), (512, 50, 240), (1024, 120, 600), (256, 64, 250), (300, 75, 300)]

stft = jax.jit(transforms.stft, static_argnames=("n_fft", "hop", "window_length", "padding", "mode"))
istft = jax.jit(transforms.istft, static_argnames=("hop", "window_length", "padding", "length"))


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("n_fft", "hop", "window"), SHAPES)
@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_spectra_are_those_of_librosa(n_fft, hop, window, mode):
    audio = noise(0, 2, 3001)
    real, imaginary = stft(audio, n_fft, hop, window, mode=mode)
    expected = librosa.stft(audio.astype(np.float64), n_fft=n_fft, hop_length=hop, win_length=window, pad_mode=mode)
    spectrum = np.asarray(real) + 1j * np.asarray(imaginary)
    np.testing.assert_allclose(spectrum.swapaxes(1, 2), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("n_fft", "hop", "window"), SHAPES)
@pytest.mark.parametrize("length", [None, 2000, 3001, 4000])
def test_samples_are_those_of_librosa(n_fft, hop, window, length):
    """Of spectra that no signal has, so that the division by squared windows matters."""
    real, imaginary = noise(1, 2, 3001 // hop + 1, n_fft // 2 + 1), noise(2, 2, 3001 // hop + 1, n_fft // 2 + 1)
    audio = istft(real, imaginary, hop, window, length=length)
    spectrum = (real.astype(np.float64) + 1j * imaginary).swapaxes(1, 2)
    expected = librosa.istft(spectrum, n_fft=n_fft, hop_length=hop, win_length=window, length=length)
    assert audio.shape == expected.shape
    # At the far end a sample may have the tail of one window only, which magnifies rounding.
    weight = librosa.filters.window_sumsquare(
        window="hann", n_frames=real.shape[1], hop_length=hop, win_length=window, n_fft=n_fft, dtype=np.float64
    )[n_fft // 2 :]
    weight = np.pad(weight, (0, audio.shape[1]))[: audio.shape[1]]
    atol = 1e-6 * np.abs(expected[:, weight > 0.1]).max() / np.clip(np.sqrt(weight), 1e-4, 1)
    assert (np.abs(audio - expected) <= atol)[:, (weight > 1e-6) | (weight == 0)].all()


@settings(max_examples=8)
@given(frames=st.integers(2, 12), shape=st.sampled_from(SHAPES[:1] + SHAPES[3:4]), seed=st.integers(0, 9))
def test_a_signal_survives_both_ways(frames, shape, seed):
    n_fft, hop, window = shape
    samples = n_fft // 2 + hop * frames
    audio = noise(seed, 1, samples)
    again = istft(*stft(audio, n_fft, hop, window), hop, window, length=samples)
    # What lies beyond the last whole hop may be under the tail of a window only.
    np.testing.assert_allclose(again[:, : samples // hop * hop], audio[:, : samples // hop * hop], atol=2e-5)


def test_padding_same_gives_a_frame_for_every_hop_and_back():
    audio = noise(0, 2, 20 * 128)
    real, imaginary = stft(audio, 512, 128, padding="same")
    assert real.shape == (2, 20, 257)
    padded = np.pad(audio, ((0, 0), (192, 192)), mode="reflect")
    expected = librosa.stft(padded, n_fft=512, hop_length=128, center=False).swapaxes(1, 2)
    np.testing.assert_allclose(np.asarray(real) + 1j * np.asarray(imaginary), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(istft(real, imaginary, 128, padding="same"), audio, atol=2e-5)


def test_samples_do_not_depend_on_padding():
    real, imaginary = noise(1, 2, 12, 129), noise(2, 2, 12, 129)
    lengths = np.array([12, 7])
    for padding, samples in (("same", 7 * 64), ("center", 6 * 64)):
        audio = istft(real, imaginary, 64, padding=padding, lengths=lengths)
        alone = istft(real[1:, :7], imaginary[1:, :7], 64, padding=padding)
        assert alone.shape == (1, samples)
        np.testing.assert_allclose(audio[1, :samples], alone[0], atol=1e-5)
        np.testing.assert_allclose(audio[0], istft(real[:1], imaginary[:1], 64, padding=padding)[0], atol=1e-5)


@pytest.mark.parametrize("silent", [True, False])
def test_gradients_are_finite_and_right(silent):
    """Against central differences of the energy that comes back, in the direction of random spectra."""
    real, imaginary = (0 * noise(i, 1, 5, 33) if silent else noise(i, 1, 5, 33) for i in (1, 2))

    def energy(real, imaginary):
        parts = stft(istft(real, imaginary, 16, padding="same"), 64, 16, padding="same")
        return sum(jnp.sum(jnp.square(part)) for part in parts)

    gradients = jax.grad(energy, (0, 1))(real, imaginary)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    to = noise(3, 1, 5, 33), noise(4, 1, 5, 33)
    ahead, behind = (energy(real + step * to[0], imaginary + step * to[1]) for step in (0.01, -0.01))
    slope = sum(np.sum(gradient * direction) for gradient, direction in zip(gradients, to, strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / 0.02, rtol=2e-3, atol=0.5)


def test_the_number_of_frames_may_be_symbolic():
    frames, samples = export.symbolic_shape("f, s", constraints=["s >= 400"])

    def program(real, imaginary, audio):
        samples = (transforms.istft(real, imaginary, 64, padding=padding) for padding in ("same", "center"))
        return *samples, *transforms.stft(audio, 256, 64)

    spectrum = jax.ShapeDtypeStruct((1, frames, 129), jnp.float32)
    program = jax.jit(program)
    exported = export.export(program)(spectrum, spectrum, jax.ShapeDtypeStruct((1, samples), jnp.float32))
    for count in (5, 9):
        inputs = noise(1, 1, count, 129), noise(2, 1, count, 129), noise(3, 1, 100 * count)
        for found, expected in zip(exported.call(*inputs), program(*inputs), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_batch_sharded_transforms_gather_nothing():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def both(audio):
        return istft(*stft(audio, 256, 64), 64)

    audio = jax.ShapeDtypeStruct((16, 2000), jnp.float32, sharding=rows)
    for function in (both, jax.grad(lambda audio: jnp.sum(jnp.abs(both(audio))))):
        text = jax.jit(function, out_shardings=rows).lower(audio).compile().as_text()
        assert not [op for op in ("all-gather", "all-to-all", "collective-permute") if op in text]
        assert "fft" not in text
        assert "scatter(" not in text


@pytest.mark.parametrize("sizes", [(511, 128, 511), (512, 600, 512), (512, 128, 514), (512, 128, 511)])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="must be even"):
        stft(noise(0, 1, 2000), *sizes)
    with pytest.raises(ValueError, match="to be even"):
        stft(noise(0, 1, 2000), 512, 127, padding="same")


def test_rows_too_short_to_be_reflected_are_refused():
    with pytest.raises(ValueError, match="a row of 256 samples cannot be reflected by 256"):
        stft(noise(0, 1, 256), 512, 128)
