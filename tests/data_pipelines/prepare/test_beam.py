"""Beam, by its direct runner, makes the set that one machine makes."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.audio import stretches
from data_pipelines.audio.clips import AudioFile
from data_pipelines.core.errors import DataError
from data_pipelines.prepare import beam as on_beam
from data_pipelines.prepare.job import prepare
from data_pipelines.prepare.speech_store import check_shard
from data_pipelines.storage import index
from data_pipelines.storage.records import RecordReader

pytest.importorskip("apache_beam", reason="pip install -e '.[beam]'")
DIRECT = {"beam_runner": "DirectRunner", "beam_chunk": 4}  # in this process; several chunks for few clips


@pytest.fixture
def manifest(tmp_path):
    """Eighteen clips in two splits, among them a silent, a missing, a long one, and an id that occurs twice."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(18):
        samples = rng.normal(0, 0 if number == 5 else 0.1, 4000 + 400 * number + 40_000 * (number == 9))
        soundfile.write(tmp_path / f"{number}.wav", samples, 22_050)
        row = {"audio": f"{number}.wav", "text": "abc"[: number % 4], "split": "train" if number % 3 else "zoo"}
        rows.append(row | {"speaker": f"s{number % 2}", "id": "0.wav" if number == 12 else f"{number}.wav"})
    (tmp_path / "7.wav").unlink()
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    return path


def in_any_order(report):
    report = dataclasses.asdict(report)
    return report | {name: sorted(report[name]) for name in ("clipped", "mostly_silence")}


def close(first, second):
    """Equal but for the last digits of sums, which depend on the order of their terms."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[key], second[key]) for key in first)
    return first == pytest.approx(second) if isinstance(first, float) else first == second


def test_the_two_ways_make_equal_sets(manifest, tmp_path):
    options = {"manifest": manifest, "max_seconds": 1.5, "max_bad": 0.5}
    one = prepare(data_dir=tmp_path / "one", **options)
    many = prepare(data_dir=tmp_path / "many", **options, **DIRECT)
    assert one.clips == 14
    assert set(one.dropped) == {"silent", "no such file", "too long", "duplicate id", "malformed line"}
    assert close(in_any_order(many), in_any_order(one))
    for split in ("train", "zoo"):
        first, second = (index.read_index(tmp_path / way / "my", split) for way in ("one", "many"))
        assert first.fingerprint == second.fingerprint
        readers = RecordReader(first), RecordReader(second)
        stored = [
            [reader._sources[part.parts[0]][row] for row in range(len(first))]
            for reader, part in zip(readers, (first, second), strict=True)
        ]
        assert stored[0] == stored[1]
    one_meta, many_meta = (json.loads((tmp_path / way / "my/meta.json").read_text()) for way in ("one", "many"))
    assert close(one_meta, many_meta)
    assert not (tmp_path / "many/my/work").exists()
    assert prepare(data_dir=tmp_path / "many", **options).clips == 14  # it is there already, however it is asked for


def test_a_killed_preparation_converts_no_chunk_twice(manifest, tmp_path, monkeypatch):
    decoded = []
    decode = AudioFile.decode

    def killed_at_the_tenth(self, *limits):
        decoded.append(Path(self.path).name)
        if len(decoded) == 10:
            raise ValueError("killed")
        return decode(self, *limits)

    monkeypatch.setattr(AudioFile, "decode", killed_at_the_tenth)
    options = {"manifest": manifest, "data_dir": tmp_path / "data", "max_bad": 0.5, **DIRECT}
    with pytest.raises(ValueError, match="killed"):
        prepare(**options)
    finished = {path.stem for path in (tmp_path / "data/my/work/sounds").glob("*.jsonl")}
    assert len(finished) == 2
    first, decoded[:] = set(decoded), []
    monkeypatch.setattr(
        AudioFile, "decode", lambda self, *limits: decoded.append(Path(self.path).name) or decode(self, *limits)
    )
    again = next(name for name in sorted(first) if int(name.removesuffix(".wav")) // 4 == int(min(finished)))
    soundfile.write(tmp_path / again, np.random.default_rng(1).normal(0, 0.1, 4000), 16_000)  # replaced in between
    assert prepare(**options).clips == 15
    assert 17 - 8 + 4 <= len(decoded) <= 17
    assert again in decoded


def test_stretches_of_one_recording_are_read_once_a_chunk(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", rng.normal(0, 0.1, 64_000), 16_000)
    rows = [{"audio": f"{'abc'[n % 3]}.wav", "text": str(n), "offset": n // 3, "duration": 1} for n in range(12)]
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row | {"split": "train"}) + "\n" for row in rows))
    passes = []
    stream = stretches.stream
    monkeypatch.setattr(
        stretches, "stream", lambda path, **rate: passes.append(Path(path).name) or stream(path, **rate)
    )
    prepare(manifest=path, data_dir=tmp_path / "many", **DIRECT)
    assert sorted(passes) == ["a.wav", "b.wav", "c.wav"]
    prepare(manifest=path, data_dir=tmp_path / "one")
    one, many = (index.read_index(tmp_path / way / "my", "train") for way in ("one", "many"))
    assert one.fingerprint == many.fingerprint
    assert [RecordReader(one).read(row) for row in range(12)] == [RecordReader(many).read(row) for row in range(12)]


def test_work_files_that_were_tampered_with_run_nothing(manifest, tmp_path, monkeypatch):
    """What lies in the shared folder is JSON: a pickle put there is refused, not run."""

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    write = on_beam.write_clips
    monkeypatch.setattr(
        on_beam, "write_clips", lambda path, clips: (write(path, clips), path.write_bytes(pickle.dumps(Evil())))
    )
    with pytest.raises(ValueError, match="codec can't decode"):
        prepare(manifest=manifest, data_dir=tmp_path / "data", max_bad=0.5, **DIRECT)
    assert not (tmp_path / "ran").exists()


def test_too_many_bad_items_stop_it(manifest, tmp_path):
    with pytest.raises(DataError, match=r"4 bad items, more than the 3 allowed(.|\n)*7\.wav: no such file"):
        prepare(manifest=manifest, data_dir=tmp_path / "data", max_bad=0.19, **DIRECT)
    assert not (tmp_path / "data/my/meta.json").exists()


def test_records_that_do_not_match_the_index_are_found(manifest, tmp_path):
    prepare(manifest=manifest, data_dir=tmp_path / "data", max_bad=0.5, **DIRECT)
    folder = tmp_path / "data/my"
    (shard,) = folder.glob("manifest/my/1.0.0/*-train.*")
    check_shard(str(shard), str(folder / "index/train.parquet"), 0, 10)
    with pytest.raises(DataError, match="differs from rows 1 to 11"):
        check_shard(str(shard), str(folder / "index/train.parquet"), 1, 10)


def test_what_beam_cannot_do_is_said_before_anything_is_done(manifest, tmp_path):
    (tmp_path / "my.txt").write_text("words\n")
    with pytest.raises(DataError, match="Beam prepares speech"):
        prepare("words", text=(str(tmp_path / "my.txt"),), data_dir=tmp_path / "data", **DIRECT)
    assert not (tmp_path / "data").exists()
    pytest.importorskip("s3fs", reason="pip install -e '.[dev]'")
    with pytest.raises(DataError, match=r"s3:/.*/data: the workers of Beam .* mount the bucket"):
        prepare(manifest=manifest, data_dir=Path("s3://bucket/data"), **DIRECT)
