"""Strided convolution of whole rows, which is computed over blocks of inputs, against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_speechlm.nn import functional
from jax_speechlm.nn.convolution import RowConvolution


def convolution(taps, stride):
    """Returns the layer as a function of input and kernel, and a kernel."""

    def make(rngs):
        return RowConvolution(3, 4, taps, stride=stride, rngs=rngs)

    graphdef, params = functional.declare(make).graphdef, functional.init(make, jax.random.key(0))
    return lambda x, kernel: functional.bind(graphdef, params | {"kernel": kernel})(x), params["kernel"]


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize(("taps", "size"), [(5, 16), (5, 17), (5, 18), (2, 7), (1, 7), (3, 2), (9, 1)])
def test_a_stride_takes_every_so_many_outputs_of_the_plain_convolution(taps, size, stride):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, 3)), jnp.float32)
    (strided, kernel), (plain, _) = convolution(taps, stride), convolution(taps, 1)
    np.testing.assert_allclose(strided(x, kernel), plain(x, kernel)[:, ::stride], atol=1e-5)


def test_values_and_gradients_over_time_and_frequency():
    draw = np.random.default_rng(0).normal
    x = jnp.asarray(draw(size=(2, 5, 33, 3)), jnp.float32)
    weight = jnp.asarray(draw(size=(2, 5, 17, 4)), jnp.float32)
    ours, kernel = convolution((3, 9), 2)

    def xlas(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 2), ((1, 1), (4, 4)), dimension_numbers=names)

    (y, backward), (expected, backward_of_expected) = (jax.vjp(run, x, kernel) for run in (ours, xlas))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for one, other in zip(backward(weight), backward_of_expected(weight), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_stride_with_a_dilation_is_refused():
    with pytest.raises(ValueError, match="leave dilation"):
        RowConvolution(3, 4, 5, stride=2, dilation=2, rngs=nnx.Rngs(0))
