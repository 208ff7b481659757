"""The commands of docs/commands.md, on orders of tones."""

import json
from pathlib import Path

import pytest
import soundfile

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from tests.pages import commands, read
from tests.trained_tones import speak, trained_run

SIZES, DRINKS = {"ab": "small", "ba": "large"}, {"cac": "latte", "bcb": "iced coffee"}
GRAMMAR = """\
language: en
intents:
  orderDrink:
    data: [{sentences: ["[{size}] {coffeeDrink}"]}]
lists:
  size: {values: [{in: ab, out: small}, {in: ba, out: large}]}
  coffeeDrink: {values: [{in: cac, out: latte}, {in: bcb, out: iced coffee}]}
"""
SMALLER = ["--num-steps", "2", "--loop.eval-every", "2", "--data.batch-multiple", "8", "--model.num-layers", "1"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(16):
        size, drink = list(SIZES)[number % 2], list(DRINKS)[number // 2 % 2]
        soundfile.write(f"{number}.wav", speak(f"{size} {drink}", number)[0], 16_000)
        slots = {"size": SIZES[size], "coffeeDrink": DRINKS[drink]}
        split = {0: "test", 1: "dev"}.get(number // 4, "train")
        rows.append({"audio": f"{number}.wav", "intent": "orderDrink", "slots": slots, "split": split})
    Path("coffee.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("coffee.yaml").write_text(GRAMMAR)
    Path("order.wav").write_bytes(Path("1.wav").read_bytes())
    Path("runs").mkdir()
    Path("runs/asr").symlink_to(trained_run())
    return tmp_path


def test_the_tutorial_runs_from_recordings_to_commands(workplace, capsys):
    lines = commands(read("commands.md"))
    names = ["prepare", "finetune", "eval", "intent", "commands", "commands", "commands"]
    assert [words[0] for words in lines] == names
    for words in lines:
        if words[2:4] == ["--grammar", "coffee"]:
            assert cli.main(words) == USER_ERROR  # the recognizer of tones has three letters
            assert "coffee.yaml, line" in capsys.readouterr().err
            continue
        assert cli.main([*words, *(SMALLER if words[0] == "finetune" else ())]) == 0, words
        if words[1:2] == ["order.wav"]:
            line = json.loads(capsys.readouterr().out)
            assert (line["intent"], line["slots"]) == ("orderDrink", {"size": "large", "coffeeDrink": "latte"})
    folder = Path("runs/asr/eval/coffee-test-commands-constrained")
    (score,) = json.loads((folder / "report.json").read_text())["scores"]
    assert score["exact"] == 1
    assert score["utterances"] == 4
    assert list(Path("runs/intent/eval").glob("*/report.json"))
    prepared = json.loads(Path("runs/intent/config.json").read_text())["objective"]
    assert prepared["slots"][1] == {"name": "size", "values": ["large", "small"]}
