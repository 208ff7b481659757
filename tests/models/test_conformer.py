import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.interop.hf import wav2vec2_bert
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.conformer import SIZES, Conformer, ConformerConfig, ConformerLayer, draw_chunk, forward_flops
from jax_speechlm.nn import functional

CONFIG = ConformerConfig(
    input_dim=6, dim=8, num_layers=2, num_heads=2, kernel_size=5, left_max=6, right_max=3, dropout=0.2,
    attention_dropout=0.2,
)  # fmt: skip
FRAMES = 24
GOLDEN = Path(__file__).parents[1] / "golden" / "conformer.npz"


def model(config):
    def make(rngs):
        return Conformer(config, rngs=rngs)

    return functional.declare(make).graphdef, functional.init(make, jax.random.key(0))


@partial(jax.jit, static_argnames=("graphdef", "taps"))
def apply(graphdef, params, x, length, keys=None, chunk=None, taps=()):
    return functional.bind(graphdef, params)(x, length, keys=keys, chunk=chunk, taps=taps)


GRAPHDEF, PARAMS = model(CONFIG)


def forward(x, length, keys=None, chunk=None):
    return apply(GRAPHDEF, PARAMS, x, length, keys, chunk)[0]


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_hidden_states_and_logits_are_those_of_hugging_face():
    golden = np.load(GOLDEN)
    weights = {name[8:]: golden[name] for name in golden.files if name.startswith("weights/")}
    config = wav2vec2_bert.config_from_hugging_face(json.loads(str(golden["config"])))
    params = read(wav2vec2_bert.sources(weights, config))
    encoder, head = params["encoder"], params["head"]
    graphdef, params = model(config)
    assert jax.tree.map(np.shape, encoder) == jax.tree.map(np.shape, params)

    hidden, tapped = apply(graphdef, encoder, golden["features"], golden["lengths"], taps=(1, 2))
    logits = hidden @ head["kernel"] + head["bias"]
    for row, length in enumerate(golden["lengths"]):
        for layers in (1, 2):
            expected = golden["hidden"][layers, row, :length]
            np.testing.assert_allclose(tapped[layers][row, :length], expected, atol=1e-4)
        np.testing.assert_allclose(logits[row, :length], golden["logits"][row, :length], atol=1e-4)
    np.testing.assert_array_equal(hidden, tapped[2])


class TestChunks:
    x, lengths = normal(0, (2, FRAMES, 6)), np.array([FRAMES, 13], np.int32)

    def test_one_chunk_for_all_is_no_chunk(self):
        expected = forward(self.x, self.lengths)
        np.testing.assert_allclose(forward(self.x, self.lengths, chunk=(FRAMES, 0)), expected, atol=1e-6)
        np.testing.assert_allclose(forward(self.x, self.lengths, chunk=(2**31 - 1, -1)), expected, atol=1e-6)

    def test_no_frame_sees_beyond_its_chunk(self):
        before = forward(self.x, self.lengths, chunk=(4, 1))
        changed = self.x.copy()
        changed[:, 8:] *= -1
        after = forward(changed, self.lengths, chunk=(4, 1))
        np.testing.assert_array_equal(after[:, :8], before[:, :8])
        assert np.abs(after[:, 8:12] - before[:, 8:12]).max() > 0.1

    def test_left_context_is_limited(self):
        graphdef, params = model(CONFIG.replace(num_layers=1, kernel_size=1))
        changed = self.x.copy()
        changed[:, :4] *= -1
        before, after = (apply(graphdef, params, x, self.lengths, chunk=(4, 1))[0] for x in (self.x, changed))
        assert np.abs(after[:, 4:8] - before[:, 4:8]).max() > 1e-3
        np.testing.assert_array_equal(after[:, 8:], before[:, 8:])

    def test_drawn_chunks(self):
        assert draw_chunk(CONFIG, jax.random.key(0)) is None
        config = CONFIG.replace(chunk_lengths=(4, 8))
        draw = jax.jit(jax.vmap(lambda key: draw_chunk(config, key)[0]))
        values, counts = np.unique(draw(jax.random.split(jax.random.key(0), 400)), return_counts=True)
        assert values.tolist() == [4, 8, 2**31 - 1]
        assert counts[2] == pytest.approx(200, abs=50)


def test_remat_changes_memory_only():
    x, lengths, keys = normal(0, (2, 7, 6)), np.array([7, 3], np.int32), jax.random.split(jax.random.key(0), 2)

    def grad(remat):
        graphdef, params = model(CONFIG.replace(remat=remat))

        def loss(params):
            return jnp.sum(jnp.sin(apply(graphdef, params, x, lengths, keys)[0]))

        return jax.jit(jax.grad(loss))(params)

    def check(found, expected):
        # An element is a sum over frames: float32 rounds it by the size of its terms, not by its own.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))

    expected = grad("none")
    for remat in ("dots", "full"):
        jax.tree.map(check, grad(remat), expected)


def test_bfloat16_computes_close_to_float32_and_returns_float32():
    x, lengths = normal(0, (2, FRAMES, 6)), np.array([FRAMES, 9], np.int32)
    graphdef, _ = model(CONFIG.replace(dtype="bfloat16"))
    low = apply(graphdef, PARAMS, x, lengths)[0]
    assert low.dtype == jnp.float32
    difference = np.abs(low - forward(x, lengths))
    assert 0 < difference.max() < 0.2


def test_taps_outside_the_layers_are_an_error():
    with pytest.raises(ValueError, match=r"between 0 and num_layers \(2\)"):
        apply(GRAPHDEF, PARAMS, normal(0, (1, 3, 6)), np.array([3]), taps=(3,))


def test_heads_must_divide_the_width():
    with pytest.raises(pydantic.ValidationError, match="multiple of num_heads"):
        ConformerConfig(dim=10, num_heads=4)


def test_flops_are_what_xla_counts():
    """On one layer, because XLA counts a scanned body once; wide enough for the matrix products to dominate."""
    config = ConformerConfig(dim=128, num_layers=1, num_heads=4)

    def make(rngs):
        return ConformerLayer(config, rngs=rngs)

    declared = functional.declare(make)
    batch, frames = 2, 60

    def layer(params, x, length):
        return functional.bind(declared.graphdef, params)(x, Segments.of(length), None, None)

    x, length = jax.ShapeDtypeStruct((batch, frames, 128), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    counted = jax.jit(layer).lower(declared.shapes, x, length).cost_analysis()["flops"]
    front = 2.0 * config.input_dim * config.dim * frames * batch
    assert forward_flops(config, frames, batch) - front == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize(
    ("size", "millions"), [("XS", 1.330928), ("S", 8.654432), ("M", 24.467008), ("L", 103.156608), ("XL", 580.492096)]
)
def test_sizes(size, millions):
    declared = functional.declare(lambda rngs: Conformer(SIZES[size], rngs=rngs))
    assert sum(leaf.size for leaf in jax.tree.leaves(declared.shapes)) == round(millions * 1e6)
