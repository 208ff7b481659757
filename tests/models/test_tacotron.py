"""Tacotron: attention by numpy, and generation as the fixed point of teacher forcing."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_speechlm.core.segments import Segments
from jax_speechlm.models.tts.tacotron import LocationAttention, Memory, Tacotron, TacotronConfig
from jax_speechlm.nn import functional
from tests.contracts.models import TACOTRON, VOCAB

MAKE = lambda rngs: Tacotron(TACOTRON, VOCAB, 2, rngs=rngs)  # noqa: E731
GRAPHDEF = functional.declare(MAKE).graphdef


def params_of(stop_bias):
    params = jax.device_get(functional.init(MAKE, jax.random.key(1)))
    last = params["postnet"]["layers"]["layer2"]["convolution"]
    last["kernel"] = np.zeros_like(last["kernel"])  # so that the postnet is the identity
    stop = params["stop"]
    return params | {"stop": {"kernel": 40 * stop["kernel"], "bias": stop["bias"] + np.float32(stop_bias)}}


@jax.jit
def generate(params, tokens, length, keys, speaker):
    return functional.bind(GRAPHDEF, params).generate(tokens, length, 12, keys, speaker)


@jax.jit
def force(params, tokens, length, mel, mel_length, keys, speaker):
    module = functional.bind(GRAPHDEF, params)
    memory = module.encode(tokens, Segments.of(length), speaker[:, None])
    return module.decode(memory, mel, Segments.of(mel_length), keys[:, None])


def test_attention_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    make = lambda rngs: LocationAttention(TACOTRON, rngs=rngs)  # noqa: E731
    params = jax.device_get(functional.init(make, jax.random.key(0)))
    query, total = rng.standard_normal((2, 7)).astype(np.float32), rng.random((2, 6)).astype(np.float32)
    hidden = rng.standard_normal((2, 6, 8)).astype(np.float32)
    keys = hidden @ params["key"]["kernel"]
    length = [6, 4]
    visible = np.arange(6) < np.array(length)[:, None]
    total, weights = np.where(visible, total, 0), np.where(visible, rng.random((2, 6)), 0).astype(np.float32)
    memory = Memory(jnp.asarray(hidden), jnp.asarray(keys), jnp.asarray(visible, jnp.int32))
    module = functional.bind(functional.declare(make).graphdef, params)
    actual = np.asarray(module(jnp.asarray(query), memory, *map(jnp.asarray, (visible, weights, total))))

    for row, count in enumerate(length):
        scores = []
        for token in range(count):
            x = query[row] @ params["query"]["kernel"] + params["query"]["bias"] + keys[row, token]
            for tap in range(3):
                place = token + tap - 1
                if 0 <= place < count:
                    before = np.array([weights[row, place], total[row, place]])
                    x = x + before @ params["location"]["kernel"][tap]
            scores.append(float(np.tanh(x) @ params["score"]["kernel"][:, 0]))
        expected = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(actual[row, :count], expected, atol=1e-5)
        assert not actual[row, count:].any()


def test_generated_frames_are_those_that_the_model_predicts_from_them():
    rng = np.random.default_rng(0)
    lengths = np.array([5, 8, 2], np.int32)
    tokens = rng.integers(1, VOCAB, (3, 8)).astype(np.int32)
    keys, speaker = jax.random.split(jax.random.key(2), 3), np.array([0, 1, -1], np.int32)
    endless = generate(params_of(-1e6), tokens, lengths, keys, speaker)
    logits = np.asarray(force(params_of(0), tokens, lengths, endless.mel, endless.length, keys, speaker).stop)

    def ends(threshold):
        return np.where((logits > threshold).any(1), (logits > threshold).argmax(1) + 1, 12)

    order = np.sort(logits.ravel())
    gaps = np.diff(order)
    threshold = max(
        zip(order + np.append(gaps, 0) / 2, gaps, strict=False), key=lambda x: (len(set(ends(x[0]))), x[1])
    )[0]
    params = params_of(-threshold)
    made = jax.device_get(generate(params, tokens, lengths, keys, speaker))
    np.testing.assert_array_equal(made.length, TACOTRON.reduction * ends(threshold))
    assert len(set(made.length.tolist())) > 1
    forced = jax.device_get(force(params, tokens, lengths, made.mel, made.length, keys, speaker))
    np.testing.assert_allclose(forced.before, made.mel, atol=1e-4)
    for row, length in enumerate(made.length):
        steps = length // TACOTRON.reduction
        stops = forced.stop[row, :steps] > 0
        assert not stops[:-1].any()
        assert stops[-1] or steps == 12
        np.testing.assert_array_equal(forced.weights[row, :steps].argmax(-1), made.token[row, :steps])

    alone = jax.device_get(generate(params, tokens[2:, :2], lengths[2:], keys[2:], speaker[2:]))  # without padding
    assert alone.length[0] == made.length[2]
    np.testing.assert_allclose(alone.mel[0], made.mel[2], atol=1e-4)


def test_generation_ends_at_the_bound():
    tokens, length, keys = np.ones((3, 8), np.int32), np.full(3, 8, np.int32), jax.random.split(jax.random.key(2), 3)
    for bias, steps in ((-1e6, 12), (1e6, 1)):
        made = generate(params_of(bias), tokens, length, keys, np.zeros(3, np.int32))
        np.testing.assert_array_equal(made.length, steps * TACOTRON.reduction)


def test_number_of_parameters_is_as_documented():
    shapes = functional.declare(lambda rngs: Tacotron(TacotronConfig(), 40, rngs=rngs)).shapes
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 1) == 5.6
