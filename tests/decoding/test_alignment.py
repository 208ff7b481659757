"""Forced alignment against a search through all paths, on constructed cases, and as files."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.decoding.ctc.alignment import (
    AlignedUtterance,
    Word,
    force_align,
    frames_needed,
    to_ctm,
    to_json,
    to_textgrid,
    words_of,
)
from tests.decoding.test_prefix_beam import posteriors

PIECES = ("", "▁", "a", "b")


def best_path(log_probs: np.ndarray, tokens: list[int]) -> tuple[int, ...] | None:
    """The most probable of all paths of the tokens."""
    num_frames, vocab = log_probs.shape
    paths = (
        path
        for path in itertools.product(range(vocab), repeat=num_frames)
        if [token for token, _ in itertools.groupby(path) if token] == tokens
    )
    return max(paths, key=lambda path: log_probs[range(num_frames), path].sum(dtype=np.float64), default=None)


def runs(path: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(token, first frame, frame after the last) by token of a path."""
    found, frame = [], 0
    for token, run in itertools.groupby(path):
        length = len(list(run))
        if token:
            found.append((token, frame, frame + length))
        frame += length
    return found


@settings(max_examples=60)
@given(
    st.integers(0, 999),
    st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(1, 2), max_size=4)), min_size=1, max_size=4),
)
def test_it_is_the_likeliest_of_all_paths_whatever_the_batch(seed, rows):
    log_probs = posteriors(seed, (len(rows), 8, 3))
    valid = [frames[:length] for frames, (length, _) in zip(log_probs, rows, strict=True)]
    found = force_align(valid, [tokens for _, tokens in rows])
    for spans, (length, tokens), row in zip(found, rows, log_probs, strict=True):
        expected = best_path(row[:length], tokens)
        assert (spans is None) == (expected is None) == (length < frames_needed(tokens))
        if spans is not None:
            assert [(span.token, span.start, span.end) for span in spans] == runs(expected)
            for span in spans:
                assert span.log_prob == pytest.approx(row[span.start : span.end, span.token].sum(), abs=1e-5)


def test_words_of_a_constructed_utterance():
    path = [0, 2, 2, 0, 3, 1, 0, 0, 3, 0]  # "ab b"
    log_probs = np.full((1, 10, 4), math.log(0.1), np.float32)
    log_probs[0, range(10), path] = math.log(0.7)
    (spans,) = force_align(list(log_probs), [[2, 3, 1, 3]])
    words = words_of(spans, PIECES, 0.04)
    assert [(word.word, word.start, word.end) for word in words] == [
        ("ab", pytest.approx(0.04), pytest.approx(0.20)),
        ("b", pytest.approx(0.32), pytest.approx(0.36)),
    ]
    assert all(word.confidence == pytest.approx(0.7, abs=1e-6) for word in words)


def test_pieces_that_begin_words_part_them():
    log_probs = np.full((1, 6, 4), math.log(0.02), np.float32)
    log_probs[0, range(6), [1, 2, 0, 1, 3, 3]] = math.log(0.9)
    (spans,) = force_align(list(log_probs), [[1, 2, 1, 3]])
    words = words_of(spans, ("", "▁the", "re", "y"), 1.0)
    assert [(word.word, word.start, word.end) for word in words] == [("there", 0, 2), ("they", 3, 6)]


UTTERANCE = AlignedUtterance("a clip", 1.0, (Word("he", 0.1, 0.3, 0.5), Word('"who"', 0.3, 0.6, 0.25)))


def test_ctm():
    assert to_ctm([UTTERANCE]).splitlines() == ["a_clip 1 0.100 0.200 he 0.5000", 'a_clip 1 0.300 0.300 "who" 0.2500']


def test_a_textgrid_covers_the_whole_time():
    lines = [line.strip() for line in to_textgrid(UTTERANCE).splitlines()]
    starts = [float(line.split(" = ")[1]) for line in lines if line.startswith("xmin")][2:]
    stops = [float(line.split(" = ")[1]) for line in lines if line.startswith("xmax")][2:]
    texts = [line.split(" = ")[1] for line in lines if line.startswith("text")]
    assert texts == ['""', '"he"', '"""who"""', '""']
    assert starts == [0.0, 0.1, 0.3, 0.6]
    assert stops == [0.1, 0.3, 0.6, 1.0]
    assert "intervals: size = 4" in lines
    assert 'text = ""' in to_textgrid(AlignedUtterance("silence", 2.0, ()))


def test_json():
    (line,) = to_json([UTTERANCE]).splitlines()
    assert json.loads(line)["words"][1] == {"word": '"who"', "start": 0.3, "end": 0.6, "confidence": 0.25}
