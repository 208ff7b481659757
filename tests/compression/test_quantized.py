"""Kernels in 8 and 4 bits: the bounds of rounding, the layouts, and models that run on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.compression.quantize import quantize
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.int_weights import QuantizedKernel, dequantize, from_plain, quantize_kernel, to_plain
from jax_speechlm.nn.layers import Linear, linear_maps
from jax_speechlm.objectives.asr.ctc import CTCModel
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from tests.objectives import text

KINDS = ("int8", "int8_dynamic", "int4")
STEPS = {"int8": 127, "int8_dynamic": 127, "int4": 7}


def steps_of(kernel: np.ndarray, num_in: int, kind: str, group: int) -> np.ndarray:
    """The step of every weight by definition: the largest magnitude among weights that share it, over 127 or 7."""
    flat = kernel.reshape(int(np.prod(kernel.shape[:num_in])), -1)
    steps = np.zeros_like(flat)
    size = group if kind == "int4" else len(flat)
    for start in range(0, len(flat), size):
        steps[start : start + size] = np.abs(flat[start : start + size]).max(0) / STEPS[kind]
    return steps.reshape(kernel.shape)


SHAPES = st.sampled_from([((5, 3), 1), ((8, 2, 3), 1), ((2, 5, 6), 2), ((9, 1), 1), ((1, 4), 1)])


@settings(max_examples=25)
@given(
    shape=SHAPES, kind=st.sampled_from(KINDS), group=st.sampled_from([2, 4, 32]), seed=st.integers(0, 99),
    magnitude=st.sampled_from([1e-6, 1.0, 1e4]),
)  # fmt: skip
def test_no_weight_moves_by_more_than_half_a_step(shape, kind, group, seed, magnitude):
    (dims, num_in), rng = shape, np.random.default_rng(seed)
    kernel = (magnitude * rng.standard_t(2, size=dims)).astype(np.float32)
    kernel[rng.uniform(size=dims) < 0.2] = 0
    rounded = quantize_kernel(kernel, num_in, kind, stacked=False, group=group)
    back = np.asarray(rounded.dequantize())
    steps = steps_of(kernel, num_in, kind, group)
    assert back.shape == kernel.shape
    assert (np.abs(back - kernel) <= steps / 2 * (1 + 1e-4)).all()
    assert (back[kernel == 0] == 0).all()
    # The largest value per group is reached, up to rounding: no range is wasted.
    top = np.abs(kernel) >= steps * STEPS[kind] * (1 - 1e-6)
    np.testing.assert_allclose(back[top], kernel[top], rtol=1e-5)


@settings(max_examples=15)
@given(values=st.lists(st.integers(-7, 7), min_size=8, max_size=8))
def test_four_bits_hold_every_value(values):
    """Weights on the grid are unchanged; a byte holds two weights."""
    kernel = np.array([*values, 7, -7, 0, 1], np.float32)[:, None]
    rounded = quantize_kernel(kernel, 1, "int4", stacked=False, group=12)
    assert rounded.values.nbytes == 6
    np.testing.assert_array_equal(rounded.dequantize(), kernel)


def test_zeros_stay_zeros_and_a_stack_is_rounded_layer_by_layer():
    kernel = np.random.default_rng(0).normal(size=(3, 10, 2, 4)).astype(np.float32)
    kernel[1] = 0
    for kind in KINDS:
        stack = quantize_kernel(kernel, 1, kind, stacked=True, group=4)
        back = np.asarray(stack.dequantize())
        assert not back[1].any()
        for layer in range(3):
            alone = quantize_kernel(kernel[layer], 1, kind, stacked=False, group=4)
            np.testing.assert_array_equal(back[layer], alone.dequantize())
            one = jax.tree.map(lambda x: x[layer], stack)  # as a scan takes it  # noqa: B023
            np.testing.assert_array_equal(one.dequantize(), alone.dequantize())


@pytest.mark.parametrize(("shape_in", "shape_out"), [((6,), (5,)), ((6,), (2, 3)), ((2, 3), (5,))])
@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_map_multiplies_by_what_its_integers_stand_for(shape_in, shape_out, kind):
    rng = np.random.default_rng(0)
    axes = (None,) * (len(shape_in) + len(shape_out))

    def make(rngs):
        return Linear(shape_in, shape_out, axes, bias_scale=1.0, rngs=rngs)

    params = functional.init(make, jax.random.key(0))
    graphdef = functional.declare(make).graphdef
    rounded = quantize(lambda rngs: nnx.Dict(a=make(rngs)), {"a": params}, kind, group=4)["a"]
    x = jnp.asarray(rng.normal(size=(7, *shape_in)), jnp.float32)
    found = np.asarray(functional.bind(graphdef, rounded)(x))
    plain = np.asarray(dequantize(rounded)["kernel"], np.float64).reshape(6, -1)
    flat = np.asarray(x, np.float64).reshape(7, 6)
    if kind == "int8_dynamic":  # each token on its own grid of 255 values
        step = np.abs(flat).max(-1, keepdims=True) / 127
        flat = np.round(flat / step) * step
    expected = (flat @ plain).reshape(7, *shape_out) + np.asarray(params["bias"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    half = functional.bind(graphdef, rounded)(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), expected, rtol=0.05, atol=0.1)


@pytest.fixture(scope="module")
def model():
    """A conformer with a head, its parameters, its jitted logits of one batch with padding."""
    config = ConformerConfig(input_dim=40, dim=32, num_layers=2, num_heads=4, kernel_size=5)

    def make(rngs):
        return CTCModel(config, 7, rngs=rngs)

    graphdef = functional.declare(make).graphdef
    x, length = jax.random.normal(jax.random.key(1), (2, 12, 40)), jnp.array([12, 7])
    return make, functional.init(make, jax.random.key(0)), jax.jit(
        lambda params, x=x: functional.bind(graphdef, params)(x, length)[0]
    )  # fmt: skip


def test_a_model_runs_on_integers_and_stays_near_its_floats(model):
    """Under scan and jit; weight-only it is the model with the rounded weights, number for number."""
    make, params, logits = model
    reference = np.asarray(logits(params))
    spread = reference.std()
    for kind, bound in (("int8", 0.05), ("int8_dynamic", 0.06), ("int4", 0.6)):
        rounded = quantize(make, params, kind)
        found = np.asarray(logits(rounded))
        assert 0 < np.abs(found - reference).max() < bound * spread * 3
        if kind != "int8_dynamic":
            np.testing.assert_allclose(found, logits(dequantize(rounded)), atol=1e-4)


def test_every_linear_map_is_rounded_and_nothing_else(model):
    make, params, _ = model
    declared = functional.declare(make)
    maps = {path for path, _ in linear_maps(functional.bind(declared.graphdef, declared.shapes))}
    assert {"head", "encoder/input", "encoder/layers/attention/query", "encoder/layers/ffn2/contract"} <= maps
    rounded = quantize(make, params, "int4")
    plain, kernels = to_plain(rounded)
    assert {f"{path}/kernel" for path in maps} == set(kernels)
    before, after = (sum(leaf.nbytes for leaf in jax.tree.leaves(each)) for each in (params, plain))
    assert after < before / 3
    assert (
        rounded["encoder"]["layers"]["convolution"]["depthwise"]
        is params["encoder"]["layers"]["convolution"]["depthwise"]
    )
    back = from_plain(jax.tree.map(np.asarray, plain), kernels)
    assert jax.tree.structure(back) == jax.tree.structure(rounded)
    jax.tree.map(np.testing.assert_array_equal, back, rounded)


def test_a_kernel_is_taken_whole():
    rounded = quantize_kernel(np.ones((4, 4), np.float32), 1, "int8", stacked=False)
    assert isinstance(rounded[...], QuantizedKernel)
    with pytest.raises(IndexError, match="dequantize it first"):
        rounded[0]


def test_a_language_model_scores_on_integers():
    """Its table is unchanged; probabilities, step by step or whole, equal a model with the rounded kernels."""
    built = CausalLM().build(text.MODEL, None, text.TOKENIZER)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(0)))
    rounded = quantize(built.make, params, "int4")
    assert rounded["transformer"]["embedding"] is params["transformer"]["embedding"]
    lm = LanguageModel(text.MODEL, text.TOKENIZER, rounded, 32)
    there = LanguageModel(text.MODEL, text.TOKENIZER, dequantize(rounded), 32)
    found = lm.score(["a bad cab"])
    np.testing.assert_allclose(found, there.score(["a bad cab"]), rtol=1e-5)
    assert abs(found - dataclasses.replace(lm, params=params).score(["a bad cab"])) > 1e-3
