"""Adapters: formulas against numpy, lengths known in advance, and no influence of padding."""

import functools
import math

import jax
import numpy as np
import pytest

from jax_speechlm.models.adapter import Convolutional, QFormer, Stacking
from jax_speechlm.nn import functional
from jax_speechlm.planning import costs, hlo

DIM, WIDTH, FRAMES = 6, 10, 13
CONFIGS = {
    "stacking": Stacking(frames=3, hidden_dim=8),
    "convolution": Convolutional(num_layers=2, stride=2, kernel_size=3, hidden_dim=8),
    "qformer": QFormer(window=4, queries=2, num_layers=2, num_heads=2, dim=8),
}
EACH = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def made(name):
    """(parameters, the compiled adapter)."""

    def make(rngs):
        return CONFIGS[name].build(DIM, WIDTH, rngs)

    graphdef = functional.declare(make).graphdef
    params = functional.init(make, jax.random.key(1))
    noise = jax.random.normal(jax.random.key(2), (64,))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * np.resize(noise, leaf.shape), params)  # biases too
    return params, jax.jit(lambda params, x, length: functional.bind(graphdef, params)(x, length))


def frames_of(seed, rows=2):
    return np.random.default_rng(seed).normal(0, 1, (rows, FRAMES, DIM)).astype(np.float32)


def test_stacking_is_its_formula():
    params, adapter = made("stacking")
    x = frames_of(5, 1)
    found, _ = adapter(params, x, np.array([8], np.int32))
    x[:, 8:] = 0
    stacked = np.pad(x, ((0, 0), (0, 2), (0, 0))).reshape(5, 3 * DIM)
    hidden = np.maximum(stacked @ params["expand"]["kernel"] + params["expand"]["bias"], 0)
    expected = hidden @ params["contract"]["kernel"] + params["contract"]["bias"]
    np.testing.assert_allclose(found[0, :3], expected[:3], atol=1e-5)


def test_convolution_is_its_formula():
    params, adapter = made("convolution")
    length = 11
    x = frames_of(6, 1)
    found, counts = adapter(params, x, np.array([length], np.int32))
    x = x[0, :length].astype(np.float64)
    for layer in ("layer0", "layer1"):
        kernel, bias = params["layers"][layer]["kernel"], params["layers"][layer]["bias"]
        out = []
        for middle in range(0, len(x), 2):
            near = [k for k in range(3) if 0 <= middle + k - 1 < len(x)]
            out.append(sum(x[middle + k - 1] @ kernel[k] for k in near) + bias)
        x = np.array(jax.nn.gelu(np.array(out)))
    expected = x @ params["out"]["kernel"] + params["out"]["bias"]
    assert counts.tolist() == [3]
    np.testing.assert_allclose(found[0, :3], expected, atol=1e-5)


def test_each_query_attends_to_its_window_alone():
    """The Q-Former, one window and one query at a time, by plain loops."""
    params, adapter = made("qformer")
    length = 10
    x = frames_of(7, 1)
    found, _ = adapter(params, x, np.array([length], np.int32))

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def linear(x, p, dims=1):
        return np.tensordot(x, p["kernel"], dims) + p["bias"]

    def attention(q, k, v):
        out = np.zeros_like(q)
        for head in range(q.shape[1]):
            scores = np.exp(q[:, head] @ k[:, head].T / math.sqrt(q.shape[-1]))
            out[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, head]
        return out

    for window in range(3):
        frames = x[0, 4 * window : min(4 * window + 4, length)] + params["places"][: min(4, length - 4 * window)]
        queries = np.array(params["queries"], np.float64)
        for number in range(2):
            p = jax.tree.map(lambda leaf, number=number: np.asarray(leaf[number], np.float64), params["layers"])
            y = norm(queries, p["self_norm"])
            mixed = attention(linear(y, p["self_query"]), linear(y, p["self_key"]), linear(y, p["self_value"]))
            queries = queries + linear(mixed, p["self_out"], 2)
            y = norm(queries, p["cross_norm"])
            mixed = attention(linear(y, p["query"]), linear(frames, p["key"]), linear(frames, p["value"]))
            queries = queries + linear(mixed, p["out"], 2)
            hidden = np.asarray(jax.nn.gelu(linear(norm(queries, p["ffn_norm"]), p["expand"])))
            queries = queries + linear(hidden, p["contract"])
        expected = linear(norm(queries, params["norm"]), params["out"])
        np.testing.assert_allclose(found[0, 2 * window : 2 * window + 2], expected, atol=1e-4)


@EACH
def test_flops_are_those_of_the_compiled_products(name):
    params, adapter = made(name)
    lengths = jax.ShapeDtypeStruct((2,), np.int32)
    program = adapter.lower(params, jax.ShapeDtypeStruct((2, FRAMES, DIM), np.float32), lengths).compile()
    counted = costs.count(hlo.parse(program.as_text()), {}).flops
    assert counted == 2 * CONFIGS[name].forward_flops(FRAMES, DIM, WIDTH)


def test_a_kernel_without_a_middle_is_refused():
    with pytest.raises(ValueError, match=r"kernel_size \(4\) must be odd"):
        Convolutional(kernel_size=4)
