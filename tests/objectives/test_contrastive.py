"""The contrastive task: quantizer, negatives, losses, against plain loops and the promises that they make."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.core.batch import example_keys
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import fold_in
from jax_speechlm.nn.vector_quantizer import GumbelQuantizer
from jax_speechlm.objectives.ssl.contrastive import contrastive_loss, diversity_loss, draw_negatives
from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2


@functools.cache
def quantizer():
    def make(rngs):
        return GumbelQuantizer(6, 2, 5, 8, rngs=rngs)

    return functional.declare(make).graphdef, functional.init(make, jax.random.key(0))


def frame_keys(seed: int):
    return jax.random.split(jax.random.key(seed), (2, 7))


def quantize(params, x, keys=None, temperature=1.0):
    return functional.bind(quantizer()[0], params)(x, keys, temperature)


@pytest.mark.parametrize("noisy", [False, True])
def test_a_frame_gets_the_vectors_of_one_code_a_group(noisy):
    params, x = quantizer()[1], jax.random.normal(jax.random.key(1), (2, 7, 6))
    keys = frame_keys(3) if noisy else None
    found = quantize(params, x, keys, 0.7)
    logits = np.einsum("btd,dgc->btgc", x, params["logits"]["kernel"]) + np.asarray(params["logits"]["bias"])
    likeliest = logits.argmax(-1)
    if noisy:
        logits = logits + np.asarray(jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (2, 5))))(keys))
        assert (logits.argmax(-1) != likeliest).any()
    codes = logits.argmax(-1)
    np.testing.assert_array_equal(found.codes, codes)
    codebook = np.asarray(params["codebook"])
    for b, t in np.ndindex(2, 7):
        vector = np.concatenate([codebook[g, codes[b, t, g]] for g in range(2)])
        np.testing.assert_array_equal(found.vectors[b, t], vector)
    np.testing.assert_allclose(found.probs.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.probs.argmax(-1), likeliest)  # without noise


def test_gradients_go_through_the_softmax_at_its_temperature():
    params, x, keys = quantizer()[1], jax.random.normal(jax.random.key(1), (2, 7, 6)), frame_keys(3)
    weight = jax.random.normal(jax.random.key(2), (2, 7, 8))

    def soft(kernel):
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (2, 5))))(keys)
        logits = jnp.einsum("btd,dgc->btgc", x, kernel) + params["logits"]["bias"] + noise
        mixed = jnp.einsum("btgc,gcd->btgd", jax.nn.softmax(logits / 0.7), params["codebook"])
        return jnp.sum(mixed.reshape(2, 7, 8) * weight)

    def hard(params):
        return jnp.sum(quantize(params, x, keys, 0.7).vectors * weight)

    gradient = jax.grad(hard)(params)
    np.testing.assert_allclose(
        gradient["logits"]["kernel"], jax.grad(soft)(params["logits"]["kernel"]), rtol=1e-4, atol=1e-5
    )
    codes, expected = quantize(params, x, keys).codes, np.zeros((2, 5, 4))
    for b, t, g in np.ndindex(2, 7, 2):
        expected[g, codes[b, t, g]] += weight[b, t, 4 * g : 4 * g + 4]
    np.testing.assert_allclose(gradient["codebook"], expected, rtol=1e-5, atol=1e-5)


@functools.cache
def negatives(size: int, own: bool):
    """Returns a function that draws for all places of rows that hold the masked frames of two utterances each."""

    def draw(seed, num):
        place, first = jnp.arange(size), jnp.zeros((2, 1), jnp.int32)
        second = place >= num[:, :1]
        rank = jnp.where(second, place - num[:, :1], place)
        utterance_keys = example_keys(jax.random.key(seed), jnp.arange(4).reshape(2, 2))
        keys = fold_in(jnp.where(second, utterance_keys[:, 1:], utterance_keys[:, :1]), rank)
        first, count = jnp.where(second, num[:, :1], 0), jnp.where(second, num[:, 1:], num[:, :1])
        return draw_negatives(keys, first, count, rank if own else None, size, 20)

    return jax.jit(draw)


@settings(max_examples=40)
@given(seed=st.integers(0, 999), num=st.lists(st.integers(0, 6), min_size=4, max_size=4), own=st.booleans())
def test_negatives_are_other_masked_frames_of_the_utterance_whatever_the_padding(seed, num, own):
    num = np.array(num).reshape(2, 2)
    count = np.asarray(negatives(12, own)(seed, jnp.array(num)))
    np.testing.assert_array_equal(count, negatives(17, own)(seed, jnp.array(num))[:, :12, :12])
    for row, (one, two) in zip(count, num, strict=True):
        for first, masked in ((0, one), (one, two)):
            part = row[first : first + masked]
            assert part.sum() == part[:, first : first + masked].sum()
            if own:
                assert not np.diag(part[:, first:]).any()
            np.testing.assert_array_equal(part.sum(-1), 20 * (masked > own))


def test_every_other_frame_is_drawn_as_often():
    keys = jax.random.split(jax.random.key(0), (500, 5))
    first, num, rank = jnp.zeros((500, 5), int), jnp.full((500, 5), 5), jnp.tile(jnp.arange(5), (500, 1))
    count = np.asarray(draw_negatives(keys, first, num, rank, 5, 20)).sum(0)
    assert (np.abs(count[~np.eye(5, dtype=bool)] / (500 * 20) - 0.25) < 0.02).all()


def test_loss_equals_a_loop_over_drawn_negatives():
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2, 4, 3)).astype(np.float32)
    context = (own + rng.normal(size=(2, 4, 3))).astype(np.float32)
    pool = rng.normal(size=(2, 6, 3)).astype(np.float32)
    own_codes, pool_codes = rng.integers(0, 2, (2, 4, 2)), rng.integers(0, 2, (2, 6, 2))
    drawn = rng.integers(0, 6, (2, 4, 9))
    count = np.stack([[np.bincount(frame, minlength=6) for frame in row] for row in drawn]).astype(np.float32)
    assert (own_codes[:, :, None] == pool_codes[:, None]).all(-1).any()  # some negatives are the frame's own target

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 0.1

    loss, right = np.zeros((2, 4)), np.zeros((2, 4), bool)
    for b, m in np.ndindex(2, 4):
        positive = cosine(context[b, m], own[b, m])
        differ = [n for n in drawn[b, m] if (own_codes[b, m] != pool_codes[b, n]).any()]
        others = [cosine(context[b, m], pool[b, n]) for n in differ]
        loss[b, m] = -np.log(np.exp(positive) / np.exp([positive, *others]).sum())
        right[b, m] = bool(others) and positive > max(others)
    found = contrastive_loss(
        *jax.tree.map(jnp.asarray, (context, (own, own_codes), (pool, pool_codes), count)), temperature=0.1
    )
    np.testing.assert_allclose(found[0], loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[1], right)
    assert 0 < right.sum() < 8


def test_diversity_is_the_share_of_codes_that_stay_unused():
    weight = jnp.array([[1.0, 1.0, 0.0]])
    each = jax.nn.one_hot(jnp.array([[[0, 1], [1, 1], [2, 2]]]), 4)  # the third frame is padding
    np.testing.assert_allclose(diversity_loss(each, weight), 1 - (2 + 1) / 8, rtol=1e-5)
    np.testing.assert_allclose(diversity_loss(jnp.full((1, 3, 2, 4), 0.25), weight), 0, atol=1e-6)
    gradient = jax.grad(lambda logits: diversity_loss(jax.nn.softmax(logits), weight))(300 * each)
    assert np.isfinite(gradient).all()  # although some probabilities have underflown to 0


def test_the_temperature_falls_by_its_factor_to_its_floor():
    config = Wav2Vec2(gumbel_temperature=(2.0, 0.5), gumbel_decay=0.9)
    for step in (0, 1, 10, 13, 14, 1000):
        np.testing.assert_allclose(config.temperature_at(jnp.int32(step)), max(2 * 0.9**step, 0.5), rtol=1e-5)


def test_groups_must_share_the_dimension():
    with pytest.raises(ValueError, match=r"code_dim \(255\) must be a multiple of groups \(2\)"):
        Wav2Vec2(code_dim=255)
