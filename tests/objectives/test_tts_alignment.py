"""Alignment of tokens and frames against numpy and scipy by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jax_speechlm.core.segments import Segments
from jax_speechlm.models.tts.aligner import Aligner, AlignerConfig
from jax_speechlm.models.tts.text import pack_text
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts.alignment import (
    BLANK_LOGIT,
    binarisation_loss,
    diagonal_prior,
    forward_sum_loss,
    monotonic_path,
)

FRAMES, TOKENS = 24, 7
# Two rows: three utterances of which one has fewer frames than tokens, and one utterance behind a gap.
SEGMENTS = Segments(jnp.array([[0, 7, 15], [2, 0, 0]]), jnp.array([[6, 3, 9], [20, 0, 0]]))
LENGTHS = jnp.array([[4, 5, 7], [6, 0, 0]])
PATH, PRIOR, FORWARD_SUM = (
    jax.jit(monotonic_path),
    jax.jit(diagonal_prior, static_argnums=(2, 3)),
    jax.jit(forward_sum_loss),
)


def utterances():
    for row, utterance in ((0, 0), (0, 2), (1, 0)):
        start, length = int(SEGMENTS.start[row, utterance]), int(SEGMENTS.length[row, utterance])
        yield row, utterance, slice(start, start + length), int(LENGTHS[row, utterance])


def log_probabilities(seed):
    x = np.random.default_rng(seed).standard_normal((2, FRAMES, TOKENS)) * 3
    mask = np.zeros((2, FRAMES, TOKENS), bool)
    for row, _, frames, tokens in utterances():
        mask[row, frames, :tokens] = True
    return np.where(mask, x, -1e9).astype(np.float32)


def best_path(log_p):
    """Returns the best path of one utterance by dynamic programming, [frames, tokens] -> [frames]."""
    frames, tokens = log_p.shape
    score = np.full((frames, tokens), -np.inf)
    score[0, 0] = log_p[0, 0]
    for t, u in itertools.product(range(1, frames), range(tokens)):
        score[t, u] = log_p[t, u] + max(score[t - 1, u], score[t - 1, u - 1] if u else -np.inf)
    path = [tokens - 1]
    for t in range(frames - 1, 0, -1):
        u = path[-1]
        path.append(u - 1 if u and score[t - 1, u - 1] > score[t - 1, u] else u)
    return np.array(path[::-1])


@given(seed=st.integers(0, 1000))
def test_path_is_the_best_of_all_monotonic_ones(seed):
    log_p = log_probabilities(seed)
    path = np.asarray(PATH(log_p, SEGMENTS, LENGTHS))
    for row, _, frames, tokens in utterances():
        found, expected = path[row, frames], best_path(log_p[row, frames, :tokens].astype(np.float64))
        assert found[0] == 0
        assert found[-1] == tokens - 1
        assert set(np.diff(found)) <= {0, 1}
        at = np.arange(len(found))
        np.testing.assert_allclose(
            log_p[row, frames][at, found].sum(), log_p[row, frames][at, expected].sum(), rtol=1e-5
        )
    assert (path[1, :2] == -1).all()
    assert (path[1, 22:] == -1).all()
    assert path[0, 6] == -1


def test_prior_is_the_beta_binomial_distribution():
    prior = np.asarray(PRIOR(LENGTHS, SEGMENTS, TOKENS, FRAMES))
    for row, _, frames, tokens in utterances():
        length = frames.stop - frames.start
        for t in range(1, length + 1):
            expected = scipy.stats.betabinom(tokens - 1, t, length + 1 - t).logpmf(np.arange(tokens))
            np.testing.assert_allclose(prior[row, frames.start + t - 1, :tokens], expected, atol=1e-4)
            assert (prior[row, frames.start + t - 1, tokens:] < -1e8).all()


def test_forward_sum_is_the_sum_over_all_alignments():
    log_p = log_probabilities(3)
    losses, feasible = FORWARD_SUM(log_p, SEGMENTS, LENGTHS)
    np.testing.assert_array_equal(feasible, [[True, False, True], [True, False, False]])
    assert not losses[0, 1]
    row, utterance, frames, tokens = next(utterances())  # 6 frames, 4 tokens
    logits = np.concatenate([np.full((6, 1), BLANK_LOGIT), log_p[row, frames, :tokens]], axis=1)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    total = 0.0
    for symbols in itertools.product(range(tokens + 1), repeat=6):
        collapsed = [symbol for symbol, _ in itertools.groupby(symbols) if symbol]
        if collapsed == [1, 2, 3, 4]:
            total += np.prod(p[np.arange(6), symbols])
    np.testing.assert_allclose(losses[row, utterance], -np.log(total), rtol=1e-4)


def test_binarisation_is_the_cross_entropy_of_the_path():
    log_p = log_probabilities(4)
    path = PATH(log_p, SEGMENTS, LENGTHS)
    loss = np.asarray(binarisation_loss(jnp.asarray(log_p), path))
    for row, _, frames, tokens in utterances():
        x = log_p[row, frames, :tokens].astype(np.float64)
        normalised = x - np.log(np.exp(x).sum(1, keepdims=True))
        found = np.asarray(path[row, frames])
        np.testing.assert_allclose(loss[row, frames], -normalised[np.arange(len(found)), found], atol=1e-4)
    assert not loss[1, :2].any()


@pytest.mark.slow
def test_an_aligner_finds_the_durations_of_noise_by_symbol():
    """Every token has a mel vector of its own; frames are that vector in noise, for a random number of frames."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9, 12)) - 2
    make = lambda rngs: Aligner(AlignerConfig(dim=16, text_dim=16), 9, 12, rngs=rngs)  # noqa: E731
    params, graphdef = functional.init(make, jax.random.key(0)), functional.declare(make).graphdef

    def draw():
        tokens, durations = rng.integers(1, 9, (8, 6)), rng.integers(1, 7, (8, 6))
        mel, expected, lengths = np.zeros((8, 40, 12)), np.full((8, 40), -1), durations.sum(1)
        for row in range(8):
            expected[row, : lengths[row]] = np.repeat(np.arange(6), durations[row])
            mel[row, : lengths[row]] = vectors[np.repeat(tokens[row], durations[row])]
        mel += 0.1 * rng.standard_normal(mel.shape)
        return jnp.asarray(tokens[:, None]), jnp.asarray(mel, jnp.float32), jnp.asarray(lengths), expected

    def log_p(params, tokens, mel, lengths):
        segments, count = Segments.of(lengths), jnp.full((8, 1), 6)
        scores = functional.bind(graphdef, params)(pack_text(tokens, count, 6), mel, segments, 6)
        return scores + diagonal_prior(count, segments, 6, 40), segments, count

    @jax.jit
    def step(params, tokens, mel, lengths):
        def loss(params):
            return forward_sum_loss(*log_p(params, tokens, mel, lengths))[0].mean()

        return jax.tree.map(lambda p, g: p - 0.03 * jnp.sign(g), params, jax.grad(loss)(params))

    for _ in range(150):
        tokens, mel, lengths, _ = draw()
        params = step(params, tokens, mel, lengths)
    tokens, mel, lengths, expected = draw()
    path = np.asarray(PATH(*log_p(params, tokens, mel, lengths)))
    inside = expected >= 0
    assert (path == expected)[inside].mean() > 0.95
