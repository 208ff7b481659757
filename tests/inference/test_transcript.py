"""Subtitles: readable, in order, and with every word that was heard."""

import itertools
import json
import math
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.text import scripts
from jax_speechlm.decoding.ctc.alignment import Word
from jax_speechlm.inference.asr.base import Transcription
from jax_speechlm.inference.transcript import Segment, Transcript, phrases, to_srt, to_vtt

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


def test_confidence_is_a_probability_and_avg_logprob_its_logarithm():
    found = Segment(0.0, 1.0, "he", math.log(0.25), (Word("he", 0.0, 1.0, 0.5),))
    assert (found.confidence, found.words[0].confidence) == (pytest.approx(0.25), 0.5)
    (line,) = json.loads(Transcript("a.wav", "he", 1.0, None, (found,)).to_json())["segments"]
    assert (line["confidence"], line["avg_logprob"]) == (0.25, round(math.log(0.25), 4))
    assert line["words"][0]["confidence"] == 0.5
    (phrase,) = phrases([found])
    assert (phrase.confidence, phrase.avg_logprob) == (pytest.approx(0.5), pytest.approx(math.log(0.5)))
    assert Transcription("he", math.log(0.25)).avg_logprob == math.log(0.25)


UNSPACED = {
    "Chinese": "今天天气非常好我们决定一起去公园散步然后在湖边的小餐馆吃午饭并且讨论下个星期的旅行计划" * 3,
    "Japanese": "今日はとても天気が良いので公園まで散歩に行ってから湖のそばの小さな食堂で昼ごはんを食べました" * 3,
    "Thai": "วันนี้อากาศดีมากพวกเราจึงตัดสินใจไปเดินเล่นที่สวนสาธารณะแล้วกินข้าวกลางวันที่ร้านอาหารริมน้ำ" * 3,
    "Khmer": "ថ្ងៃនេះអាកាសធាតុល្អណាស់យើងសម្រេចចិត្តទៅដើរលេងនៅសួនច្បារ" * 4,
    "mixed": "我们用JAX训练语音模型 and then we went home 然后回家了" * 5,
}


def check_subtitles(segments: list[Segment], text: str) -> None:
    blocks = [block.strip().split("\n") for block in to_srt(segments).split("\n\n")]
    assert "".join("".join(lines) for _, _, *lines in blocks).replace(" ", "") == text.replace(" ", "")
    assert len(blocks) > 1
    for _, clock, *lines in blocks:
        start, end = (seconds(match) for match in re.findall(TIME, clock))
        assert start < end <= start + 7.001
        assert len(lines) <= 2
        for line in lines:
            assert unicodedata.category(line[0])[0] != "M"
            assert (
                sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line if not unicodedata.combining(c)) <= 84
            )
            assert len([c for c in line if unicodedata.category(c)[0] != "M"]) <= 42


@pytest.mark.parametrize("script", UNSPACED)
@pytest.mark.parametrize("timed", [True, False])
def test_scripts_without_spaces_have_two_lines_for_seven_seconds(script, timed):
    text = UNSPACED[script]
    parts = scripts.words(text)
    said = tuple(Word(part, 0.2 * place, 0.2 * place + 0.15, 0.5) for place, part in enumerate(parts))
    found = Segment(0.0, 0.2 * len(parts), text, -0.5, said if timed else ())
    check_subtitles([found], text)
    for phrase in phrases([found]):
        assert phrase.text in text  # no spaces but its own
        assert [word.word for word in phrase.words] == (scripts.words(phrase.text) if timed else [])


def test_a_long_segment_without_times_has_two_lines_for_seven_seconds():
    text = "what a speech language model writes comes without the times of its words " * 6
    check_subtitles([Segment(0.0, 30.0, text.strip(), -0.5)], text)
    (whole,) = phrases([Segment(0.0, 5.0, "short enough", -0.5)])
    assert whole.text == "short enough"
    ((_, clock, _),) = [block.strip().split("\n") for block in to_srt([Segment(0.0, 25.0, "hm", -0.5)]).split("\n\n")]
    assert [seconds(match) for match in re.findall(TIME, clock)] == [0.0, 7.0]


def test_segments_in_scripts_without_spaces_join_without_one():
    assert scripts.join(["今天", "天气", "OK", "", "好"]) == "今天天气 OK 好"
    assert scripts.join(["how", "are you"]) == "how are you"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天\uff0c天气 abc好。", ["今", "天\uff0c", "天", "气", "abc", "好。"]),
        ("「日本」の", ["「日", "本」", "の"]),
        ("น้ำดื่ม", ["น้ำ", "ดื่", "ม"]),
        ("ខ្មែរ", ["ខ្មែ", "រ"]),
        ("한국어 문장, it's", ["한국어", "문장,", "it's"]),
        ("मुझे चाय", ["मुझे", "चाय"]),
        ("", []),
    ],
)
def test_words_of_scripts_without_spaces(text, expected):
    assert scripts.words(text) == expected
