"""Transducer losses against the enumeration of alignments and a float64 forward algorithm; the chunked form of packed
rows against the plain form."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.core.segments import Segments
from jax_speechlm.objectives.asr.transducer_loss import is_feasible, packed_transducer_loss, transducer_loss

VOCAB, FRAMES, TOKENS = 4, 9, 5
DURATIONS = {"rnnt": (), "tdt": (0, 1, 2, 3, 4), "no duration 0": (1, 2)}
SIGMA = {"rnnt": 0.0, "tdt": 0.05, "no duration 0": 0.0}


@functools.cache
def compiled(kind: str):
    """Losses, feasibility, and the gradient of the sum of losses by the logits."""

    def run(logits, *rest):
        losses, feasible = transducer_loss(logits, *rest, durations=DURATIONS[kind], sigma=SIGMA[kind])
        return losses.sum(), (losses, feasible)

    def with_gradient(logits, *rest):
        (_, result), gradient = jax.value_and_grad(run, has_aux=True)(logits, *rest)
        return *result, gradient

    return jax.jit(with_gradient)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def log_probs_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """Log-probabilities of tokens and, if there are any, of durations."""
    durations = log_softmax(logits[..., VOCAB:]) if DURATIONS[kind] else logits[..., VOCAB:]
    return np.concatenate([log_softmax(logits[..., :VOCAB]) - SIGMA[kind], durations], axis=-1)


def arcs(kind: str, is_token: bool) -> list[tuple[int, int | None]]:
    """Durations of an arc with the column of each."""
    if not DURATIONS[kind]:
        return [(0 if is_token else 1, None)]
    return [(d, VOCAB + i) for i, d in enumerate(DURATIONS[kind]) if is_token or d]


def paths(log_p: np.ndarray, tokens: tuple[int, ...], kind: str, t: int = 0, u: int = 0) -> Iterator[float]:
    """The log-probability of every alignment, one by one."""
    for is_token in (False, True):
        if is_token and u == len(tokens):
            continue
        for d, column in arcs(kind, is_token):
            here = log_p[t, u, tokens[u] if is_token else 0] + (0 if column is None else log_p[t, u, column])
            if t + d < len(log_p):
                yield from (here + rest for rest in paths(log_p, tokens, kind, t + d, u + is_token))
            elif t + d == len(log_p) and u == len(tokens) and not is_token:
                yield here


def forward_loss(log_p: np.ndarray, tokens: np.ndarray, kind: str) -> float:
    """Minus the log-likelihood, by the forward algorithm in float64."""
    num_frames, places = len(log_p), len(tokens) + 1
    alpha = np.full((num_frames + 1, places), -np.inf)
    alpha[0, 0] = 0.0
    for t in range(num_frames):
        for u in range(places):
            for is_token in (False, True):
                if is_token and u == len(tokens):
                    continue
                for d, column in arcs(kind, is_token):
                    if t + d > num_frames - is_token:
                        continue
                    here = log_p[t, u, tokens[u] if is_token else 0] + (0 if column is None else log_p[t, u, column])
                    alpha[t + d, u + is_token] = np.logaddexp(alpha[t + d, u + is_token], alpha[t, u] + here)
    return -alpha[-1, -1]


def padded(logits: np.ndarray, tokens: np.ndarray):
    """A batch of one row with padding of junk, of the shape of all tests."""
    rows = np.full((1, FRAMES, TOKENS + 1, logits.shape[-1]), 50.0, np.float32)
    rows[0, : len(logits), : logits.shape[1]] = logits
    ids = np.full((1, TOKENS), 1, np.int32)
    ids[0, : len(tokens)] = tokens
    return rows, np.array([len(logits)]), ids, np.array([len(tokens)])


def draw(seed: int, num_frames: int, num_tokens: int, kind: str, scale: float = 2.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (num_frames, num_tokens + 1, VOCAB + len(DURATIONS[kind]))).astype(np.float32)
    return logits, rng.integers(1, VOCAB, num_tokens)


@pytest.mark.parametrize("kind", DURATIONS)
@settings(max_examples=30)
@given(num_frames=st.integers(1, 5), num_tokens=st.integers(0, 4), seed=st.integers(0, 999))
def test_equals_the_sum_over_all_alignments(kind, num_frames, num_tokens, seed):
    logits, tokens = draw(seed, num_frames, num_tokens, kind)
    every = list(paths(log_probs_of(logits, kind), tuple(tokens), kind))
    loss, feasible, _ = compiled(kind)(*padded(logits, tokens))
    assert bool(feasible[0]) == bool(every)
    np.testing.assert_allclose(loss[0], -np.logaddexp.reduce(every) if every else 0.0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", DURATIONS)
@settings(max_examples=4)
@given(num_frames=st.integers(1, FRAMES), num_tokens=st.integers(0, TOKENS), seed=st.integers(0, 999))
def test_gradients_are_those_of_the_forward_algorithm(kind, num_frames, num_tokens, seed):
    logits, tokens = draw(seed, num_frames, num_tokens, kind)
    losses, feasible, gradient = compiled(kind)(*padded(logits, tokens))
    logits, step = logits.astype(np.float64), 1e-4
    if not feasible[0]:
        assert not gradient.any()
        return
    np.testing.assert_allclose(losses[0], forward_loss(log_probs_of(logits, kind), tokens, kind), rtol=1e-5)
    expected = np.zeros_like(gradient[0])
    for place in np.ndindex(logits.shape):
        either = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            either.append(forward_loss(log_probs_of(moved, kind), tokens, kind))
        expected[place] = (either[0] - either[1]) / (2 * step)
    np.testing.assert_allclose(gradient[0], expected, atol=2e-6)


def test_a_long_utterance_loses_no_precision():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(0, 1, (300, 41, VOCAB)).astype(np.float32), rng.integers(1, VOCAB, 40)
    losses, _, gradient = compiled("rnnt")(logits[None], np.array([300]), tokens[None], np.array([40]))
    np.testing.assert_allclose(losses[0], forward_loss(log_softmax(logits), tokens, "rnnt"), rtol=3e-7)
    # Every path has one arc on each of 340 diagonals: those probabilities add up to 1 on each.
    passed = np.abs(np.asarray(gradient[0], np.float64)).sum()
    assert 0 < passed < 2 * 340


@pytest.mark.parametrize("kind", DURATIONS)
@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, FRAMES), min_size=4, max_size=4),
    token_lengths=st.lists(st.integers(0, TOKENS), min_size=4, max_size=4),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 999),
)
def test_is_never_negative_and_never_nan(kind, lengths, token_lengths, scale, seed):
    rng = np.random.default_rng(seed)
    shape = 4, FRAMES, TOKENS + 1, VOCAB + len(DURATIONS[kind])
    logits = (scale * rng.standard_normal(shape)).astype(np.float32)
    tokens, lengths, token_lengths = rng.integers(1, VOCAB, (4, TOKENS)), np.array(lengths), np.array(token_lengths)
    losses, feasible, gradient = compiled(kind)(logits, lengths, tokens, token_lengths)
    assert np.isfinite(losses).all()
    assert (np.asarray(losses) >= 0).all()
    assert np.isfinite(gradient).all()
    least = np.where(kind == "no duration 0", token_lengths + 1, 1)
    np.testing.assert_array_equal(feasible, lengths >= least)
    for row in range(4):
        learnt = np.abs(gradient[row]).max(axis=(1, 2)) > 0
        assert not learnt[lengths[row] :].any()
        assert feasible[row] or (losses[row] == 0 and not learnt.any())


def network(kind: str, dim: int = 6):
    """Outputs of encoder and predictor for five utterances, one of them empty, and an output layer."""
    rng = np.random.default_rng(3)
    width = VOCAB + len(DURATIONS[kind])
    arrays = {"encoder": (5, FRAMES, dim), "predictor": (5, TOKENS + 1, dim), "kernel": (dim, width), "bias": (width,)}
    params = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in arrays.items()}
    tokens = rng.integers(1, VOCAB, (5, TOKENS))
    return params, np.array([9, 4, 0, 6, 7]), tokens, np.array([5, 2, 3, 0, 4])


@pytest.mark.parametrize("kind", DURATIONS)
def test_packed_rows_without_logits_of_all_nodes_equal_the_plain_form(kind):
    params, lengths, tokens, token_lengths = network(kind)
    options = {"durations": DURATIONS[kind], "sigma": SIGMA[kind]}

    def plain(params):
        hidden = jnp.tanh(params["encoder"][:, :, None] + params["predictor"][:, None])
        losses, feasible = transducer_loss(
            hidden @ params["kernel"] + params["bias"], lengths, tokens, token_lengths, **options
        )
        return losses.sum(), (losses, feasible)

    rows = np.array([[0, 1], [3, 4], [2, -1]])  # the utterances of three packed rows; one has room that is not used
    row_lengths = np.where(rows < 0, 0, lengths[rows])
    segments = Segments(np.array([[0, 10], [1, 9], [0, 0]]), row_lengths)

    def packed(params, chunk):
        encoder = jnp.full((3, 20, 6), 7.0)
        for row, column in np.argwhere(rows >= 0):
            number, start, length = rows[row, column], segments.start[row, column], row_lengths[row, column]
            encoder = encoder.at[row, start : start + length].set(params["encoder"][number, :length])
        losses, feasible = packed_transducer_loss(
            encoder, params["predictor"][rows], params["kernel"], params["bias"], segments.segment(20), tokens[rows],
            token_lengths[rows], chunk=chunk, **options,
        )  # fmt: skip
        return losses.sum(), (losses, feasible)

    (_, (losses, feasible)), gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    for chunk in (None, 7):
        result = jax.jit(jax.value_and_grad(functools.partial(packed, chunk=chunk), has_aux=True))(params)
        (_, (packed_losses, packed_feasible)), packed_gradient = result
        np.testing.assert_allclose(packed_losses[rows >= 0], losses[rows[rows >= 0]], rtol=2e-6)
        np.testing.assert_array_equal(packed_feasible[rows >= 0], feasible[rows[rows >= 0]])
        assert not packed_losses[2, 1]
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=3e-6), packed_gradient, gradient
        )


def test_no_array_has_the_logits_of_all_nodes():
    batch, frames, places, vocab = 2, 512, 17, 300
    shapes = [(batch, frames, 8), (batch, 1, places, 8), (8, vocab), (vocab,)]
    ints = [(batch, frames), (batch, 1, places - 1), (batch, 1)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    arguments += [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ints]

    def loss(*arguments):
        return packed_transducer_loss(*arguments, chunk=16)[0].sum()

    memory = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < batch * frames * places * vocab * 4 / 4


def test_the_file_needs_jax_alone():
    nodes = list(ast.walk(ast.parse(Path(sys.modules[transducer_loss.__module__].__file__).read_text())))
    names = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} == {"jax", "numpy", "collections", "functools"}


def test_durations_that_cannot_work_are_refused():
    for durations in ((0, 2), (0, 1, 1), (-1, 1)):
        with pytest.raises(ValueError, match="1 among them"):
            transducer_loss(
                jnp.zeros((1, 3, 2, 7)), jnp.array([3]), jnp.array([[1]]), jnp.array([1]), durations=durations
            )
    assert is_feasible(np.array([2, 3]), np.array([2, 2]), (1, 2)).tolist() == [False, True]
