"""Masks are whole spans inside the utterance, and cover what they were asked to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.core.batch import example_keys
from jax_speechlm.core.segments import Segments
from jax_speechlm.objectives.masking import (
    PROBE_STRIDE,
    draw_mask,
    masked_places,
    most_masked,
    probed_places,
    take_frames,
)

SPAN = 5


@functools.cache
def masks(num_frames: int):
    return jax.jit(lambda seed, lengths: _draw(seed, lengths, num_frames))


def _draw(seed, lengths, num_frames):
    keys = example_keys(jax.random.key(seed), jnp.arange(len(lengths)))[:, None]
    return draw_mask(keys, Segments.of(lengths), num_frames, SPAN, 0.33)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31 - 1), lengths=st.lists(st.integers(0, 40), min_size=8, max_size=8))
def test_masks_are_spans_inside_the_utterance_that_fit_the_gathered_slots(seed, lengths):
    mask = np.asarray(masks(40)(seed, jnp.array(lengths)))
    np.testing.assert_array_equal(mask, masks(64)(seed, jnp.array(lengths))[:, :40])  # padding changes nothing
    assert mask.sum(axis=1).max() <= most_masked(40, SPAN, 0.33)
    for row, length in zip(mask, lengths, strict=True):
        width = min(SPAN, length // 2)
        assert not row[length:].any()
        assert row.any() == (length > 1)
        assert row.sum() < length or length == 0  # something stays to predict from
        runs = "".join("x" if frame else " " for frame in row).split()
        assert all(len(run) >= width for run in runs)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), lengths=st.lists(st.integers(0, 20), min_size=3, max_size=3))
def test_an_utterance_is_masked_and_probed_alike_wherever_it_lies(seed, lengths):
    keys = example_keys(jax.random.key(seed), jnp.arange(3))
    start = np.cumsum([0, *lengths[:-1]]) * np.array([length > 0 for length in lengths])
    segments = Segments(jnp.array(start)[None], jnp.array(lengths)[None])
    packed = np.asarray(_packed_mask()(keys[None], segments))[0]
    assert packed.sum() <= most_masked(64, SPAN, 0.33, utterances=3)
    alone = np.asarray(masks(64)(seed, jnp.array(lengths)))
    places, is_probe = (np.asarray(array)[0] for array in probed_places(segments, 64))
    for row, at, length in zip(alone, start, lengths, strict=True):
        np.testing.assert_array_equal(packed[at : at + length], row[:length])
        assert set(range(at, at + length, PROBE_STRIDE)) <= set(places[is_probe])
    assert is_probe.sum() == sum(-(-length // PROBE_STRIDE) for length in lengths)


@functools.cache
def _packed_mask():
    return jax.jit(lambda keys, segments: draw_mask(keys, segments, 64, SPAN, 0.33))


def test_masks_cover_the_asked_share_on_average():
    keys = example_keys(jax.random.key(0), jnp.arange(2_000))
    mask = draw_mask(keys[:, None], Segments.of(jnp.full(2_000, 150)), 150, 10, 0.33)
    assert abs(float(mask.mean()) - 0.33) < 0.02
    per_frame = np.asarray(mask).mean(axis=0)[10:-10]
    assert per_frame.max() - per_frame.min() < 0.08  # no place is favoured


def test_masked_frames_are_gathered_first_and_in_order():
    mask = jnp.array([[False, True, False, True, True], [False] * 5])
    places = masked_places(mask, 4)
    np.testing.assert_array_equal(places[0, :3], [1, 3, 4])
    x = jnp.arange(30).reshape(2, 5, 3)
    np.testing.assert_array_equal(take_frames(x, places)[0, :3], x[0, [1, 3, 4]])
    np.testing.assert_array_equal(take_frames(mask, places), [[True, True, True, False], [False] * 4])
