"""A stream of frames is split into utterances by its content, not by its parts; cuts lose no frame."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.decoding.ctc.alignment import force_align
from jax_speechlm.decoding.ctc.greedy import collapse
from jax_speechlm.decoding.ctc.posteriors import Frames, joined, path_spans, utterances

VOCAB, SPACE = 4, 3
BEGINS_WORD = np.arange(VOCAB) == SPACE


def frames_of(seed: int, length: int) -> Frames:
    """Runs of ids, each of at most five frames."""
    rng = np.random.default_rng(seed)
    ids = np.cumsum(rng.integers(1, VOCAB, length)) % VOCAB
    posteriors = rng.normal(size=(length, VOCAB)).astype(np.float32)
    posteriors[np.arange(length), np.repeat(ids, rng.integers(1, 6, length))[:length]] += 12
    return Frames.of(posteriors - np.logaddexp.reduce(posteriors, axis=-1, keepdims=True))


@settings(max_examples=100)
@given(
    seed=st.integers(0, 999),
    length=st.integers(0, 400),
    most=st.integers(16, 120),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_the_best_path_spells_the_same_in_utterances_as_whole(seed, length, most, cuts):
    frames = frames_of(seed, length)
    edges = [0, *sorted(min(cut, length) for cut in cuts), length]
    parts = [frames.part(start, end) for start, end in itertools.pairwise(edges)]
    found = list(utterances(parts, most, BEGINS_WORD))
    (whole,) = collapse(frames.ids[None]) or ([],)
    assert [token for _, each in found for token in collapse(each.ids[None])[0]] == whole
    for start, each in found:
        assert 0 < len(each.ids) <= most
        np.testing.assert_array_equal(each.posteriors, frames.posteriors[start : start + len(each.ids)])
    alone = list(utterances([frames], most, BEGINS_WORD))
    assert [(start, len(each.ids)) for start, each in found] == [(start, len(each.ids)) for start, each in alone]


def test_cuts_prefer_the_word_with_the_longest_pause_before_it():
    ids = np.array([1, 0, 0, 0, 0, 0, 2, 0, SPACE, 1, 0, 0, 0, SPACE, 2, 0, 0, 0, 0, 1, 1, 1])
    one_hot = np.where(np.arange(VOCAB) == ids[:, None], 0.0, -9.0).astype(np.float32)
    (_, first), (start, _) = utterances([Frames.of(one_hot)], 18, BEGINS_WORD)
    assert start == len(first.ids) == 13
    (_, first), (start, _) = utterances([Frames.of(one_hot)], 18, BEGINS_WORD & False)
    assert start == 12  # in the middle of the longest run of blanks that is over in time


def test_a_short_recording_stays_whole_and_silence_is_nothing():
    frames = frames_of(1, 50)
    assert [start for start, _ in utterances([frames], 50, BEGINS_WORD)] == [0]
    silent = Frames(np.zeros(500, int), np.zeros(500, np.float32))
    assert list(utterances([silent, silent], 50, BEGINS_WORD)) == []


@settings(max_examples=50)
@given(seed=st.integers(0, 999), length=st.integers(1, 60))
def test_spans_of_the_best_path_are_those_of_its_forced_alignment(seed, length):
    frames = frames_of(seed, length)
    (tokens,) = collapse(frames.ids[None])
    (aligned,) = force_align([frames.posteriors], [tokens])
    found = path_spans(frames)
    assert [(span.token, span.start, span.end) for span in found] == [
        (span.token, span.start, span.end) for span in aligned
    ]
    np.testing.assert_allclose([span.log_prob for span in found], [span.log_prob for span in aligned], atol=1e-5)


def test_joined_frames_follow_each_other():
    frames = frames_of(0, 30)
    again = joined([frames.part(0, 7), frames.part(7, 7), frames.part(7)])
    for one, other in zip(frames, again, strict=True):
        np.testing.assert_array_equal(one, other)
