"""Subtitles: readable, in order, and with every word that was heard."""

import itertools
import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.decoding.alignment import Word
from jax_speechlm.transcript import Segment, Transcript, phrases, to_srt, to_vtt

TIME = r"(\d\d+):([0-5]\d):([0-5]\d)[,.](\d{3})"


def segment(words: list[tuple[str, float, float]]) -> Segment:
    said = tuple(Word(*each, 0.5) for each in words)
    return Segment(words[0][1], words[-1][2], " ".join(word for word, _, _ in words), -0.5, said)


def seconds(match: tuple[str, ...]) -> float:
    hours, minutes, rest, thousandths = map(int, match)
    return 3600 * hours + 60 * minutes + rest + thousandths / 1000


@st.composite
def spoken(draw):
    """Segments of words of any length, one after the other, in tens of milliseconds."""
    at, segments = draw(st.integers(0, 500_000)), []
    for _ in range(draw(st.integers(1, 3))):
        words = []
        for word in draw(st.lists(st.text("abcdé<&>", min_size=1, max_size=50), min_size=1, max_size=20)):
            at += draw(st.sampled_from([1, 5, 59, 61, 300]))
            words.append((word, at / 100, (at + draw(st.integers(1, 80))) / 100))
            at = round(words[-1][2] * 100)
        segments.append(segment(words))
    return segments


@settings(max_examples=60)
@given(spoken())
def test_subtitles_hold_every_word_in_order_and_never_overlap(segments):
    words = [word.word for each in segments for word in each.words]
    blocks = to_srt(segments).split("\n\n")
    times, text = [], []
    for number, block in enumerate(blocks, start=1):
        head, clock, *lines = block.strip().split("\n")
        assert int(head) == number
        times.append([seconds(match) for match in re.findall(TIME, clock)])
        text += lines
    assert "".join(text).replace(" ", "") == "".join(words)
    assert all(start < end for start, end in times)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    for phrase in phrases(segments):
        assert phrase.end - phrase.start <= 7 or len(phrase.words) == 1
        assert len(phrase.text) <= 2 * 42 + 1 or len(phrase.words) == 1
        gaps = zip(phrase.words, phrase.words[1:], strict=False)
        assert all(after.start - before.end < 0.6 for before, after in gaps)
    vtt = to_vtt(segments)
    assert vtt.startswith("WEBVTT\n\n")
    assert [[seconds(match) for match in re.findall(TIME, line)] for line in re.findall(".* --> .*", vtt)] == times
    assert "<" not in vtt.replace("-->", "")


def test_srt_to_the_letter():
    segments = [
        segment([("good", 3599.5, 3599.9), ("morning", 3599.95, 3600.4), ("all", 3601.5, 3601.6)]),
        Segment(3605.0, 3609.0, "no words here", -1.0),
        Segment(3609.0, 3612.0, " ", -1.0),
    ]
    assert to_srt(segments) == (
        "1\n00:59:59,500 --> 01:00:00,500\ngood morning\n\n"
        "2\n01:00:01,500 --> 01:00:02,500\nall\n\n"
        "3\n01:00:05,000 --> 01:00:09,000\nno words here\n"
    )
    assert to_srt([]) == ""
    assert to_vtt([]) == "WEBVTT\n"


def test_json_has_words_and_times():
    transcript = Transcript("a.wav", "hé", 1.0, None, (segment([("hé", 0.04 / 3, 0.5)]),))
    line = json.loads(transcript.to_json())
    assert line["file"] == "a.wav"
    assert line["segments"][0]["words"] == [{"word": "hé", "start": 0.013, "end": 0.5, "confidence": 0.5}]
    assert "hé" in transcript.to_json()
    assert [word.word for word in transcript.words] == ["hé"]
