import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from jax_speechlm.interop.hf import parakeet
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.fast_conformer import SIZES, FastConformer, FastConformerConfig, forward_flops
from jax_speechlm.nn import functional

CONFIG = FastConformerConfig(
    input_dim=8, dim=8, num_layers=2, num_heads=2, kernel_size=5, channels=4, dropout=0.2, attention_dropout=0.2
)
FULL = CONFIG.replace(remat="full")
VECTORS = 72  # nine frames
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "fast_conformer.npz")


def declared(config):
    return functional.declare(lambda rngs: FastConformer(config, rngs=rngs))


def model(config):
    return declared(config).graphdef, functional.init(lambda rngs: FastConformer(config, rngs=rngs), jax.random.key(0))


@partial(jax.jit, static_argnames=("graphdef", "taps"))
def apply(graphdef, params, x, length, keys=None, taps=()):
    return functional.bind(graphdef, params)(x, length, keys=keys, taps=taps)


GRAPHDEF, PARAMS = model(CONFIG)


def forward(x, length, keys=None):
    return apply(GRAPHDEF, PARAMS, x, length, keys)[0]


@partial(jax.jit, static_argnames="graphdef")
def gradients(x, length, keys, graphdef=GRAPHDEF):
    def loss(params, x):
        return jnp.sum(jnp.sin(apply(graphdef, params, x, length, keys)[0]))

    return jax.grad(loss, (0, 1))(PARAMS, x)


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("form", ["full", "bare"])
def test_hidden_states_and_logits_are_those_of_hugging_face(form):
    prefix = f"{form}/weights/"
    weights = {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN.files if name.startswith(prefix)}
    config = parakeet.config_from_hugging_face(json.loads(str(GOLDEN[f"{form}/config"])))
    params = read(parakeet.sources(weights, config))
    encoder, head = params["encoder"], params["head"]
    graphdef, shapes, *_ = declared(config)
    assert jax.tree.map(np.shape, encoder) == jax.tree.map(np.shape, shapes)

    lengths = GOLDEN["num_features"]
    hidden, tapped = apply(graphdef, encoder, GOLDEN["features_16"], lengths, taps=(0, 1, 2))
    logits = hidden @ head["kernel"] + head["bias"]
    for row, length in enumerate(config.num_frames(lengths)):
        for layers in range(3):
            expected = GOLDEN[f"{form}/hidden"][layers, row, :length]
            np.testing.assert_allclose(tapped[layers][row, :length], expected, atol=1e-4)
        np.testing.assert_allclose(logits[row, :length], GOLDEN[f"{form}/logits"][row, :length], atol=1e-4)
        assert not np.any(hidden[row, length:])
    np.testing.assert_array_equal(hidden, tapped[2])


def test_remat_changes_memory_only():
    x, lengths = normal(0, (5, VECTORS, 8)), np.array([VECTORS, 40, 17, 1, 0], np.int32)
    keys = jax.random.split(jax.random.key(0), 5)
    expected, found = (gradients(x, lengths, keys, graphdef) for graphdef in (GRAPHDEF, declared(FULL).graphdef))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_bfloat16_computes_close_to_float32_and_returns_float32():
    x, lengths = normal(0, (4, VECTORS, 8)), np.array([VECTORS, 30, 9, 1], np.int32)
    graphdef = declared(CONFIG.replace(dtype="bfloat16")).graphdef
    low = apply(graphdef, PARAMS, x, lengths)[0]
    assert low.dtype == jnp.float32
    difference = np.abs(low - forward(x, lengths))
    assert 0 < difference.max() < 0.2


@pytest.mark.parametrize("subsampling", [4, 8])
def test_a_frame_sees_its_own_vectors_and_those_of_the_frame_before(subsampling):
    graphdef, params = model(CONFIG.replace(subsampling=subsampling))
    x, lengths = normal(0, (1, 64, 8)), np.array([64], np.int32)
    changed = x.copy()
    changed[:, 2 * subsampling] += 1
    before, after = (apply(graphdef, params, each, lengths, taps=(0,))[1][0][0] for each in (x, changed))
    assert np.flatnonzero(np.any(before != after, axis=-1)).tolist() == [2]  # its first vector is the next's no more
    changed[:, 3 * subsampling - 1] += 1
    after = apply(graphdef, params, changed, lengths, taps=(0,))[1][0][0]
    assert np.flatnonzero(np.any(before != after, axis=-1)).tolist() == [2, 3]


def test_sizes_that_do_not_divide_are_refused():
    for changes, message in (
        ({"dim": 10, "num_heads": 4}, "multiple of num_heads"),
        ({"input_dim": 12}, r"input_dim \(12\) must be a multiple of subsampling \(8\)"),
        ({"kernel_size": 8}, "must be odd"),
    ):
        with pytest.raises(pydantic.ValidationError, match=message):
            FastConformerConfig(**changes)


def test_flops_are_what_xla_counts():
    """On one layer, because XLA counts a scanned body once; wide enough for the products to dominate."""
    config = FastConformerConfig(dim=128, num_layers=1, channels=64, remat="none")
    graphdef, shapes, *_ = declared(config)
    x, length = jax.ShapeDtypeStruct((2, 480, 80), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    run = jax.jit(lambda params, x, length: functional.bind(graphdef, params)(x, length)[0])
    counted = run.lower(shapes, x, length).cost_analysis()["flops"]
    assert forward_flops(config, 480, 2) == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize(
    ("size", "parameters"), [("XS", 1_384_032), ("S", 12_384_944), ("L", 108_753_408), ("0.6B", 607_724_544),
                             ("1.1B", 1_061_446_656), ("0.6B, streaming", 608_011_264)],
)  # fmt: skip
def test_sizes(size, parameters):
    assert sum(leaf.size for leaf in jax.tree.leaves(declared(SIZES[size]).shapes)) == parameters
