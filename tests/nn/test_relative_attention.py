import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.nn import functional
from jax_speechlm.nn.attention.relative import (
    BLOCKS,
    PositionalAttention,
    PositionalContext,
    QueryBlocks,
    RelativeAttention,
    distance_sinusoids,
    skew,
)
from jax_speechlm.nn.layers import FrameKeys

DIM, FRAMES, RATE = 8, 23, 0.2
SMALL = QueryBlocks(max_full=8, size=5)


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def relative(blocks, rngs):
    return RelativeAttention(DIM, 2, 6, 3, RATE, blocks=blocks, rngs=rngs)


def positional(blocks, rngs):
    return PositionalAttention(DIM, 2, RATE, bias=True, blocks=blocks, rngs=rngs)


ONE_A_ROW = [[0], [0]], [[FRAMES], [13]]
PACKED = [[0, 9, 18], [0, 7, 0]], [[9, 8, 5], [6, 12, 0]]


@pytest.mark.parametrize("rows", [ONE_A_ROW, PACKED])
@pytest.mark.parametrize(("make", "chunk"), [(relative, None), (relative, (3, 2)), (positional, None)])
def test_long_rows_go_block_by_block_to_the_same_result(make, chunk, rows):
    x, segments = jnp.asarray(normal(0, (2, FRAMES, DIM))), Segments(*map(jnp.array, rows))
    mask = segments.mask(FRAMES)
    keys = jax.random.split(jax.random.key(0), segments.length.size).reshape(segments.length.shape)
    params = functional.init(lambda rngs: make(BLOCKS, rngs), jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.3 * normal(1, leaf.shape), params)

    def value_and_grad(blocks):
        graphdef = functional.declare(lambda rngs: make(blocks, rngs)).graphdef
        context = PositionalContext(distance_sinusoids(FRAMES, DIM, blocks)) if make is positional else chunk

        def loss(params):
            mixed = functional.bind(graphdef, params)(x, segments, context, FrameKeys(keys, segments))
            return jnp.sum(jnp.sin(jnp.where(mask[..., None], mixed, 0)))

        return jax.jit(jax.value_and_grad(loss))(params)

    expected = value_and_grad(BLOCKS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), value_and_grad(SMALL), expected)


def test_memory_of_attention_is_linear_in_the_length_of_long_rows():
    declared = functional.declare(lambda rngs: relative(QueryBlocks(max_full=64, size=64), rngs))

    def needed(frames):
        x = jax.ShapeDtypeStruct((1, frames, DIM), jnp.float32)

        def loss(params, x):
            segments = Segments.of(jnp.array([frames]))
            return jnp.sum(functional.bind(declared.graphdef, params)(x, segments, None, None))

        compiled = jax.jit(jax.grad(loss)).lower(declared.shapes, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(2048) < 2.3 * needed(1024)


def test_distances_lie_along_the_diagonal():
    scores = normal(0, (2, 3, 7))
    laid = skew(jnp.asarray(scores))
    assert laid.shape == (2, 3, 5)
    for i in range(3):
        for j in range(5):
            np.testing.assert_array_equal(laid[:, i, j], scores[:, i, 2 - i + j])
    np.testing.assert_array_equal(skew(jnp.asarray(scores[:, :1])), scores[:, :1])
