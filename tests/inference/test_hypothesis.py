"""Segments and partial transcripts of a stream, from tokens that are given."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.inference.asr.hypothesis import Endpointing, Hypothesis

TOKENIZER = CharTokenizer("abc ")
FRAME = 0.04


def run(path, cuts, endpointing, tokenizer=TOKENIZER):
    """The hypothesis of a best path that comes in chunks of these lengths, and its partial transcripts."""
    hypothesis, last, partials, at = Hypothesis(tokenizer, FRAME, endpointing), 0, [], 0
    for cut in cuts:
        emissions = []
        for frame, token in enumerate(path[at : at + cut]):
            if token:
                emissions.append((token, frame, 1, -0.1, token == last))
            last = token
        hypothesis.extend(emissions, len(path[at : at + cut]))
        partials.append((len(hypothesis.segments), hypothesis.partial))
        at += cut
    return hypothesis, partials


def ids(text):
    return [0 if character == "." else TOKENIZER.encode(character)[0] for character in text]


def test_a_segment_ends_after_silence_and_not_before():
    path = ids("aa.b c....ab")
    for silence, expected in ((3, ["ab c", "ab"]), (4, ["ab c", "ab"]), (5, ["ab cab"])):
        hypothesis, _ = run(path, [len(path)], Endpointing(silence_seconds=silence * FRAME))
        hypothesis.close()
        assert [segment.text for segment in hypothesis.segments] == expected
    first, second = run(path, [8, 4], Endpointing(silence_seconds=3 * FRAME))[0].segments[:1] * 2
    assert (first.start, second.end) == pytest.approx((0, 6 * FRAME))


def test_silence_before_speech_ends_nothing():
    hypothesis, _ = run([0] * 1000, [10] * 100, Endpointing(silence_seconds=FRAME))
    hypothesis.close()
    assert hypothesis.segments == ()
    assert hypothesis.partial.seconds == pytest.approx(40)


def test_a_long_segment_ends_before_its_last_word():
    hypothesis, _ = run(ids("ab cab abc"), [10], Endpointing(longest_seconds=7 * FRAME))
    assert [segment.text for segment in hypothesis.segments] == ["ab cab"]
    assert hypothesis.partial.text == "abc"
    hypothesis, _ = run(ids("abcabcabcab"), [11], Endpointing(longest_seconds=7 * FRAME))
    assert [segment.text for segment in hypothesis.segments] == ["abcabcab"]


PATHS = st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4]), min_size=1, max_size=40)


@given(path=PATHS, seed=st.integers(0, 99), silence=st.sampled_from([None, 0.08, 0.2]))
def test_segments_do_not_depend_on_chunks_and_stable_text_does_not_change(path, seed, silence):
    endpointing = Endpointing(silence_seconds=silence, longest_seconds=0.6)
    whole, _ = run(path, [len(path)], endpointing)
    cuts = np.diff([0, *np.sort(np.random.default_rng(seed).integers(0, len(path) + 1, 5)), len(path)]).tolist()
    parts, partials = run(path, cuts, endpointing)
    for hypothesis in (whole, parts):
        hypothesis.close()
    assert [segment.text for segment in parts.segments] == [segment.text for segment in whole.segments]
    for one, other in zip(parts.segments, whole.segments, strict=True):
        assert (one.start, one.end, one.avg_logprob) == pytest.approx((other.start, other.end, other.avg_logprob))
        assert one.words == other.words
    for (count, partial), (next_count, following) in itertools.pairwise(partials):
        if count == next_count:
            assert following.text.startswith(partial.stable)
            assert following.stable.startswith(partial.stable)
            assert following.revised == 0
        else:
            assert parts.segments[count].text.startswith(partial.stable)


def test_a_token_lasts_as_long_as_its_search_says():
    hypothesis = Hypothesis(TOKENIZER, FRAME, Endpointing(silence_seconds=3 * FRAME))
    hypothesis.extend([(1, 0, 4, -0.1, False)], 2)  # as durations of TDT, beyond the chunk
    hypothesis.extend([(2, 4, 1, -0.3, False)], 5)
    assert hypothesis.segments == ()
    (word,) = hypothesis.partial.words
    assert (word.word, word.start, word.end) == ("ab", 0, pytest.approx(7 * FRAME))
    assert word.confidence == pytest.approx(np.exp(-0.7 / 5))


def test_every_character_is_stable_in_a_script_without_spaces():
    _, partials = run([1, 2, 0, 3], [2, 2], Endpointing(), CharTokenizer("日本語"))
    assert [(partial.text, partial.stable) for _, partial in partials] == [("日本", "日本"), ("日本語", "日本語")]
