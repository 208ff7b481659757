"""Encoders of streams give the hidden states of one pass under the chunk's mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.encoders import make_encoder
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.streaming import StreamingEncoder
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.nn import functional
from tests.contracts.streaming import InChunks, verify_streaming

CONFORMER = ConformerConfig(
    input_dim=6, dim=8, num_layers=2, num_heads=2, kernel_size=5, left_max=6, right_max=3, dropout=0.0,
    chunk_lengths=(1, 3, 4), left_context=7,
)  # fmt: skip
FAST_CONFORMER = FastConformerConfig(
    input_dim=8, dim=8, num_layers=2, num_heads=2, kernel_size=5, channels=4, dropout=0.0, causal=True,
    chunk_lengths=(1, 3), left_context=5,
)  # fmt: skip
CONFIGS = {"conformer": CONFORMER, "fast_conformer": FAST_CONFORMER, "four": FAST_CONFORMER.replace(subsampling=4)}


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def model(name):
    def make(rngs):
        return make_encoder(CONFIGS[name], rngs=rngs)

    # Biases and scales too are not what they begin as.
    rng = np.random.default_rng(0)
    params = functional.init(make, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)
    graphdef = functional.declare(make).graphdef

    @jax.jit
    def full(x, lengths, chunk):
        return functional.bind(graphdef, params)(x, lengths, chunk=chunk)[0]

    return params, full


@pytest.mark.parametrize(
    ("name", "chunk_length"), [("conformer", 1), ("conformer", 4), ("fast_conformer", 3), ("four", 1)]
)
def test_any_cut_gives_the_hidden_states_of_one_pass(name, chunk_length):
    params, full = model(name)
    config = CONFIGS[name]
    stream = StreamingEncoder(config, chunk_length)
    step = jax.jit(functools.partial(stream.step, params))

    def one_pass(x):
        return full(x, np.full(len(x), x.shape[1], np.int32), stream.chunk)

    for length in (0, 1, 26 * config.subsampling - 3):
        chunks = InChunks(stream.init_state, step, stream.num_vectors, config.input_dim, config.lead_vectors)
        verify_streaming(
            init=chunks.init,
            step=chunks.step,
            finalize=chunks.finalize,
            full=lambda x: one_pass(x) if x.shape[1] else np.zeros((2, 0, config.dim)),
            inputs=normal(1, (2, length, config.input_dim)),
        )
    assert step._cache_size() == 1


def test_streams_of_a_batch_join_and_leave_without_changing_each_other():
    params, full = model("conformer")
    stream = StreamingEncoder(CONFORMER, 4)
    step = jax.jit(functools.partial(stream.step, params))
    x = normal(2, (3, 24, 6))
    expected = np.asarray(full(x, np.full(3, 24, np.int32), stream.chunk))
    fresh = jax.tree.map(lambda leaf: leaf[0], stream.init_state(1))
    state = stream.init_state(2)
    # Stream 0 has chunks at every other step; stream 2 takes the row of stream 1 after its third chunk.
    taken, rows, found = [0, 0, 0], [0, 1], {0: [], 1: [], 2: []}
    for turn in range(9):
        if turn == 3:
            state = jax.tree.map(lambda leaf, new: leaf.at[1].set(new), state, fresh)
            rows[1] = 2
        valid = np.array([4 * (turn % 2), 4], np.int32)
        chunk = normal(9, (2, 4, 6))
        for place, row in enumerate(rows):
            if valid[place]:
                chunk[place] = x[row, 4 * taken[row] :][:4]
        state, hidden, num = step(state, jnp.asarray(chunk), jnp.asarray(valid))
        np.testing.assert_array_equal(num, valid)
        for place, row in enumerate(rows):
            if valid[place]:
                found[row].append(hidden[place])
                taken[row] += 1
    assert taken == [4, 3, 6]
    for row, chunks in found.items():
        np.testing.assert_allclose(np.concatenate(chunks), expected[row, : 4 * taken[row]], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFORMER.replace(chunk_lengths=()), r"model.chunk_lengths is empty.*--model.chunk-lengths 8 16"),
        (CONFORMER.replace(left_context=None), r"model.left_context is None.*--model.left-context 64"),
        (CONFORMER.replace(chunk_lengths=(1, 2)), r"not trained on chunks of 4 frames: model.chunk_lengths has 1, 2"),
        (
            WhisperEncoderConfig(),
            r"model.kind is whisper_encoder, which encodes whole.*train a conformer",
        ),
        (Wav2Vec2EncoderConfig(), r"model.kind is wav2vec2_encoder, which encodes whole"),
        (FastConformerConfig(), r"model.causal is False.*look ahead: train with --model.causal True"),
    ],
)
def test_what_cannot_stream_names_the_setting_and_what_to_train(config, message):
    with pytest.raises(ValueError, match=message):
        StreamingEncoder(config, 4)


def test_chunks_are_for_causal_convolutions():
    with pytest.raises(ValueError, match="chunk_lengths and left_context are for causal convolutions: set causal"):
        FAST_CONFORMER.replace(causal=False)


def test_left_context_holds_the_longest_chunk():
    with pytest.raises(ValueError, match=r"left_context \(7\) must be at least the longest of chunk_lengths \(8\)"):
        CONFORMER.replace(chunk_lengths=(4, 8))
