"""WaveNet: distributions against formulae and scipy, and the incremental form against the full pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import logistic

from jax_speechlm.models.vocoders.sample_distributions import Logistics, MuLaw
from jax_speechlm.models.vocoders.wavenet import WaveNet, WaveNetConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import fold_in
from tests.contracts.streaming import verify_streaming

CONFIG = WaveNetConfig(
    input_dim=6, dim=8, skip_dim=6, num_layers=5, cycle=3, mel_dim=5, hop=4, output=MuLaw(classes=16)
)
OUTPUTS = {"mu_law": CONFIG, "logistics": CONFIG.replace(output=Logistics(mixtures=2))}


def make(config):
    return lambda rngs: WaveNet(config, rngs=rngs)


@functools.cache
def params_of(config):
    """Parameters that are nowhere 0 or 1."""
    params = jax.device_get(functional.init(make(config), jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape, np.float32), params)


def run(config, method, *args):
    graphdef = functional.declare(make(config)).graphdef
    return jax.jit(lambda params, *args: getattr(functional.bind(graphdef, params), method)(*args))(
        params_of(config), *args
    )


def inputs(rows, frames, config=CONFIG):
    rng = np.random.default_rng(frames)
    mel = 2 * rng.standard_normal((rows, frames, config.input_dim)) - 4
    audio = rng.uniform(-1, 1, (rows, frames * config.hop))
    return jnp.asarray(mel, jnp.float32), jnp.asarray(audio, jnp.float32), jnp.full(rows, frames)


@pytest.mark.parametrize("name", OUTPUTS)
def test_any_cut_gives_the_distributions_of_one_pass(name):
    config, frames = OUTPUTS[name], 9
    mel, audio, lengths = inputs(2, frames)
    vectors = run(config, "conditioning", mel, lengths)
    frames_of = jnp.concatenate([vectors, audio.reshape(2, frames, config.hop)], axis=-1)
    graphdef = functional.declare(make(config)).graphdef

    @jax.jit
    def step(state, piece):
        module = functional.bind(graphdef, params_of(config))
        return module.step(state, piece[..., : config.mel_dim], piece[..., config.mel_dim :].reshape(len(piece), -1))

    verify_streaming(
        init=functional.bind(graphdef, params_of(config)).init_state,
        step=step,
        finalize=lambda state: np.zeros((2, 0, config.output.size)),
        full=lambda _: run(config, "outputs", mel, lengths, audio),
        inputs=np.asarray(frames_of),
    )


@pytest.mark.parametrize("name", OUTPUTS)
def test_generated_samples_are_drawn_from_the_distributions_of_one_pass(name):
    config = OUTPUTS[name]
    mel, _, lengths = inputs(2, 6)
    key = jax.random.key(5)
    audio = run(config, "__call__", mel, lengths, key)
    assert len(np.unique(audio)) > 8
    outputs = run(config, "outputs", mel, lengths, audio)
    for place in range(audio.shape[1]):
        keys = fold_in(jnp.broadcast_to(key, (2,)), jnp.full(2, place))
        np.testing.assert_allclose(config.output.draw(outputs[:, place], keys), audio[:, place], atol=1e-4)


def test_a_waveform_depends_neither_on_other_rows_nor_on_padding():
    mel, _, _ = inputs(2, 6)
    together = run(CONFIG, "__call__", mel, jnp.array([6, 4]))
    assert not together[1, 16:].any()
    alone = run(CONFIG, "__call__", jnp.pad(mel[1:], ((0, 0), (0, 3), (0, 0)), constant_values=9), jnp.array([4]))
    np.testing.assert_allclose(alone[0, :16], together[1, :16], atol=1e-5)


def test_the_receptive_field_is_as_long_as_the_config_says():
    mel, audio, lengths = inputs(6, 12)
    outputs = run(CONFIG, "outputs", mel, lengths, audio)
    moved = run(CONFIG, "outputs", mel, lengths, audio.at[:, 5].add(0.9))
    reached = np.flatnonzero(np.abs(moved - outputs).max(axis=(0, 2)))
    assert (reached.min(), reached.max()) == (6, 5 + CONFIG.receptive_field)


def test_mu_law_is_its_formula():
    law = MuLaw(classes=256)
    x = np.linspace(-1, 1, 1001)
    companded = np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)
    classes = np.asarray(law.encode(jnp.asarray(x, jnp.float32)))
    assert np.abs(classes - np.floor((companded + 1) / 2 * 255 + 0.5)).max() <= 1
    assert (classes[0], classes[-1]) == (0, 255)
    np.testing.assert_array_equal(law.encode(law.decode(jnp.arange(256))), np.arange(256))
    outputs = np.random.default_rng(0).standard_normal((7, 256))
    log_probs = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    samples = jnp.asarray(x[:7], jnp.float32)
    expected = -log_probs[np.arange(7), np.asarray(law.encode(samples))]
    np.testing.assert_allclose(law.nll(jnp.asarray(outputs, jnp.float32), samples), expected, rtol=1e-5)


def test_the_likelihood_of_logistics_is_scipys_and_sums_to_one():
    mixture = Logistics(mixtures=3)
    output = np.array([0.3, -0.5, 0.1, -0.6, 0.1, 0.99, -2.0, -3.0, -4.0])
    values = np.arange(-32_768, 32_768) / 32_768  # every sample of 16 bits
    shape = (len(values), len(output))
    nll = mixture.nll(jnp.broadcast_to(jnp.asarray(output, jnp.float32), shape), jnp.asarray(values, jnp.float32))
    weights, scales = np.exp(output[:3]) / np.exp(output[:3]).sum(), np.exp(output[6:])
    edges = [np.where(values <= values[0], -np.inf, values - 1 / 65_536)]
    edges.append(np.where(values >= values[-1], np.inf, values + 1 / 65_536))
    below, above = ([logistic.cdf(edge[:, None], output[3:6], scales)] for edge in edges)
    expected = ((above[0] - below[0]) * weights).sum(-1)
    np.testing.assert_allclose(np.exp(-np.asarray(nll, np.float64)), expected, rtol=2e-2, atol=1e-12)
    assert np.exp(-np.asarray(nll, np.float64)).sum() == pytest.approx(1, abs=1e-3)


def test_draws_of_logistics_have_the_mean_and_spread_of_the_mixture():
    mixture, count = Logistics(mixtures=2), 4000
    output = jnp.broadcast_to(jnp.array([0.0, -20.0, 0.2, -0.9, -3.0, -3.0]), (count, 6))
    drawn = np.asarray(mixture.draw(output, jax.random.split(jax.random.key(0), count)))
    assert drawn.mean() == pytest.approx(0.2, abs=0.01)
    assert drawn.std() == pytest.approx(np.exp(-3) * np.pi / 3**0.5, rel=0.06)


def test_gradients_of_likelihoods_are_finite_everywhere():
    samples = jnp.array([-1.0, -0.99999, 0.0, 0.5, 0.99997, 1.0])
    for output in (MuLaw(classes=4), Logistics(mixtures=2)):
        for scale in (0.0, 3.0, 50.0):
            values = scale * jax.random.normal(jax.random.key(0), (6, output.size))
            gradient = jax.grad(lambda values, output=output: output.nll(values, samples).sum())(values)
            assert np.isfinite(gradient).all()
