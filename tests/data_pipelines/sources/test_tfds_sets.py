"""TFDS's own sets through the same path, on stand-ins with their feature structure.

A stand-in writes a few records under the name and version of the real builder; TFDS then loads the real one from disk.
"""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines.audio.decode import decode_flac
from data_pipelines.core.errors import DataError
from data_pipelines.prepare.convert import Format
from data_pipelines.prepare.job import prepare_source
from data_pipelines.prepare.text_store import prepare_text
from data_pipelines.sources import tfds_sets
from data_pipelines.storage.index import read_index, splits_of
from data_pipelines.storage.records import RecordReader
from data_pipelines.text.cleaning import Cleaning

TEXTS = {"train": ["HELLO THERE", "GOOD MORNING"], "test": ["FINE THANKS"]}


def sine(rate: int, number: int) -> np.ndarray:
    return np.int16(8_000 * np.sin(2 * np.pi * 300 * (number + 1) * np.arange(rate // 2) / rate))


def flac(samples: np.ndarray, rate: int) -> io.BytesIO:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC")
    buffer.seek(0)
    return buffer


def stand_in(data_dir, name, version, features, example, *, texts=TEXTS, config=None, file_format="array_record"):
    """Writes a data set as the builder `name` would, `example(number, text)` making its records."""

    class StandIn(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in texts}

        def _generate_examples(self, split):
            for number, text in enumerate(texts[split]):
                yield f"{split}{number}", example(number, text)

    StandIn.name = name
    StandIn(data_dir=data_dir, file_format=file_format).download_and_prepare()


def prepared(source, folder):
    prepare_source(source, folder, {}, Format(60), num_workers=2, max_bad=0.0)
    meta_dir = next(folder.glob("manifest/*/1.0.0"))
    builder = tfds.builder_from_directory(meta_dir)
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}


LIBRISPEECH = {"text": tfds.features.Text(), "speaker_id": np.int64, "chapter_id": np.int64, "id": np.str_}


@pytest.mark.parametrize(("config", "version", "lazy"), [("default", "2.1.1", False), ("lazy_decode", "2.1.2", True)])
def test_librispeech(tmp_path, config, version, lazy):
    audio = tfds.features.Audio(sample_rate=16_000, dtype=np.int16, lazy_decode=lazy, file_format="flac")

    def example(number, text):
        speech = flac(sine(16_000, number), 16_000) if lazy else sine(16_000, number)
        return {"speech": speech, "text": text, "speaker_id": 84, "chapter_id": 1, "id": f"84-{text}"}

    stand_in(tmp_path, "librispeech", version, {"speech": audio} | LIBRISPEECH, example, config=config)
    source = tfds_sets.tfds_source(f"librispeech/{config}", "libri", "none", tmp_path)
    records = prepared(source, tmp_path / "out")
    assert {split: len(rows) for split, rows in records.items()} == {"train": 2, "test": 1}
    row = next(row for row in records["train"] if row["text"] == b"HELLO THERE")
    assert (row["id"], row["speaker"], row["language"]) == (b"84-HELLO THERE", b"84", b"en")
    np.testing.assert_array_equal(decode_flac(row["audio"]), sine(16_000, 0))
    assert len(read_index(tmp_path / "out", "train")) == 2


def test_ljspeech_is_resampled_and_its_only_split_divided(tmp_path):
    features = {
        "id": np.str_,
        "speech": tfds.features.Audio(sample_rate=22_050, dtype=np.int16),
        "text": tfds.features.Text(),
        "text_normalized": tfds.features.Text(),
    }

    def example(number, text):
        return {"id": f"LJ{number}", "speech": sine(22_050, number), "text": "1 " + text, "text_normalized": text}

    texts = {"train": ["one", "five", "two"]}  # by the split rule: test, dev, train
    stand_in(tmp_path, "ljspeech", "1.1.1", features, example, texts=texts)
    records = prepared(tfds_sets.tfds_source("ljspeech", "lj", "none", tmp_path), tmp_path / "out")
    assert {split: [row["text"] for row in rows] for split, rows in records.items()} == {
        "train": [b"two"],
        "dev": [b"five"],
        "test": [b"one"],
    }
    assert records["train"][0]["num_samples"] == 8_000
    assert records["train"][0]["speaker"] == b""


def test_common_voice(tmp_path):
    features = {
        "client_id": tfds.features.Text(),
        "sentence": tfds.features.Text(),
        "voice": tfds.features.Audio(),  # states no rate; the clips have 48 kHz
        "age": tfds.features.Text(),
    }

    def example(number, text):
        return {
            "client_id": f"user{number}",
            "sentence": text,
            "voice": sine(48_000, number).astype(np.int64),
            "age": "",
        }

    stand_in(tmp_path, "common_voice", "2.0.0", features, example, config="fr")
    source = tfds_sets.tfds_source("common_voice/fr", "cv", "basic", tmp_path)
    records = prepared(source, tmp_path / "out")
    row = next(row for row in records["train"] if row["speaker"] == b"user0")
    assert (row["text"], row["language"], row["num_samples"]) == (b"hello there", b"fr", 8_000)
    spectrum = np.abs(np.fft.rfft(decode_flac(row["audio"]).astype(float)))
    assert np.argmax(spectrum) * 2 == 300  # Hz: the rate was not mistaken


def archive(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w:bz2") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def encoded(samples, rate, kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Archives by the end of their URL, in place of the network; neither pydub nor the program ffmpeg is there."""
    archives = {}
    monkeypatch.setitem(sys.modules, "pydub", None)
    monkeypatch.setenv("PATH", "")

    def download(self, url):
        return next(path for end, path in archives.items() if url.endswith(end))

    def download_and_extract(self, urls):
        if isinstance(urls, dict):
            return {name: download_and_extract(self, url) for name, url in urls.items()}
        folder = tmp_path / "extracted" / Path(urls).name
        with tarfile.open(download(self, urls)) as tar:
            tar.extractall(folder, filter="data")
        return epath.Path(folder)

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", download_and_extract)
    return archives


def rows_of(folder):
    found = {}
    for split in splits_of(folder):
        rows = read_index(folder, split)
        reader = RecordReader(rows)
        for row, name in enumerate(rows.column("id").to_pylist()):
            sound, text = reader.read(row)
            found[name] = (split, text, rows.column("speaker")[row].as_py(), decode_flac(sound))
    return found


def test_plain_installation_prepares_librispeech(tmp_path, downloads):
    for number, split in enumerate(("dev-clean", "dev-other", "test-clean", "test-other", "train-clean-100")):
        book = f"LibriSpeech/{split}/{84 + number}/7"
        files = {f"LibriSpeech/{name}.TXT": b"; a comment\n" for name in ("SPEAKERS", "CHAPTERS")}
        files[f"{book}/{84 + number}-7.trans.txt"] = f"{84 + number}-7-0000 HELLO THERE\n".encode()
        files[f"{book}/{84 + number}-7-0000.flac"] = encoded(sine(16_000, number), 16_000, "FLAC")
        downloads[f"/{split}.tar.gz"] = archive(tmp_path / f"{split}.tar.gz", files)
    downloads["-360.tar.gz"] = downloads["-500.tar.gz"] = archive(
        tmp_path / "none.tar.gz",
        {"LibriSpeech/SPEAKERS.TXT": b"", "LibriSpeech/CHAPTERS.TXT": b""}
        | {
            "LibriSpeech/train/9/1/9-1.trans.txt": b"9-1-0000 YES\n",
            "LibriSpeech/train/9/1/9-1-0000.flac": encoded(sine(16_000, 9), 16_000, "FLAC"),
        },
    )
    source = tfds_sets.tfds_source("librispeech", "libri", "none", tmp_path / "tfds")
    prepare_source(source, tmp_path / "out", {}, Format(60), num_workers=1, max_bad=0.5)
    split, text, speaker, samples = rows_of(tmp_path / "out")["88-7-0000"]
    assert (split, text, speaker) == ("train_clean100", "HELLO THERE", "88")
    np.testing.assert_array_equal(samples, sine(16_000, 4))


def test_plain_installation_prepares_ljspeech(tmp_path, downloads):
    files = {"LJSpeech-1.1/metadata.csv": b"LJ001-0001|in 1900|in nineteen hundred\n"}
    files["LJSpeech-1.1/wavs/LJ001-0001.wav"] = encoded(sine(22_050, 1), 22_050, "WAV")
    downloads["LJSpeech-1.1.tar.bz2"] = archive(tmp_path / "LJSpeech-1.1.tar.bz2", files)
    source = tfds_sets.tfds_source("ljspeech", "lj", "none", tmp_path / "tfds")
    prepare_source(source, tmp_path / "out", {}, Format(60), num_workers=1, max_bad=0.0)
    _, text, _, samples = rows_of(tmp_path / "out")["LJ001-0001"]
    assert (text, len(samples)) == ("in nineteen hundred", 8_000)
    assert np.argmax(np.abs(np.fft.rfft(samples.astype(float)))) * 2 == 600  # Hz


def test_plain_installation_prepares_common_voice(tmp_path, downloads):
    pytest.importorskip("apache_beam", reason="pip install -e '.[beam]'")
    root = "cv-corpus-6.1-2020-12-11/fr"
    columns = [
        "client_id",
        "path",
        "sentence",
        "up_votes",
        "down_votes",
        "age",
        "gender",
        "accent",
        "locale",
        "segment",
    ]
    files = {}
    for number, (split, rate) in enumerate({"train": 48_000, "dev": 32_000, "test": 48_000}.items()):
        row = [f"user{number}", f"{split}.mp3", f"Bonjour {split}.", "2", "0", "", "", "", "fr", ""]
        files[f"{root}/{split}.tsv"] = f"{chr(9).join(columns)}\n{chr(9).join(row)}\n".encode()
        files[f"{root}/clips/{split}.mp3"] = encoded(sine(rate, number), rate, "MP3")
    downloads["/fr.tar.gz"] = archive(tmp_path / "fr.tar.gz", files)
    source = tfds_sets.tfds_source("common_voice/fr", "cv", "none", tmp_path / "tfds")
    prepare_source(source, tmp_path / "out", {}, Format(60), num_workers=1, max_bad=0.0)
    rows = {split: row for split, *row in rows_of(tmp_path / "out").values()}
    assert {split: row[:2] for split, row in rows.items()} == {
        split: [f"Bonjour {split}.", f"user{number}"] for number, split in enumerate(("train", "dev", "test"))
    }
    for split in rows:
        samples = rows[split][2]
        assert len(samples) == pytest.approx(8_000, abs=1_000)  # MP3 pads
        peak = np.argmax(np.abs(np.fft.rfft(samples.astype(float)))) * 16_000 / len(samples)
        assert peak == pytest.approx(300 * (1 + ("train", "dev", "test").index(split)), abs=5)


@pytest.mark.parametrize("name", ["lm1b", "imdb_reviews/plain_text"])
def test_text_sets(tmp_path, name):
    name, _, config = name.partition("/")
    features = {"text": tfds.features.Text()}
    if config:
        features["label"] = tfds.features.ClassLabel(names=["neg", "pos"])

    def example(number, text):
        return {"text": text} | ({"label": number % 2} if config else {})

    version = "1.0.0" if config else "1.1.0"
    stand_in(tmp_path, name, version, features, example, config=config or None)
    source = tfds_sets.tfds_source(f"{name}/{config}".rstrip("/"), "my", "none", tmp_path)
    documents = {item.text: item for item in source.documents()}
    assert {text: item.split for text, item in documents.items()} == {
        text: split for split, texts in TEXTS.items() for text in texts
    }
    assert {item.source for item in documents.values()} == {name}
    assert documents["GOOD MORNING"].label == ("pos" if config else "")
    assert len({item.id for item in documents.values()}) == 3
    report = prepare_text(source, tmp_path / "out", {}, Cleaning(steps=("unicode",)), (), max_bad=0.0)
    assert report.splits["train"]["documents"] == 2
    assert read_index(tmp_path / "out", "test").column("text").to_pylist() == ["FINE THANKS"]


def test_a_set_without_audio_and_text(tmp_path):
    stand_in(tmp_path, "mnist", "3.0.1", {"label": np.int64}, lambda number, text: {"label": number})
    with pytest.raises(DataError, match=r"mnist/3\.0\.1 has no audio and no text feature, only image, label"):
        tfds_sets.tfds_source("mnist", "x", "none", tmp_path)


def test_records_without_random_access(tmp_path):
    features = {"speech": tfds.features.Audio(sample_rate=16_000, dtype=np.int16)} | LIBRISPEECH

    def example(number, text):
        return {"speech": sine(16_000, number), "text": text, "speaker_id": 84, "chapter_id": 1, "id": text}

    stand_in(tmp_path, "librispeech", "2.1.1", features, example, config="default", file_format="tfrecord")
    with pytest.raises(DataError, match="no random access: convert it"):
        list(tfds_sets.tfds_source("librispeech/default", "libri", "none", tmp_path).items())


def test_unknown_set(tmp_path):
    with pytest.raises(DataError, match="TFDS has no data set 'no_such_speech'"):
        tfds_sets.tfds_source("no_such_speech", "x", "none", tmp_path)
