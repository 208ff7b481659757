"""Vocoders: the inverse transform against librosa, the context that samples depend on, and streaming."""

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.models.vocoders.hifigan import V1, HifiGan, HifiGanConfig
from jax_speechlm.models.vocoders.streaming import StreamingVocoder
from jax_speechlm.models.vocoders.vocos import Vocos, VocosConfig
from jax_speechlm.nn import functional
from tests.contracts.streaming import verify_streaming

VOCOS = VocosConfig(input_dim=6, dim=8, num_layers=2, kernel_size=3, hop=4, window=16)
GAN = HifiGanConfig(
    input_dim=6,
    dim=16,
    upsample_rates=(4, 2, 2),
    upsample_kernels=(8, 2, 6),
    block_kernels=(3, 5),
    block_dilations=((1, 2), (1,)),
)
MODELS = {"vocos": (VOCOS, functools.partial(Vocos, VOCOS)), "hifigan": (GAN, functools.partial(HifiGan, GAN))}


def maker(name):
    config, make = MODELS[name]
    return config, lambda rngs: make(rngs=rngs)


@functools.cache
def parts(name):
    """The settings, a jitted `(params, mel, lengths) -> audio`, and parameters that are nowhere 0 or 1."""
    config, make = maker(name)
    graphdef, rng = functional.declare(make).graphdef, np.random.default_rng(0)
    params = jax.device_get(functional.init(make, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)
    return config, jax.jit(lambda params, *inputs: functional.bind(graphdef, params)(*inputs)), params


def mels(seed, rows, frames, config):
    values = np.random.default_rng(seed).standard_normal((rows, frames, config.input_dim))
    return jnp.asarray(2 * values - 4, jnp.float32)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (functools.partial(Vocos, VocosConfig()), 1_651_042),
        (functools.partial(HifiGan, HifiGanConfig()), 499_521),
        (functools.partial(HifiGan, V1), 13_926_177),
    ],
)
def test_parameters_are_as_many_as_the_docstring_says(make, count):
    shapes = functional.declare(lambda rngs: make(rngs=rngs)).shapes
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_head_is_librosas_inverse_transform():
    """The frames' spectra, computed by numpy from the hidden states, go through `librosa.istft`."""
    config = VocosConfig(input_dim=5, dim=4, num_layers=1, kernel_size=1, hop=16, window=64)
    module = functional.bind(
        functional.declare(lambda rngs: Vocos(config, rngs=rngs)).graphdef,
        functional.init(lambda rngs: Vocos(config, rngs=rngs), jax.random.key(3)),
    )
    mel, frames, spectra = mels(1, 1, 12, config), 12, []
    linear = module.head

    class Recording:
        def __call__(self, x):
            spectra.append(linear(x))
            return spectra[-1]

    object.__setattr__(module, "head", Recording())
    audio = np.asarray(module(mel, jnp.array([frames])))[0]
    log_magnitude, phase = np.asarray(spectra[0])[0].transpose(1, 0, 2).astype(np.float64)
    spectrum = np.exp(log_magnitude) * np.exp(1j * phase)
    spectrum[:, [0, -1]] = spectrum[:, [0, -1]].real
    expected = librosa.istft(spectrum.T, hop_length=16, n_fft=64, window="hann", center=True)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(audio[: len(expected)], expected, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_samples_depend_on_their_context_exactly(name):
    config, run, params = parts(name)
    before, after = config.context_frames
    frames = before + after + 9
    mel, lengths, reached = mels(0, 1, frames, config), jnp.array([frames]), []
    audio = np.asarray(run(params, mel, lengths)).reshape(frames, config.hop)
    for place in range(frames):
        moved = np.asarray(run(params, mel.at[:, place].add(1), lengths)).reshape(frames, config.hop)
        rows = np.flatnonzero(np.abs(moved - audio).max(axis=1) > 0)
        reached += [(place - row) for row in rows]
    assert (-min(reached), max(reached)) == (before, after)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_several_utterances_are_refused(name):
    config, make = maker(name)
    module = functional.bind(functional.declare(make).graphdef, parts(name)[2])
    with pytest.raises(ValueError, match="one utterance a row"):
        module(mels(0, 1, 4, config), Segments(jnp.zeros((1, 2), int), jnp.ones((1, 2), int)))


@pytest.mark.parametrize("frames", [1, 2, 40])
@pytest.mark.parametrize("name", MODELS)
def test_any_cut_gives_the_samples_of_one_pass(name, frames):
    config, make = maker(name)
    _, run, params = parts(name)
    stream = StreamingVocoder(config, make)
    step = jax.jit(stream.step)
    verify_streaming(
        init=stream.init_state,
        step=functools.partial(step, params),
        finalize=functools.partial(jax.jit(stream.finalize), params),
        full=lambda mel: run(params, mel, jnp.full(len(mel), mel.shape[1])),
        inputs=mels(frames, 2, frames, config),
        delay=stream.delay,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample_kernels": (8, 3, 6)}, "3 taps does not give 2"),
        ({"upsample_kernels": (8, 2)}, "one entry for each transposed"),
        ({"block_kernels": (3, 4)}, "must be odd"),
        ({"block_kernels": (3,)}, "one entry for each residual"),
        ({"dim": 12}, "not divisible"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GAN.replace(**changes)
