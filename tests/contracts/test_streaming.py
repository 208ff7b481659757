"""Layers of streams keep the contract of `verify_streaming`; so do larger parts, in the tests that are named here."""

import ast
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_speechlm
from jax_speechlm.core.segments import Segments
from jax_speechlm.decoding.ctc.greedy import StreamingBestPath
from jax_speechlm.models.conformer import CausalConvolution, ConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.recurrence import LSTM
from tests.contracts.streaming import verify_streaming

DIM = 6
TESTS = {
    "CausalConvolution": "contracts/test_streaming.py",
    "LSTM": "contracts/test_streaming.py",
    "StreamingBestPath": "contracts/test_streaming.py",
    **dict.fromkeys(
        ["Encoder", "MacaronLayer", "PositionalAttention", "RelativeAttention", "StreamingEncoder", "Subsampling"],
        "models/test_streaming_encoder.py",
    ),
    "StreamingLogMel": "frontend/test_log_mel_stream.py",
    "StreamingGreedy": "inference/test_streams.py",
    "StreamingProgram": "inference/test_streams.py",  # texts of any cut
    "StreamingVocoder": "models/test_vocoders.py",
    "WaveNet": "models/test_wavenet.py",
}


def test_all_that_streams_is_tested():
    """What streams says so in the docstring of its class or of its `step`."""
    found = set()
    for file in Path(jax_speechlm.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                steps = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "step"]
                if steps and any("stream" in (ast.get_docstring(part) or "").lower() for part in (node, *steps)):
                    found.add(node.name)
    assert found - {"StreamSearch"} <= set(TESTS), "name the test that calls verify_streaming"
    for name in set(TESTS.values()):
        text = (Path(__file__).parents[1] / name).read_text()
        assert "verify_streaming" in text or "test_any_cut" in text


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def declared(make):
    params = functional.init(make, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * normal(0, leaf.shape), params)
    return functional.bind(functional.declare(make).graphdef, params)


@pytest.mark.parametrize("bias", [True, False])
def test_causal_convolution(bias):
    config = ConformerConfig(dim=DIM, num_heads=1, kernel_size=4, dropout=0.0)
    module = declared(lambda rngs: CausalConvolution(config, bias=bias, rngs=rngs))
    verify_streaming(
        init=lambda batch: module.init_state(batch, jnp.dtype("float32")),
        step=module.step,
        finalize=lambda state: np.zeros((2, 0, DIM)),
        full=lambda x: module(jnp.asarray(x), Segments.of(np.full(2, 9, np.int32)), None),
        inputs=normal(1, (2, 9, DIM)),
    )


def test_lstm():
    module = declared(lambda rngs: LSTM(DIM, rngs=rngs))

    def step(state, piece):
        outputs = [np.zeros((2, 0, DIM))]
        for x in jnp.swapaxes(piece, 0, 1):
            state = module.step(state, x)
            outputs.append(state.hidden[:, None])
        return state, np.concatenate(outputs, axis=1)

    verify_streaming(
        init=module.init_state,
        step=step,
        finalize=lambda state: np.zeros((2, 0, DIM)),
        full=lambda x: module(jnp.asarray(x)),
        inputs=normal(2, (2, 9, DIM)),
    )


def test_best_path():
    search = StreamingBestPath(DIM, 3)  # few ids, so that runs are long
    params = {"head": {"kernel": normal(0, (DIM, 3)), "bias": np.array([1, 0, 0], np.float32)}}

    def step(state, piece):
        state, found = search.step(params, state, piece, jnp.full(2, piece.shape[1]))
        return state, np.stack([found.token, found.continues, found.log_prob], axis=-1)

    def full(x):
        log_probs = jax.nn.log_softmax(jnp.asarray(x) @ params["head"]["kernel"] + params["head"]["bias"])
        path = np.asarray(log_probs).argmax(-1)
        continues = np.diff(path, axis=1, prepend=0) == 0
        return np.stack([path, continues & (path != 0), log_probs.max(-1)], axis=-1)

    verify_streaming(
        init=functools.partial(search.init_state, params),
        step=step,
        finalize=lambda state: np.zeros((2, 0, 3)),
        full=full,
        inputs=normal(3, (2, 23, DIM)),
    )
    state, _ = step(jnp.array([1, 2]), jnp.zeros((2, 0, DIM)))
    np.testing.assert_array_equal(state, [1, 2])
