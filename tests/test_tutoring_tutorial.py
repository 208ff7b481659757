"""The commands of docs/tutoring.md, on readings of tones."""

import json
from pathlib import Path

import soundfile

from jax_speechlm import cli
from tests.apps.test_answer_scores import graded
from tests.pages import commands, read
from tests.trained_tones import speak, trained_run

PROMPTS = ["abc ca bab", "cab bc", "ac bca cb", "ba cac", "bcb ab ca", "cb abc"]


def test_the_tutorial_runs_from_a_reading_to_practice(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("reading.wav", speak("abc abc ca cac", 1)[0], 16_000)
    Path("text.txt").write_text("abc ca bab cac")
    rows = []
    for number, text in enumerate(PROMPTS):
        soundfile.write(f"{number}.wav", speak(text, number)[0], 16_000)
        rows.append({"audio": f"{number}.wav", "text": text, "split": "test"})
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["prepare", "--manifest", "prompts.jsonl", "--name", "prompts"]) == 0
    Path("graded.jsonl").write_text("\n".join(json.dumps(row._asdict()) for row in graded()))
    answers = [{key: value for key, value in row._asdict().items() if key != "score"} for row in graded()]
    Path("answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    Path("runs").mkdir()
    Path("runs/asr").symlink_to(trained_run())

    lines = commands(read("tutoring.md"))
    actions = ["read", "validate", "fit", "score", "practice", "practice", "export", "erase"]
    assert [words[:2] for words in lines] == [["tutor", action] for action in actions]
    capsys.readouterr()
    printed = {}
    for words in lines:
        assert cli.main(words) == 0, words
        printed[words[1]] = capsys.readouterr().out

    summary = json.loads(printed["read"])
    assert (summary["correct"], summary["left out"], summary["repeated"]) == (3, 1, 1)
    assert "bab" in Path("reading-reading/index.html").read_text()
    area = json.loads(Path("runs/asr/tutor/prompts-test/report.json").read_text())
    assert area["free"] > 0.9
    assert area["utterances"] == 6
    assert (area["recorded_correct"], area["replaced_correct"]) == (area["words"] - 6, 0)
    assert json.loads(Path("scorer-report/report.json").read_text())["kappa"] > 0.9
    assert json.loads(printed["score"].splitlines()[0])["score"] == 2
    exported = json.loads(Path("ada.json").read_text())
    assert [item["item"] for item in exported["items"]] == ["bab", "cac"]
    assert "erased 'Ada' with 2 items" in printed["erase"]
    assert b"Ada" not in Path("tutor.sqlite").read_bytes()
