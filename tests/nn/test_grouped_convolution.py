import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.nn import functional
from jax_speechlm.nn.attention.gated import buckets
from jax_speechlm.nn.grouped_convolution import GroupedConvolution


def direct(x, kernel, bias):
    """The convolution of one utterance [time, dim], tap by tap, in float64."""
    taps, groups, size, _ = kernel.shape
    padded = np.pad(x.astype(np.float64), ((taps // 2, taps), (0, 0))).reshape(-1, groups, size)
    y = sum(np.einsum("tgi,gio->tgo", padded[k : k + len(x)], kernel[k].astype(np.float64)) for k in range(taps))
    return y.reshape(len(x), -1) + bias


def make(dim, taps, groups, weight_norm=False):
    """A layer's structure and random parameters."""
    declared = functional.declare(
        lambda rngs: GroupedConvolution(dim, taps, groups, weight_norm=weight_norm, rngs=rngs)
    )
    rng = np.random.default_rng(0)
    return declared.graphdef, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f"), declared.shapes)


@pytest.mark.parametrize(("taps", "lengths"), [(1, [5]), (5, [1, 7]), (128, [90, 300])])
@pytest.mark.parametrize("weight_norm", [True, False])
def test_each_utterance_of_a_row_is_convolved_by_itself(taps, lengths, weight_norm):
    graphdef, params = make(12, taps, 3, weight_norm)
    kernel = params["kernel"]
    if weight_norm:
        norm = np.linalg.norm(kernel.reshape(taps, -1), axis=1)
        kernel = kernel * (params["scale"] / norm)[:, None, None, None]
    start = np.cumsum([0, *lengths[:-1]])
    x = np.random.default_rng(1).normal(size=(1, sum(lengths) + 9, 12)).astype(np.float32)  # the padding too
    segments = Segments(jnp.asarray(start)[None], jnp.asarray(lengths)[None])
    y = jax.jit(lambda params, x: functional.bind(graphdef, params)(x, segments))(params, x)
    assert y.shape == x.shape
    scale = max(1.0, np.sqrt((kernel**2).sum(axis=(0, 2))).max())
    for first, length in zip(start, lengths, strict=True):
        expected = direct(x[0, first : first + length], kernel, params["bias"])
        # Products with the transforms' matrices round like sums of a block's samples: 1e-6 of an output's deviation.
        np.testing.assert_allclose(y[0, first : first + length], expected, atol=5e-6 * scale)


def test_gradients_are_those_of_the_sum():
    graphdef, params = make(4, 6, 2)
    x, lengths = np.random.default_rng(1).normal(size=(2, 23, 4)).astype("f"), jnp.array([23, 17])

    def ours(x, params):
        return jnp.sum(jnp.sin(functional.bind(graphdef, params)(x, Segments.of(lengths))[:, :17]))

    def sums(x, params):
        x = jnp.where(jnp.arange(23)[:, None] < lengths[:, None, None], x, 0)
        padded = jnp.pad(x, ((0, 0), (3, 6), (0, 0))).reshape(2, -1, 2, 2)
        y = sum(jnp.einsum("btgi,gio->btgo", padded[:, k : k + 23], params["kernel"][k]) for k in range(6))
        return jnp.sum(jnp.sin(y.reshape(2, 23, 4) + params["bias"])[:, :17])

    found, expected = (jax.device_get(jax.jit(jax.grad(each, (0, 1)))(x, params)) for each in (ours, sums))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), found, expected)


def test_buckets_of_distances():
    found = np.asarray(buckets(jnp.arange(-30, 31), 16, 20))
    assert found[30:34].tolist() == [0, 9, 10, 11]
    assert found[27:31].tolist() == [3, 2, 1, 0]
    assert set(found[:10]) == {7}  # from the longest on, and the last step before it
    assert set(found[51:]) == {15}
    assert (np.diff(found[31:]) >= 0).all()
