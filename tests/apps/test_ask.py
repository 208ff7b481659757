"""The commands of docs/question_answering.md, and spoken questions of tones to a recognizer that knows them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.inference.synthesize import Speech, Synthesizer
from tests.pages import blocks, commands, read
from tests.trained_tones import RATE, speak, trained_run

NOTES = """\
Quicksort is a sorting algorithm.
It was invented by Tony Hoare.

A worm is a program that spreads itself over a network. The first worm was released in 1988.
"""
FACTS = "Quicksort,inventor,Tony Hoare\nQuicksort,year,1959\nTony Hoare,born in,Colombo\n"
LETTERS = "abc cab\n\nbca acb acb\n"


class Voice:
    """A voice of one second of a tone."""

    def __init__(self):
        self.said = []

    def synthesize(self, texts):
        self.said += texts
        samples = np.sin(np.arange(RATE) / 10).astype(np.float32) / 2
        return [Speech(samples, RATE, np.ones(1, np.int32), np.zeros((1, 1), np.float32)) for _ in texts]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text(NOTES)
    Path("facts.csv").write_text(FACTS)
    Path("runs").mkdir()
    Path("runs/asr").symlink_to(trained_run())
    soundfile.write("question.wav", speak("bca acb")[0], RATE)
    soundfile.write("silence.wav", np.zeros(RATE, np.int16), RATE)
    soundfile.write("worm.wav", speak("abc")[0], RATE)
    voice = Voice()
    monkeypatch.setattr(Synthesizer, "load", classmethod(lambda cls, *_: voice))
    return voice


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_the_commands_of_the_page(workplace, capsys):
    page = read("question_answering.md")
    Path("people.yaml").write_text(blocks(page, "yaml")[0])
    shown, questions = blocks(page, "json")
    Path("questions.jsonl").write_text(questions)
    of_page = commands(page)
    assert [words[0] for words in of_page] == ["index-text", *["ask"] * 7]
    answers = []
    for words in of_page:
        assert cli.main(words) == 0, words
        answers.append(lines(capsys))
    assert answers[1] == [json.loads(shown)]
    assert [line["answer"] for line in answers[2]] == ["Tony Hoare", "1959"]
    assert answers[3][0]["say"] == "Tony Hoare was born in Colombo."
    assert (answers[4][0]["file"], answers[4][0]["answer"]) == ("question.wav", None)
    assert workplace.said == ["The inventor of Quicksort is Tony Hoare."]
    assert soundfile.info("answer.wav").duration == 1.0
    typed = json.loads(Path("indexes/notes-questions/report.json").read_text())
    assert (typed["scores"][0]["answerable"], typed["scores"][0]["refused"]) == (1, 1.0)
    assert typed["scores"][0]["f1"] == pytest.approx(2 * 2 / (6 + 2))  # of "first worm was released in 1988"
    spoken = json.loads(Path("reports/spoken/report.json").read_text())
    assert (spoken["scores"][1]["silent"], spoken["compared"]) == (1.0, 1)
    assert spoken["loss"] == pytest.approx(0.5)


def test_questions_are_asked_in_speech(workplace, capsys):
    Path("letters.txt").write_text(LETTERS)
    assert cli.main(["index-text", "letters.txt", "--out", "index"]) == 0
    capsys.readouterr()
    assert cli.main(["ask", "index", "question.wav", "silence.wav", "--asr", "runs/asr"]) == 0
    found, silent = lines(capsys)
    assert (found["question"], found["source"]) == ("bca acb", "letters.txt:3")
    assert found["answer"] == found["passage"] == "bca acb acb"
    assert (silent["question"], silent["answer"], silent["say"]) == ("", None, "I do not know.")
    Path("not.wav").write_text("no audio")
    assert cli.main(["ask", "index", "not.wav", "question.wav", "--asr", "runs/asr"]) == USER_ERROR
    captured = capsys.readouterr()
    assert "not.wav" in captured.err
    assert json.loads(captured.out)["question"] == "bca acb"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("index-text --out index", "nothing to index"),
        ("index-text none.txt --out index", "no such file"),
        ("index-text empty.txt --out index", "no passages"),
        ("index-text notes.txt --out index --language xx", "--language xx"),
        ("ask facts.csv", "ask a question"),
        ("ask facts.csv what --questions q.jsonl", "one of the two"),
        ("ask facts.csv what --out a.wav", "--tts"),
        ("ask facts.csv what that --tts runs/voice --out a.wav", "one question"),
        ("ask facts.csv what --reader runs/asr", "are for indexes"),
        ("ask facts.csv --questions none.jsonl", "does not exist"),
        ("ask facts.csv what --templates none", "shipped ones are general"),
        ("ask none.csv what", "none.csv"),
        ("ask none what", "no complete index"),
        ("ask runs/asr what", "no complete index"),
        ("ask notes.txt what", "no index"),
    ],
)
def test_errors_say_what_to_do(workplace, capsys, command, message):
    Path("empty.txt").write_text("\n")
    assert cli.main(command.split()) == USER_ERROR
    assert message in capsys.readouterr().err
    assert not Path("index").exists()
