"""Spans of rows are moved as written out with numpy, and their gradients moved back."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.core.segments import Segments, move, moved_from


@st.composite
def spans(draw):
    """(source, target, frames before, frames after): spans of equal lengths with random gaps."""
    rows, num = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    length = np.array(draw(st.lists(st.integers(0, 5), min_size=rows * num, max_size=rows * num))).reshape(rows, num)

    def lay():
        gaps = draw(st.lists(st.integers(0, 3), min_size=rows * (num + 1), max_size=rows * (num + 1)))
        gaps = np.array(gaps).reshape(rows, num + 1)
        start = np.cumsum(gaps[:, :-1], axis=1) + np.cumsum(length, axis=1) - length
        return start, int((start[:, -1] + length[:, -1] + gaps[:, -1]).max())

    (source, before), (target, after) = lay(), lay()
    return source, target, length, before, after


def moved_one_by_one(x, source, target, length, num_frames):
    y = np.zeros((len(x), num_frames, *x.shape[2:]), x.dtype)
    for row, places in enumerate(zip(source, target, length, strict=True)):
        for first, to, count in zip(*places, strict=True):
            y[row, to : to + count] = x[row, first : first + count]
    return y


@given(spans(), st.integers(0, 99))
@settings(max_examples=60)
def test_spans_are_moved_and_their_gradients_moved_back(made, seed):
    source, target, length, before, after = made
    x = np.random.default_rng(seed).standard_normal((len(source), before, 2)).astype(np.float32)
    lie, to = (Segments(jnp.asarray(start, jnp.int32), jnp.asarray(length, jnp.int32)) for start in (source, target))
    y, back = jax.vjp(lambda x: move(x, lie, to, after), jnp.asarray(x))
    np.testing.assert_array_equal(y, moved_one_by_one(x, source, target, length, after))
    weights = np.random.default_rng(seed + 1).standard_normal(y.shape).astype(np.float32)
    (gradient,) = back(jnp.asarray(weights))
    np.testing.assert_array_equal(gradient, moved_one_by_one(weights, target, source, length, before))
    index = np.where(to.mask(after), moved_from(lie, to, after), -1)
    ids = np.broadcast_to(np.arange(before), x.shape[:2])
    np.testing.assert_array_equal(index + 1, moved_one_by_one(ids + 1, source, target, length, after))
    np.testing.assert_array_equal(move(jnp.asarray(ids), lie, to, after), np.maximum(index, 0))


def test_no_gradient_scatters():
    lie, to = (Segments(jnp.array([start], jnp.int32), jnp.array([[2, 3]], jnp.int32)) for start in ([0, 4], [1, 3]))
    program = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(move(x, lie, to, 9))))).lower(jnp.ones((1, 7, 3)))
    assert "gather" in program.as_text()
    assert "scatter" not in program.as_text()
