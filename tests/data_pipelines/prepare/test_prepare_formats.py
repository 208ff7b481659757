"""Preparation from formats of other tools end to end: what is stored, when it is prepared again, what is read once."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from data_pipelines.audio import parquet, stretches
from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from data_pipelines.storage import index
from tests.data_pipelines.sources import speech_writers
from tests.data_pipelines.sources.speech_writers import Spoken, lines, put, sound

CLIPS = [
    Spoken(f"{speaker}_77_{number:06d}", speaker, f"text {number}", gender, "train", number, 10 + number)
    for number, (speaker, gender) in enumerate([("1234", "female"), ("2345", "male")] * 3)
]


def texts_of(folder):
    parts = [index.read_index(folder, split) for split in index.splits_of(folder)]
    return {text for part in parts for text in part.column("text").to_pylist()}


def test_common_voice_keeps_its_splits_and_columns(tmp_path, capsys):
    """Validated clips outside the official splits are a split of their own, and so are clips without enough votes."""
    header = "client_id\tpath\tsentence\tup_votes\tage\tgender\taccents\tlocale"

    def row(clip, age="", gender="", accent=""):
        put(tmp_path / f"cy/clips/{clip.id}.mp3", sound(clip.samples))
        return f"{clip.speaker}\t{clip.id}.mp3\t{clip.text}\t2\t{age}\t{gender}\t{accent}\tcy"

    first, second, third, fourth = (row(clip) for clip in CLIPS[:4])
    first = row(CLIPS[0], "twenties", "female_feminine", 'Gogledd "Cymru"')
    lines(tmp_path / "cy/train.tsv", [header, first])
    lines(tmp_path / "cy/dev.tsv", [header, second])
    lines(tmp_path / "cy/validated.tsv", [header, first, second, third])
    lines(tmp_path / "cy/other.tsv", [header, fourth])
    lines(tmp_path / "cy/invalidated.tsv", [header, row(CLIPS[4])])
    report = prepare(manifest=tmp_path / "cy", data_dir=tmp_path / "data")
    assert "read as a Common Voice folder (--format common_voice)" in capsys.readouterr().err
    assert {split: row["clips"] for split, row in report.splits.items()} == {
        "train": 1,
        "dev": 1,
        "validated": 1,
        "other": 1,
    }
    assert report.dropped == {}
    rows = index.read_index(tmp_path / "data/cy", "train")
    stored = {name: rows.column(name).to_pylist() for name in ("speaker", "language", "age", "gender", "accent")}
    expected = {"speaker": "1234", "language": "cy", "age": "twenties", "gender": "female"}
    assert stored == {name: [value] for name, value in (expected | {"accent": 'Gogledd "Cymru"'}).items()}
    meta = json.loads((tmp_path / "data/cy/meta.json").read_text("utf-8"))
    assert meta["source"]["format"] == meta["request"]["format"] == "common_voice"
    (record,) = tfds.builder_from_directory(tmp_path / "data/cy" / meta["tfds_dir"]).as_data_source("train")
    assert (record["accent"].decode(), record["gender"].decode()) == ('Gogledd "Cymru"', "female")


def test_a_set_is_prepared_again_if_a_list_of_it_changes(tmp_path):
    path = speech_writers.FORMATS["kaldi segments"].write(tmp_path / "call", CLIPS)

    def texts():
        prepare(manifest=path, data_dir=tmp_path / "data", num_workers=1)
        folder = tmp_path / "data/call"
        parts = [index.read_index(folder, split) for split in index.splits_of(folder)]
        return (folder / "meta.json").stat().st_mtime_ns, {
            text for part in parts for text in part.column("text").to_pylist()
        }

    first, found = texts()
    assert found == {clip.text for clip in CLIPS}
    assert texts()[0] == first
    put(path / "text", (path / "text").read_text("utf-8").replace("text 3", "another text"))
    second, found = texts()
    assert second != first
    assert "another text" in found


def test_segments_of_speakers_by_turns_are_cut_in_one_pass_over_each_recording(tmp_path, monkeypatch):
    """Kaldi sorts segments by speaker, so that those of a conversation do not follow each other."""
    for name in ("a", "b"):
        put(tmp_path / f"{name}.wav", sound(np.tile(CLIPS[0].samples, 8)))
    lines(tmp_path / "wav.scp", [f"{name} {tmp_path}/{name}.wav" for name in "ab"])
    turns = [(speaker, call, turn) for speaker in "AB" for call in "ab" for turn in range(2)]
    rows = [f"{s}-{c}-{t} {c} {0.2 * t + 0.1 * (s == 'B'):.1f} {0.2 * t + 0.2:.1f}" for s, c, t in turns]
    lines(tmp_path / "segments", rows)
    lines(tmp_path / "utt2spk", [f"{s}-{c}-{t} {s}" for s, c, t in turns])
    passes = []
    stream = stretches.stream

    def counted(source, **options):
        passes.append(source)
        return stream(source, **options)

    monkeypatch.setattr(stretches, "stream", counted)
    report = prepare(manifest=tmp_path, name="calls", data_dir=tmp_path / "data", num_workers=1)
    assert (report.clips, report.speakers, report.without_text) == (8, 2, 8)
    assert passes == [f"{tmp_path}/a.wav", f"{tmp_path}/b.wav"]


def test_each_row_group_of_a_parquet_file_is_read_once(tmp_path, monkeypatch):
    path = speech_writers.FORMATS["parquet"].write(tmp_path / "mine", CLIPS)
    (file,) = (path / "data").iterdir()
    opened = []

    class Counted(pq.ParquetFile):
        def iter_batches(self, *args, **options):
            opened.append(options["row_groups"])
            return super().iter_batches(*args, **options)

    monkeypatch.setattr(parquet.pq, "ParquetFile", Counted)
    report = prepare(manifest=file, data_dir=tmp_path / "data", num_workers=1, language="en", normalise_text="basic")
    assert report.clips == len(CLIPS)
    labels_and_audio = 2
    assert sorted(opened) == sorted([[0], [1], [2]] * labels_and_audio)
    folder = tmp_path / "data" / file.stem
    texts = [
        text for split in index.splits_of(folder) for text in index.read_index(folder, split).column("text").to_pylist()
    ]
    assert "text five" in texts  # the number in words of the language that the command states


def test_an_unknown_format_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"--format kaldy: not one of auto, .*kaldi"):
        prepare(manifest=tmp_path, format="kaldy", data_dir=tmp_path / "data")


@pytest.mark.parametrize("option", [{"format": "kaldi"}, {"language": "en"}, {"allow_commands": True}])
def test_options_of_a_manifest_need_one(option, tmp_path):
    with pytest.raises(DataError, match="have no effect without --manifest"):
        prepare("asterisk-en", data_dir=tmp_path, **option)
