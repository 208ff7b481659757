"""The commands of docs/baselines.md, on words of tones instead of digits."""

import json
from pathlib import Path

import pytest
import soundfile

from jax_speechlm import cli
from tests.pages import commands, read
from tests.trained_tones import speak

WORDS = {"one": "ab", "two": "ba", "three": "cc"}
SMALLER = {
    "pretrain": (
        "--num-steps",
        "2",
        "--loop.eval-every",
        "2",
        "--data.batch-multiple",
        "8",
        "--data.min-seconds",
        "0.1",
    ),
    "finetune": (
        "--num-steps",
        "2",
        "--loop.eval-every",
        "2",
        "--data.batch-multiple",
        "8",
        "--objective.classes",
        *WORDS,
    ),
}
"""What a test does with less of, or with its own classes, by command."""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(24):
        text = list(WORDS)[number % 3]
        soundfile.write(f"{number}.wav", speak(WORDS[text], number)[0], 16_000)
        split = {0: "test", 1: "dev"}.get(number // 3 % 4, "train")
        rows.append({"audio": f"{number}.wav", "text": text, "speaker": "ab"[number // 3 % 2], "split": split})
    Path("digits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("7_theo_3.wav").write_bytes(Path("1.wav").read_bytes())
    return tmp_path


def test_the_tutorial_runs_from_classical_classifiers_to_a_finetuned_encoder(workplace, capsys):
    lines = commands(read("baselines.md"))
    names = ["prepare", "baseline", "classify", "pretrain", "baseline", "finetune", "eval"]
    assert [words[0] for words in lines] == names
    for words in lines:
        assert cli.main([*words, *SMALLER.get(words[0], ())]) == 0, words
        if words[0] == "classify":
            assert json.loads(capsys.readouterr().out.splitlines()[-1])["class"] == "two"
    assert "runs/pretrain" in Path("baselines/report.json").read_text()
    assert list(Path("runs/digits/eval").glob("*/report.json"))
