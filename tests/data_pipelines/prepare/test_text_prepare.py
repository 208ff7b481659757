"""Preparation of text end to end: what is stored, how it is divided, and what stops it."""

import errno
import fcntl
import io
import itertools
import json

import pytest
from rich.console import Console

from data_pipelines.core.errors import DataError
from data_pipelines.prepare import job as preparation
from data_pipelines.prepare import prepared_set
from data_pipelines.prepare.job import prepare
from data_pipelines.prepare.report import PreparationReport, TextReport
from data_pipelines.storage.index import read_index, read_sets, splits_of
from data_pipelines.text.cleaning import Cleaning
from data_pipelines.text.normalize import split_key, split_of, text_split_of
from tests.data_pipelines.prepared import noise, write_prepared
from tests.data_pipelines.text_sets import write_text_set

PLAIN = Cleaning(steps=("unicode", "length", "exact"))


@pytest.fixture
def corpus(tmp_path):
    """Two hundred different lines, in two files."""
    for name in ("first", "second"):
        rows = "".join(f"This is line {number} of the {name} file.\n" for number in range(100))
        (tmp_path / f"{name}.txt").write_text(rows, "utf-8")
    return str(tmp_path / "*.txt")


def stored(folder):
    return {split: read_index(folder, split).column("text").to_pylist() for split in splits_of(folder)}


def all_texts(folder):
    return list(itertools.chain(*stored(folder).values()))


def test_a_prepared_set_of_text(corpus, tmp_path):
    report = prepare("my", text=(corpus,), data_dir=tmp_path / "data", cleaning=PLAIN)
    folder = tmp_path / "data/my"
    splits = stored(folder)
    assert list(splits) == ["train", "dev", "test"]
    assert sorted(all_texts(folder)) == sorted(
        f"This is line {number} of the {name} file." for name in ("first", "second") for number in range(100)
    )
    for split, texts in splits.items():
        assert {text_split_of(split_key(text)) for text in texts} == {split}
        index = read_index(folder, split)
        sizes = [len(text.encode()) for text in texts]
        assert index.parts[0].lengths("num_bytes").tolist() == sizes
        assert report.splits[split] == {
            "documents": len(texts),
            "words": sum(len(text.split()) for text in texts),
            "bytes": sum(sizes),
        }
        assert set(index.column("source").to_pylist()) <= {"first", "second"}
    assert len(splits["test"]) == pytest.approx(20, abs=10)
    assert {name: row["read"] for name, row in report.sources.items()} == {"first": 100, "second": 100}
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    assert (meta["kind"], meta["splits"]["train"]["num_documents"]) == ("text", len(splits["train"]))
    assert {path.name for path in folder.iterdir()} == {"meta.json", "report.json", "index", ".lock"}


def test_what_is_dropped_is_counted_and_printed(corpus, tmp_path):
    (tmp_path / "third.txt").write_text("This is line 1 of the first file.\n[x]\n", "utf-8")
    report = prepare("my", text=(corpus,), data_dir=tmp_path / "data", cleaning=Cleaning(("exact", "length"), (), 5))
    assert {reason: row["count"] for reason, row in report.dropped.items()} == {
        "copy of an earlier document": 1,
        "shorter than 5 characters": 1,
    }
    printed = io.StringIO()
    report.print(Console(file=printed, width=120))
    for word in ("200 documents", "third", "copy of an earlier", "dev"):
        assert word in printed.getvalue()


def test_a_prepared_set_is_recognised_until_something_changes(corpus, tmp_path, monkeypatch):
    calls = []
    prepare_text = preparation.prepare_text
    monkeypatch.setattr(preparation, "prepare_text", lambda *a, **k: calls.append(1) or prepare_text(*a, **k))

    def again(**changes):
        calls.clear()
        options = {"text": (corpus,), "cleaning": PLAIN} | changes
        assert isinstance(prepare("my", data_dir=tmp_path / "data", **options), TextReport)
        return len(calls)

    assert [again(), again(), again(force=True)] == [1, 0, 1]
    assert [again(unit="file"), again(unit="file"), again()] == [1, 0, 1]
    assert again(cleaning=Cleaning(steps=("unicode",))) == 1
    assert again() == 1
    (tmp_path / "first.txt").write_text("Another text.\n", "utf-8")
    assert [again(), again()] == [1, 0]
    (tmp_path / "data/my/index/dev.parquet").write_bytes(b"damaged")
    assert [again(), again()] == [1, 0]


def test_a_document_stays_in_its_split_whatever_the_steps(corpus, tmp_path):
    prepare("a", text=(corpus,), data_dir=tmp_path, cleaning=PLAIN)
    prepare("b", text=(corpus,), data_dir=tmp_path, cleaning=Cleaning(("language", "sentences", "spoken"), ("en",)))
    splits = stored(tmp_path / "a"), stored(tmp_path / "b")
    for split in splits[0]:
        assert len(splits[0][split]) == len(splits[1][split])
    assert "this is line one of the first file" in all_texts(tmp_path / "b")


