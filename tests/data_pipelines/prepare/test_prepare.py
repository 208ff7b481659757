"""Preparation end to end, from a manifest: what is stored, what is dropped, and what a kill leaves behind."""

import errno
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from data_pipelines.audio.clips import AudioFile, Clip
from data_pipelines.audio.decode import decode_flac
from data_pipelines.core.errors import DataError
from data_pipelines.prepare import convert, speech_store
from data_pipelines.prepare.job import prepare
from data_pipelines.sources.speech_formats import MANIFEST, speech_source
from data_pipelines.storage import index
from data_pipelines.storage.records import RecordReader
from data_pipelines.text.normalize import split_key, split_of

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def speech(seed: int, seconds: float = 0.5, gain: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, gain, round(16_000 * seconds)).clip(-1, 1)


@pytest.fixture
def manifest(tmp_path):
    """Twelve good clips, in a folder of their own."""
    rows = []
    for number, word in enumerate(WORDS):
        soundfile.write(tmp_path / f"{number}.wav", speech(number, 0.5 + number / 10), 16_000)
        row = {"audio": f"{number}.wav", "text": word.title(), "id": f"clip {number}", "speaker": f"s{number % 3}"}
        rows.append(row | {"language": "en", "split": ("train", "dev", "test")[number % 3]})
    return write_manifest(tmp_path / "my.jsonl", rows)


def write_manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def add_rows(manifest: Path, *rows: dict) -> None:
    with manifest.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_prepared_set_holds_what_the_manifest_lists(manifest, tmp_path):
    report = prepare(manifest=manifest, data_dir=tmp_path / "data")
    folder = tmp_path / "data/my"
    assert (report.clips, report.speakers, report.dropped) == (12, 3, {})
    assert {split: row["clips"] for split, row in report.splits.items()} == {"train": 4, "dev": 4, "test": 4}
    assert report.hours == pytest.approx(sum(0.5 + n / 10 for n in range(12)) / 3600)
    assert sum(report.histogram.values()) == 12
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    assert (meta["name"], meta["builder"], meta["sample_rate"], meta["version"]) == ("my", "manifest", 16_000, "1.0.0")
    assert set(meta["splits"]["train"]) == {"num_clips", "hours", "index", "index_sha256"}
    assert not (folder / "work").exists()

    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder / meta["tfds_dir"])
    for split in meta["splits"]:
        rows = index.read_index(folder, split)
        records = builder.as_data_source(split)
        assert len(rows) == len(records) == 4
        for row, record in enumerate(records):  # row i of the index is record i
            number = int(record["id"].decode().removeprefix("clip "))
            assert rows.column("id")[row].as_py() == record["id"].decode()
            assert rows.column("text")[row].as_py() == record["text"].decode() == WORDS[number].title()
            assert rows.column("speaker")[row].as_py() == record["speaker"].decode() == f"s{number % 3}"
            assert rows.num_samples[row] == record["num_samples"] == 8_000 + 1_600 * number
            expected, _ = soundfile.read(tmp_path / f"{number}.wav", dtype="int16")
            np.testing.assert_array_equal(decode_flac(record["audio"]), expected)
        RecordReader(rows)  # the loader's reader agrees with the index


def test_bad_items_are_dropped_counted_and_named(manifest, tmp_path):
    def wav(name, samples, rate=16_000):
        soundfile.write(tmp_path / name, samples, rate)
        return {"audio": name, "text": name}

    (tmp_path / "empty.wav").touch()
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF....WAVEjunk" * 20)
    add_rows(
        manifest,
        wav("silent.wav", np.zeros(8_000)),
        wav("no_samples.wav", np.zeros(0)),
        wav("clipped.wav", speech(1, gain=3.0)),
        wav("many.wav", np.repeat(speech(1, 1.2)[:, None], 8, 1), 192_000),
        wav("long.wav", speech(1, 21.0)),
        {"audio": "empty.wav", "text": "a"},
        {"audio": "corrupt.wav", "text": "a"},
        {"audio": "missing.wav", "text": "a"},
        {"audio": "1.wav", "id": "clip 0"},
        {"audio": "2.wav", "id": "no text"},
        {"audio": 3},
    )
    report = prepare(manifest=manifest, data_dir=tmp_path / "data", max_seconds=20, max_bad=0.5)
    assert {reason: row["count"] for reason, row in report.dropped.items()} == {
        "silent": 1,
        "no samples": 1,
        "too long": 1,
        "empty file": 1,
        "cannot be decoded": 1,
        "no such file": 1,
        "duplicate id": 1,
        "malformed line": 1,
    }
    assert [reason for reason, row in report.dropped.items() if not row["is_bad"]] == ["too long"]
    assert all(row["detail"] for row in report.dropped.values())
    assert report.clips == 12 + 3
    assert report.clipped == ["clipped.wav"]
    assert report.without_text == 1
    printed = io.StringIO()
    report.print(Console(file=printed, width=160))
    assert all(reason in printed.getvalue() for reason in report.dropped)


