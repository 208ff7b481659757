"""Spans of rows are moved as written out with numpy, and their gradients moved back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.core.segments import Segments, move, moved_from

ROWS, SPANS, FRAMES = 2, 4, (32, 35)
"""Sizes that hold all that is drawn; so few that two programs do."""


@st.composite
def spans(draw):
    """(source, target, length, frames before, frames after): spans of equal lengths, random gaps, some to the end."""
    length = np.array(draw(st.lists(st.integers(0, 5), min_size=ROWS * SPANS, max_size=ROWS * SPANS)))
    length = length.reshape(ROWS, SPANS)

    def lay(num_frames):
        gaps = np.array(draw(st.lists(st.integers(0, 3), min_size=ROWS * SPANS, max_size=ROWS * SPANS)))
        start = np.cumsum(gaps.reshape(ROWS, SPANS), axis=1) + np.cumsum(length, axis=1) - length
        last = np.array(draw(st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)))
        return start + np.where(last, num_frames - start[:, -1] - length[:, -1], 0)[:, None]

    before, after = draw(st.permutations(FRAMES))
    return lay(before), lay(after), length, before, after


@functools.partial(jax.jit, static_argnums=(3,))
def move_and_back(x, source, target, num_frames, weights):
    """Returns x moved, the gradient of its product with the weights, the frames taken, and numbered frames moved."""
    y, back = jax.vjp(lambda x: move(x, source, target, num_frames), x)
    index = jnp.where(target.mask(num_frames), moved_from(source, target, num_frames), -1)
    ids = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    return y, back(weights)[0], index, move(ids, source, target, num_frames)


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
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, before, 2)).astype(np.float32)
    weights = rng.standard_normal((ROWS, after, 2)).astype(np.float32)
    lie, to = (Segments(jnp.asarray(start, jnp.int32), jnp.asarray(length, jnp.int32)) for start in (source, target))
    y, gradient, index, moved_ids = move_and_back(x, lie, to, after, weights)
    np.testing.assert_array_equal(y, moved_one_by_one(x, source, target, length, after))
    np.testing.assert_array_equal(gradient, moved_one_by_one(weights, target, source, length, before))
    ids = np.broadcast_to(np.arange(before), x.shape[:2])
    np.testing.assert_array_equal(index + 1, moved_one_by_one(ids + 1, source, target, length, after))
    np.testing.assert_array_equal(moved_ids, np.maximum(index, 0))


def test_no_gradient_scatters():
    lie, to = (Segments(jnp.array([start], jnp.int32), jnp.array([[2, 3]], jnp.int32)) for start in ([0, 4], [1, 3]))
    program = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(move(x, lie, to, 9))))).lower(jnp.ones((1, 7, 3)))
    assert "gather" in program.as_text()
    assert "scatter" not in program.as_text()
