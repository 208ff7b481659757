"""FastSpeech 2's length regulator and sizes; `tests/parity` compares its numbers with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jax_speechlm.models.tts.fastspeech2 import (
    LONGEST_TOKEN,
    FastSpeech2,
    FastSpeech2Config,
    Layers,
    durations,
    one_hot_tokens,
    repeat_by_frame,
    token_of_frame,
)
from jax_speechlm.models.tts.text import pack_text, with_boundaries
from jax_speechlm.nn import functional


@given(frames=st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_every_token_is_repeated_for_its_frames(frames):
    x = np.random.default_rng(0).standard_normal((1, len(frames), 3)).astype(np.float32)
    expected = np.repeat(x[0], frames, axis=0)
    index = token_of_frame(jnp.array([frames]), 120)
    repeated = np.asarray(repeat_by_frame(jnp.asarray(x), one_hot_tokens(index, len(frames))))
    np.testing.assert_array_equal(repeated[0, : sum(frames)], expected)
    assert not repeated[0, sum(frames) :].any()
    assert (index[0, sum(frames) :] == -1).all()


@given(frames=st.lists(st.integers(0, 30), min_size=1, max_size=40), speed=st.floats(0.3, 4))
def test_speed_shortens_the_whole_and_each_end_by_at_most_half_a_frame(frames, speed):
    log_duration = jnp.log(jnp.array(frames, jnp.float32) + 1)
    np.testing.assert_array_equal(durations(log_duration), frames)
    faster = np.asarray(durations(log_duration, speed))
    assert (faster >= 0).all()
    np.testing.assert_allclose(np.cumsum(faster), np.cumsum(frames) / speed, atol=0.501)


def test_no_token_is_endless():
    assert durations(jnp.array([50.0])) == LONGEST_TOKEN


def test_packed_text_has_the_tokens_of_all_utterances():
    tokens = jnp.array([[[5, 6, 7], [8, 0, 0], [3, 4, 0]], [[1, 2, 0], [9, 9, 9], [9, 9, 9]]])
    rows = pack_text(tokens, jnp.array([[3, 1, 2], [2, 0, 0]]), 8)
    np.testing.assert_array_equal(rows.tokens, [[5, 6, 7, 8, 3, 4, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(rows.segments.segment(8), [[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]])


def test_boundaries_surround_a_text():
    tokens, length = with_boundaries(jnp.array([[5, 6, 7], [8, 3, 3]]), jnp.array([3, 1]), 9)
    np.testing.assert_array_equal(tokens[0], [9, 5, 6, 7, 9])
    np.testing.assert_array_equal(tokens[1, :3], [9, 8, 9])
    np.testing.assert_array_equal(length, [5, 3])


def test_number_of_parameters_is_as_documented():
    shapes = functional.declare(lambda rngs: FastSpeech2(FastSpeech2Config(), 40, rngs=rngs)).shapes
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 1) == 5.3


def test_impossible_sizes_are_refused():
    with pytest.raises(ValidationError, match="a kernel of 4 taps has no middle"):
        Layers(kernel_size=4)
    with pytest.raises(ValidationError, match="must be even and a multiple of num_heads"):
        FastSpeech2Config(dim=30, encoder=Layers(num_heads=4))