def test_too_many_bad_items_stop_the_run_and_nothing_is_lost(manifest, tmp_path):
    add_rows(manifest, *({"audio": f"missing{number}.wav"} for number in range(4)))
    with pytest.raises(DataError, match=r"2 bad items, more than the 1 allowed(.|\n)*missing0\.wav: no such file"):
        prepare(manifest=manifest, data_dir=tmp_path / "data", max_bad=0.1)
    assert not (tmp_path / "data/my/meta.json").exists()
    journal = (tmp_path / "data/my/work/journal.jsonl").read_text("utf-8")
    assert len(journal.splitlines()) == 12
    assert prepare(manifest=manifest, data_dir=tmp_path / "data", max_bad=0.5).clips == 12


def test_a_killed_preparation_goes_on_where_it_was(manifest, tmp_path, monkeypatch):
    decoded = []
    decode = AudioFile.decode

    def killed_at_the_seventh(self, *limits):
        if len(decoded) == 6:
            raise KeyboardInterrupt
        decoded.append(Path(self.path).name)
        return decode(self, *limits)

    monkeypatch.setattr(AudioFile, "decode", killed_at_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        prepare(manifest=manifest, data_dir=tmp_path / "data", num_workers=1)
    journal = tmp_path / "data/my/work/journal.jsonl"
    journal.write_text(journal.read_text("utf-8")[:-10], "utf-8")  # the kill came in the middle of a line
    first, decoded[:] = list(decoded), []
    monkeypatch.setattr(
        AudioFile, "decode", lambda self, *limits: decoded.append(Path(self.path).name) or decode(self, *limits)
    )
    soundfile.write(tmp_path / "1.wav", speech(99, 0.7), 16_000)  # one recording was replaced in between
    report = prepare(manifest=manifest, data_dir=tmp_path / "data", num_workers=1)
    assert report.clips == 12
    assert sorted(decoded) == sorted({f"{number}.wav" for number in range(12)} - set(first[:5]) | {"1.wav"})
    stored = index.read_index(tmp_path / "data/my", "dev")
    assert dict(zip(stored.column("id").to_pylist(), stored.num_samples, strict=True))["clip 1"] == 11_200


def test_a_prepared_set_is_recognised_until_something_changes(manifest, tmp_path, monkeypatch):
    calls = []

    def counting(*args):
        calls.append(args)
        return speech_store.store(*args)

    monkeypatch.setattr("data_pipelines.prepare.job.store", counting)

    def again(**changes):
        calls.clear()
        prepare(manifest=manifest, data_dir=tmp_path / "data", **changes)
        return len(calls)

    folder = tmp_path / "data/my"
    assert again() == 1
    assert again() == 0
    assert again(force=True) == 1
    assert again(normalise_text="basic") == 1
    assert index.read_index(folder, "train").column("text")[0].as_py() == "one"
    add_rows(manifest, {"audio": "0.wav", "id": "new"})
    assert again(normalise_text="basic") == 1
    (folder / "index/train.parquet").write_bytes(b"damaged")
    assert again(normalise_text="basic") == 1
    next(folder.glob("manifest/my/1.0.0/*train*")).write_bytes(b"cut")
    assert again(normalise_text="basic") == 1
    (folder / "meta.json").write_text("{half a fi", "utf-8")
    assert again(normalise_text="basic") == 1
    assert again(normalise_text="basic") == 0


def test_a_set_whose_texts_an_earlier_normaliser_made_says_so(manifest, tmp_path, capsys):
    folder = tmp_path / "data/my"
    prepare(manifest=manifest, data_dir=tmp_path / "data", normalise_text="basic")
    prepare(manifest=manifest, data_dir=tmp_path / "data", normalise_text="basic")
    assert "earlier version" not in capsys.readouterr().err
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    assert meta.pop("normaliser") == 2
    (folder / "meta.json").write_text(json.dumps(meta), "utf-8")  # as version 1 wrote it
    prepare(manifest=manifest, data_dir=tmp_path / "data", normalise_text="basic")
    assert "data/my was prepared by an earlier version" in (said := capsys.readouterr().err)
    assert "--force" in said


def test_a_sentence_stays_in_its_split_whatever_the_normaliser(tmp_path):
    texts = ["मुझे चाय", "İstanbul güzel", "co\u00adoperate", "It costs 1.05", "Agent 007", "สวัสดี", "hello", "-5"]
    splits = {}
    for text_form in ("none", "basic"):
        rows = [json.dumps({"audio": f"{number}.wav", "text": text}) for number, text in enumerate(texts)]
        (tmp_path / "my.jsonl").write_text("\n".join(row[:-1] + ', "language": "en"}' for row in rows), "utf-8")
        splits[text_form] = [
            item.split for item in speech_source(tmp_path / "my.jsonl", "my", MANIFEST, text_form).items()
        ]
    # By the digests of "म झ च य", "i stanbul güzel", "co operate", "it costs one point five", "agent seven", ...
    keys = [
        "म झ च य",
        "i stanbul güzel",
        "co operate",
        "it costs one point five",
        "agent seven",
        "สว สด",
        "hello",
        "five",
    ]
    assert splits["basic"] == [split_of(key) for key in keys]
    assert splits["none"] == [split_of(split_key(text)) for text in texts]


def test_full_disk_while_converting(manifest, tmp_path, monkeypatch):
    write_bytes, written = Path.write_bytes, []

    def full_after_five(self, content):
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(self)
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", full_after_five)
    with pytest.raises(
        DataError, match=r"data/my: the disk is full; about [\d.]+ MB more.*--data-dir.*continues from there"
    ):
        prepare(manifest=manifest, data_dir=tmp_path / "data", num_workers=1)
    monkeypatch.undo()
    assert prepare(manifest=manifest, data_dir=tmp_path / "data").clips == 12


def test_full_disk_is_seen_before_the_records_are_written(manifest, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(speech_store.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match="the disk is full"):
        prepare(manifest=manifest, data_dir=tmp_path / "data")
    assert (tmp_path / "data/my/work/journal.jsonl").exists()


def test_nothing_left_is_an_error(tmp_path):
    soundfile.write(tmp_path / "long.wav", speech(0, 2.0), 16_000)
    manifest = write_manifest(tmp_path / "my.jsonl", [{"audio": "long.wav"}])
    with pytest.raises(DataError, match="my: nothing is left of 1 items"):
        prepare(manifest=manifest, data_dir=tmp_path / "data", max_seconds=1)


@pytest.mark.parametrize("arguments", [{"name": ".."}, {"name": "a/b"}, {"manifest": Path("x.jsonl"), "tfds": "y"}, {}])
def test_bad_arguments(tmp_path, arguments):
    with pytest.raises(DataError):
        prepare(**arguments, data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_manifest(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        prepare(manifest=tmp_path / "none.jsonl", data_dir=tmp_path)


def test_threads_give_the_order_of_the_manifest(tmp_path):
    clips = []
    for number in range(40):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, speech(number, 0.05 if number % 2 else 0.5), 16_000)
        clips.append(Clip(str(number), AudioFile(str(path)), "", "", "", "train"))
    workshop = convert.ConversionFolder(tmp_path / "work", convert.Format(9.0))
    arguments = {"max_bad": 0, "console": Console(quiet=True)}
    outcomes = [item.clip.id for item in workshop.convert(clips, num_workers=4, **arguments)]
    assert outcomes == [clip.id for clip in clips]
