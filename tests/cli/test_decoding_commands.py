"""Decoding by the commands that a user types: language models by name, tuned weights, alignments, clear errors."""

import json
from pathlib import Path

import pytest

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation.report import EvaluationReport
from tests.test_end_to_end import workplace  # noqa: F401  the fixture: a small recognizer of tones

pytest.importorskip("kenlm", reason="n-gram models need kenlm: pip install -e '.[ngram]'")


@pytest.fixture(scope="module")
def files(workplace):  # noqa: F811
    """The workplace, its data option, and an n-gram of the training transcripts, which are one word each."""
    lm = workplace / "tones.arpa"
    data = f"--data-dir={workplace / 'data'}"
    assert cli.main(["train-ngram", "--sets", "tones", "--unit", "char", "--order", "3", "--out", str(lm), data]) == 0
    return workplace, data, lm


def evaluate(files, *options: str) -> EvaluationReport:
    folder, data, _ = files
    out = folder / "decoded"
    assert cli.main(["eval", str(folder / "finetune"), "--sets", "tones", data, f"--out={out}", *options]) == 0
    return EvaluationReport.load(out / "report.json")


def test_eval_tunes_on_dev_and_names_what_it_used(files, capsys):
    folder, _, lm = files
    (folder / "words.txt").write_text("abc\n")
    report = evaluate(files, f"--lm={lm}", f"--boost={folder / 'words.txt'}", "--beam-size=4")
    assert report.decoder.startswith(f"prefix beam 4 + {lm} (alpha ")
    assert "words.txt" in report.decoder
    assert report.decoder.endswith("weights tuned on dev of tones")
    assert report.decoder in capsys.readouterr().out
    assert len(report.utterances) == 8


def test_given_weights_are_taken_as_they_are(files):
    _, _, lm = files
    report = evaluate(files, f"--lm={lm}", "--alpha=0.25", "--beta=2", f"--rescore={lm}", "--rescore-alpha=0.5")
    assert report.decoder.endswith("weights tuned on dev of tones")  # one was missing
    report = evaluate(files, f"--lm={lm}", "--alpha=0.25", "--beta=2")
    assert report.decoder == f"prefix beam 16 + {lm} (alpha 0.25, beta 2)"
    assert evaluate(files).decoder == "greedy"


def test_transcribe_with_a_language_model(files, capsys):
    folder, _, lm = files
    run = ["transcribe", str(folder / "finetune"), str(folder / "0.wav"), f"--lm={lm}", "--format", "json"]
    assert cli.main(run) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"] is None


@pytest.mark.parametrize("format", ["ctm", "json", "textgrid"])
def test_align_writes_the_times_of_words(files, format, capsys):
    folder, data, _ = files
    out = folder / f"aligned-{format}"
    run = ["align", str(folder / "finetune"), "--sets", "tones", data, f"--out={out}", f"--format={format}"]
    assert cli.main(run) == 0
    assert "left out" in capsys.readouterr().out
    if format == "textgrid":
        assert len(list(out.glob("*.TextGrid"))) == 8
        return
    (file,) = out.iterdir()
    lines = file.read_text().splitlines()
    assert len(lines) == 8  # a word an utterance
    if format == "json":
        words = [json.loads(line) for line in lines]
        assert all(0 <= each["words"][0]["start"] < each["words"][0]["end"] for each in words)


def test_align_reads_files_and_leaves_out_what_is_too_short(files, capsys):
    folder, _, _ = files
    for name, text in (("0", "abc"), ("1", "abc" * 40)):
        (folder / f"{name}.txt").write_text(text)
    out = folder / "aligned-files"
    run = ["align", str(folder / "finetune"), str(folder / "0.wav"), str(folder / "1.wav"), f"--out={out}"]
    assert cli.main(run) == 0
    printed = capsys.readouterr()
    assert "1: " in printed.err
    assert "cannot hold the 120" in printed.err
    assert "1 utterances, 1 left out" in printed.out
    assert cli.main(["align", str(folder / "finetune"), str(folder / "2.wav")]) == USER_ERROR
    assert "2.txt does not exist" in capsys.readouterr().err
    assert cli.main(["align", str(folder / "finetune")]) == USER_ERROR
    assert "--sets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--lm=nothing.arpa", "nothing.arpa does not exist"),
        ("--lm={folder}/tones.jsonl", "tones.jsonl is not a readable n-gram model"),
        ("--boost=nothing.txt", "nothing.txt does not exist"),
        ("--lm={folder}/finetune", "name a run that was trained by causal_lm"),
    ],
)
def test_a_language_model_that_cannot_be_used_is_named(files, option, message, capsys):
    folder, data, _ = files
    run = ["eval", str(folder / "finetune"), "--sets", "tones", data, option.format(folder=Path(folder))]
    assert cli.main(run) == USER_ERROR
    assert message in capsys.readouterr().err
