"""The reading tutor, by a recognizer of tones: what is left out, replaced, repeated, and where the reader paused."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.apps.tutoring.page import as_html
from jax_speechlm.apps.tutoring.reading import (
    Reading,
    ReadingTutor,
    ReadWord,
    read_text,
    spoken_form,
)
from jax_speechlm.cli import main
from jax_speechlm.evaluation.read_words import match_words, repetitions
from jax_speechlm.evaluation.replaced_words import report_of
from jax_speechlm.inference.asr.ctc import Recognizer
from tests.trained_tones import RATE, speak, trained_run

TEXT = "abc ca bab cac"


@pytest.fixture(scope="module")
def tutor() -> ReadingTutor:
    return ReadingTutor(Recognizer.load(trained_run()))


class OfPhones(Recognizer):
    """A recognizer whose tokens are phones."""

    tokenizer = types.SimpleNamespace(kind="ipa")
    checkpoint = "runs/ipa"

    def __init__(self):
        pass


def verdicts(reading: Reading) -> list[tuple[str, str]]:
    return [(word.word, word.verdict) for word in reading.words]


def test_a_reading_without_mistakes(tutor):
    samples, words = speak(TEXT, 1)
    reading = tutor.read(TEXT, samples)
    assert verdicts(reading) == [(word, "correct") for word in TEXT.split()]
    for word, (_, start, end) in zip(reading.words, words, strict=True):
        assert word.start == pytest.approx(start, abs=0.1)
        assert word.end == pytest.approx(end, abs=0.1)
        assert word.free > -0.5
        assert word.aligned > -0.5
        assert "".join(token.token for token in word.tokens) == word.word
    summary = reading.summary
    assert (summary["accuracy"], summary["pauses"]) == (1, 0)
    seconds = words[-1][2] - words[0][1]
    assert summary["words a minute"] == pytest.approx(60 * 4 / seconds, rel=0.1)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("abc ca cac", [("abc", "correct"), ("ca", "correct"), ("bab", "left out"), ("cac", "correct")]),
        ("abc ca bcb cac", [("abc", "correct"), ("ca", "correct"), ("bab", "substituted"), ("cac", "correct")]),
        (
            "abc abc ca bab cac",
            [("", "repeated"), ("abc", "correct"), ("ca", "correct"), ("bab", "correct"), ("cac", "correct")],
        ),
        (
            "abc ca ba bab cac",  # a beginning
            [("abc", "correct"), ("ca", "correct"), ("", "repeated"), ("bab", "correct"), ("cac", "correct")],
        ),
        (
            "abc ca bab bcbcb cac",
            [("abc", "correct"), ("ca", "correct"), ("bab", "correct"), ("", "inserted"), ("cac", "correct")],
        ),
    ],
)
def test_mistakes_are_found(tutor, said, expected):
    reading = tutor.read(TEXT, speak(said, 2)[0])
    assert verdicts(reading) == expected
    for word in reading.words:
        assert (word.start is None) == (word.verdict == "left out")
    scores = {word.word: word.free for word in reading.words}
    if "substituted" in dict(expected).values():
        assert scores["bab"] < min(scores["abc"], scores["ca"], scores["cac"]) - 1


def test_a_pause_is_found(tutor):
    first, second = speak("abc ca", 3)[0], speak("bab cac", 4)[0]
    samples = np.concatenate([first, np.random.default_rng(0).normal(0, 20, RATE).astype(np.int16), second])
    reading = tutor.read(TEXT, samples)
    assert [bool(word.pause) for word in reading.words] == [False, False, True, False]
    assert reading.words[2].pause == pytest.approx(1.4, abs=0.15)  # and the gaps of both recordings
    assert (reading.summary["pauses"], reading.summary["longest pause"]) == (1, reading.words[2].pause)


def test_silence_is_a_text_left_out(tutor):
    reading = tutor.read(TEXT, np.zeros(2 * RATE, np.int16))
    assert verdicts(reading) == [(word, "left out") for word in TEXT.split()]
    assert (reading.summary["accuracy"], reading.summary["words a minute"]) == (0, 0)


def test_letters_that_the_recognizer_lacks(tutor):
    samples = speak("abc ca", 5)[0]
    reading = tutor.read("42 Abc, xyz ca!", samples)
    assert verdicts(reading) == [("42", "not judged"), ("Abc,", "correct"), ("xyz", "not judged"), ("ca!", "correct")]
    with pytest.raises(DataError, match="no letter that the recognizer knows"):
        tutor.read("xyz 42", samples)
    assert spoken_form(CharTokenizer("ABC "), "cab-x.") == "CAB"


def test_a_recording_of_several_windows(tutor):
    """Longer than what is encoded at once; words are found across the cuts."""
    text = " ".join([TEXT] * 12)
    samples = speak(text, 6)[0]
    assert len(samples) > 30 * RATE
    reading = tutor.read(text, samples)
    assert reading.count("correct") >= 46
    assert reading.words[-1].end == pytest.approx(len(samples) / RATE - 0.2, abs=0.2)


def test_a_recognizer_of_phones_is_refused():
    with pytest.raises(DataError, match="runs/ipa: recognises ipa"):
        ReadingTutor(OfPhones())


def test_of_a_word_said_twice_the_last_one_counts():
    expected, heard = ["the", "cat", "sat"], ["the", "the", "c", "cat", "sat", "down"]
    edits = match_words(expected, heard)
    assert edits == [(None, 0), (0, 1), (None, 2), (1, 3), (2, 4), (None, 5)]
    assert repetitions(expected, heard, edits) == {0, 2}
    assert match_words([], ["a"]) == [(None, 0)]
    assert match_words(["a"], []) == [(0, None)]


def test_a_phrase_said_again():
    expected, heard = ["on", "the", "mat"], ["on", "the", "on", "the", "mat"]
    edits = match_words(expected, heard)
    assert repetitions(expected, heard, edits) == {theirs for place, theirs in edits if place is None}


def test_the_page_escapes_what_is_read_and_heard():
    words = (ReadWord("<script>alert(1)</script>", "left out", ""), ReadWord("a", "substituted", '"><b onclick=x>&'))
    page = as_html(Reading(words), "<i>title</i>")
    assert "<script" not in page
    assert "<b " not in page
    assert "<i>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&quot;&gt;&lt;b onclick=x&gt;&amp;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_command_writes_words_and_page(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", speak("abc ca cac", 2)[0], RATE)
    (tmp_path / "t.txt").write_text("Abc ca\nbab é cac.\n")
    assert main(["tutor", "read", str(trained_run()), str(tmp_path / "t.txt"), str(tmp_path / "a.wav")]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["left out"] == 1
    assert "'é'" in printed.err
    rows = [json.loads(line) for line in (tmp_path / "a-reading/words.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["correct", "correct", "left out", "not judged", "correct"]
    assert 'class="left-out"' in (tmp_path / "a-reading/index.html").read_text()


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\xff", None])
def test_a_text_that_cannot_be_read_is_named(tmp_path, content):
    path = Path(tmp_path / "text.txt")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"text\.txt"):
        read_text(path)


def test_the_area_of_replaced_words():
    scores = [[(False, -0.1, -0.2, True), (True, -5.0, -0.1, False)]] * 40
    report = report_of(scores, 3, checkpoint="runs/a", sets=("tones",), split="test")
    assert (report.aligned, report.free) == (1.0, 0.0)
    assert report.aligned_interval == (1.0, 1.0)
    assert (report.utterances, report.words, report.skipped) == (40, 80, 3)
    assert (report.recorded_correct, report.replaced_correct) == (40, 0)
    assert report_of(scores[:2], 0).free_interval is None
    with pytest.raises(DataError, match="no utterance could be scored"):
        report_of([], 3)