def test_no_training_text_is_a_whole_test_sentence_of_speech():
    keys = [f"sentence {number}" for number in range(2000)]
    assert {key for key in keys if split_of(key) == "test"} == {key for key in keys if text_split_of(key) != "train"}
    assert sum(text_split_of(key) == "test" for key in keys) == pytest.approx(200, abs=40)


def test_sentences_of_speech_sets_are_held_out(tmp_path):
    clip = noise(0, 900)
    write_prepared(
        tmp_path / "speech", {"train": [(clip, "kept words of train")], "test": [(clip, "out with this line")]}
    )
    (tmp_path / "a.txt").write_text("Out with this line!\nKept words of train\nAnother line", "utf-8")
    cleaning = Cleaning(steps=("unicode",), held_out=("speech",))
    report = prepare("my", text=(str(tmp_path / "a.txt"),), data_dir=tmp_path, unit="file", cleaning=cleaning)
    assert report.dropped["line with a held-out sentence"]["count"] == 1
    assert all_texts(tmp_path / "my") == ["Kept words of train\nAnother line"]
    (split,) = splits_of(tmp_path / "my")
    texts = read_sets(tmp_path, (f"my:{split}", "speech"), "train").column("text").to_pylist()
    assert texts == ["Kept words of train\nAnother line", "kept words of train"]  # speech and text side by side
    write_text_set(tmp_path / "speech", {"train": ["x"], "test": ["another line"]})
    prepare("my", text=(str(tmp_path / "a.txt"),), data_dir=tmp_path, unit="file", cleaning=cleaning)
    assert all_texts(tmp_path / "my") == ["Out with this line!\nKept words of train"]


def test_too_many_bad_lines_stop_the_run_and_leave_no_set(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good line\nn\xe4her\n" * 300)
    with pytest.raises(
        DataError, match=r"bad items, more than the 50 allowed(.|\n)*a\.txt: byte 11 \(line 2\) is not utf-8"
    ):
        prepare("my", text=(str(tmp_path / "a.txt"),), data_dir=tmp_path / "data")
    assert not (tmp_path / "data/my/meta.json").exists()
    latin = prepare(
        "my", text=(str(tmp_path / "a.txt"),), data_dir=tmp_path / "data", encoding="latin-1", cleaning=PLAIN
    )
    assert latin.dropped["copy of an earlier document"]["count"] == 598


def test_nothing_left(tmp_path):
    (tmp_path / "a.txt").write_text("short\n", "utf-8")
    with pytest.raises(DataError, match="my: nothing is left of 1 documents"):
        prepare("my", text=(str(tmp_path / "a.txt"),), data_dir=tmp_path, cleaning=Cleaning(("length",), (), 50))


def test_full_disk(corpus, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared_set.pyarrow.parquet.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match="the disk is full"):
        prepare("my", text=(corpus,), data_dir=tmp_path / "data", cleaning=PLAIN)


def test_two_preparations_of_one_set_do_not_meet(corpus, tmp_path):
    folder = tmp_path / "data/my"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="data/my: another process is preparing this set"):
            prepare("my", text=(corpus,), data_dir=tmp_path / "data", cleaning=PLAIN)
    prepare("my", text=(corpus,), data_dir=tmp_path / "data", cleaning=PLAIN)


def test_text_needs_a_name(corpus, tmp_path):
    with pytest.raises(DataError, match="--name my-text"):
        prepare(text=(corpus,), data_dir=tmp_path)


def run(*argv):
    preparation.main([str(argument) for argument in argv], "jax-speechlm prepare")


def test_the_command_line_is_the_function(corpus, tmp_path, capsys):
    run("my", "--text", corpus, "--data-dir", tmp_path / "data", "--steps", "unicode", "exact", "--min-characters", "2")
    request = json.loads((tmp_path / "data/my/meta.json").read_text("utf-8"))["request"]
    assert request["cleaning"]["steps"] == ["unicode", "exact"]
    assert request["cleaning"]["min_characters"] == 2
    assert "200 documents" in capsys.readouterr().out
    run(
        "--name",
        "my",
        "--text",
        corpus,
        "--data-dir",
        tmp_path / "data",
        "--steps",
        "unicode",
        "exact",
        "--min-characters",
        "2",
    )
    with pytest.raises(SystemExit):
        run("--help")
    assert "--held-out" in capsys.readouterr().out


def test_the_command_line_takes_several_names(tmp_path, monkeypatch, capsys):
    names = []
    report = PreparationReport("x", {}, {}, 0, 0.0, 0, {}, 0, {}, [], 0.0, [], 0.0)
    monkeypatch.setattr(preparation, "find_prepared", lambda folder, request: names.append(folder.name) or True)
    monkeypatch.setattr(preparation.PreparationReport, "load", lambda path: report)
    run("asterisk-en", "queen-en", "--data-dir", tmp_path)
    assert names == ["asterisk-en", "queen-en"]
    with pytest.raises(DataError, match="but 2 names are given"):
        run("a", "b", "--text", "c")
    with pytest.raises(DataError, match="name a data set"):
        run()
