"""The commands of docs/own_speech.md and docs/bigger_machine.md, on recordings of tones and with tiny models."""

import json
import re
from pathlib import Path

import pytest
import soundfile

from jax_speechlm import cli
from tests.pages import blocks, commands, read
from tests.trained_tones import speak

SHORT = ("--data.row-seconds", "4", "--data.max-seconds", "4", "--data.seconds-per-batch", "32")
TINY = ("--model.dim", "16", "--model.num-heads", "2", "--model.num-layers", "1", "--data.batch-multiple", "8", *SHORT)
MORE = {"pretrain": TINY, "finetune": (*TINY, "--objective.intermediate"), "plan": (*TINY, "--objective.intermediate")}
"""Options that the commands get besides those of the page."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "recordings").mkdir()
    rows = []
    for number in range(10):
        text = "abc ca bab cac"[: 4 + number]
        file = f"recordings/{number:04d}.wav"
        soundfile.write(folder / file, speak(text, number)[0], 16_000)
        split = {0: "test", 1: "dev"}.get(number % 5, "train")
        rows.append({"audio": file, "text": text.strip().upper() + ".", "speaker": "ada", "split": split})
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_the_way_from_recordings_to_a_transcript(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    lines = commands(read("own_speech.md"))
    assert [words[0] for words in lines] == ["prepare", "pretrain", "finetune", "eval", "transcribe"]
    for words in lines:
        fewer = ["2" if words[place - 1] == "--num-steps" else word for place, word in enumerate(words)]
        assert cli.main([*fewer, *MORE.get(words[0], ())]) == 0, words
    printed = capsys.readouterr().out
    assert re.search(r"compiling the step for 8 rows of [\d.]+ s \(shape 1 of \d\)", printed)
    assert re.search(r"reference +abc\b.*\n +hypothesis", printed)
    assert list(Path("runs/mine/eval").glob("*/report.json"))
    assert [path.name for path in Path("data/mine/index").iterdir()]


def test_the_way_from_a_laptop_to_a_slice(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    page = read("bigger_machine.md")
    (recipe,) = blocks(page, "python")
    Path(recipe.partition("\n")[0].removeprefix("# ")).write_text(recipe)
    if not Path("data/mine").exists():
        assert cli.main(["prepare", "--manifest", "mine.jsonl", "--normalise-text", "basic", "--language", "en"]) == 0
    plan, finetune, *launches = commands(page)
    assert cli.main([*plan, "--topology", "cpu-8", *MORE["plan"]]) == 0
    printed = capsys.readouterr().out
    assert "8 chips: data 8" in printed
    assert cli.main([*finetune, *SHORT, "--objective.intermediate", "1"]) == 0
    assert list(Path("runs/try/checkpoints").iterdir())
    capsys.readouterr()
    for words in launches:
        assert cli.main(words) == 0, words
    printed = capsys.readouterr().out
    assert "gcloud" in printed
    assert "sbatch" in printed
