"""A set for a voice: what `prepare --voice` drops, trims and makes louder, on one machine and on Beam."""

import json

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

from data_pipelines.audio.decode import decode_flac
from data_pipelines.audio.voice import loudness
from data_pipelines.core.errors import DataError
from data_pipelines.prepare import convert
from data_pipelines.prepare.job import main, prepare
from data_pipelines.prepare.report import PreparationReport
from data_pipelines.prepare.voice import speech_rate
from data_pipelines.storage import index
from data_pipelines.storage.records import RecordReader
from tests.data_pipelines.audio.test_voice_clips import RATE, speech

pytest.importorskip("pyloudnorm", reason="loudness needs pyloudnorm: pip install -e '.[tts]'")
LETTERS = "the quick brown fox jumps over the lazy dog and runs away "  # 14 letters or so a second below
GOOD = 24
MISFIT = "text does not fit the set's rate of speech"
CLIPPED = "clipped (over 0.1 % of samples at full scale)"


@pytest.fixture
def manifest(tmp_path):
    """Good clips of one to three seconds, and one with each fault."""
    clips = {}
    for number in range(GOOD):
        seconds = 1.0 + number / 12
        clips[f"good{number}"] = speech(seconds, 0.05, number), (LETTERS * 3)[: round(17 * seconds)]
    silence = np.zeros(RATE)
    clips["quiet"] = speech(2.0, 0.006), LETTERS[:34]
    clips["silent ends"] = np.concatenate([silence, speech(2.0, 0.05), silence, silence]), LETTERS[:34]
    clips["clipped"] = speech(2.0, 2.0).clip(-1, 1), LETTERS[:34]
    clips["wrong text"] = speech(2.0, 0.05), LETTERS * 3
    clips["little text"] = speech(6.0, 0.05), "hello"
    clips["one letter"] = speech(0.5, 0.05), "a"
    clips["no text"] = speech(5.0, 0.05), ""
    rows = []
    for name, (samples, text) in clips.items():
        soundfile.write(tmp_path / f"{name}.wav", samples.clip(-1, 1), RATE)
        rows.append({"audio": f"{name}.wav", "text": text, "id": name, "split": "test" if name == "quiet" else "train"})
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stored(folder, split="train"):
    rows = index.read_index(folder, split)
    reader = RecordReader(rows)
    ids = pyarrow.parquet.read_table(folder / f"index/{split}.parquet").column("id").to_pylist()
    return {id_: decode_flac(reader.read(row)[0]) for row, id_ in enumerate(ids)}


def test_faults_are_dropped_or_corrected_and_counted(manifest, tmp_path, capsys):
    report = prepare(manifest=manifest, data_dir=tmp_path / "data", voice=True, max_bad=0.0)
    assert {reason: (row["count"], row["seconds"]) for reason, row in report.dropped.items()} == {
        CLIPPED: (1, pytest.approx(2.0)),
        MISFIT: (2, pytest.approx(8.0, abs=0.2)),
    }
    assert sorted(report.dropped[MISFIT]["ids"]) == ["little text", "wrong text"]
    assert "letters in 2.0 s, expected" in report.dropped[MISFIT]["detail"]
    assert report.clips == GOOD + 4
    assert report.without_text == 1
    assert report.voice["trimmed"]["seconds"] == pytest.approx(2.8, abs=0.3)
    assert report.voice["gain"]["clips"] == report.clips
    assert report.voice["gain"]["limited"] == 0
    assert 15 < report.voice["gain"]["highest"] < 30
    assert report.voice["letters_per_second"]["median"] == pytest.approx(14, abs=1.5)
    assert PreparationReport.load(tmp_path / "data/my/report.json") == report
    report.print()
    printed = " ".join(capsys.readouterr().out.split())
    assert "silence trimmed: " in printed
    assert "letters a second" in printed
    assert "seconds" in printed

    clips = stored(tmp_path / "data/my") | stored(tmp_path / "data/my", "test")
    assert not {"clipped", "wrong text", "little text"} & set(clips)
    for samples in clips.values():
        assert loudness(samples, RATE) == pytest.approx(-23.0, abs=0.2)
    assert len(clips["silent ends"]) / RATE == pytest.approx(2.2, abs=0.1)
    assert np.abs(clips["one letter"]).max() > 0


def test_settings_change_the_set(manifest, tmp_path):
    options = {"manifest": manifest, "data_dir": tmp_path / "data", "voice": True}
    loud = {"loudness": -30.0, "edge_silence": 0.5, "max_clipped": 1.0}
    report = prepare(**options, **loud)
    assert CLIPPED not in report.dropped
    clips = stored(tmp_path / "data/my")
    assert len(clips["silent ends"]) / RATE == pytest.approx(3.0, abs=0.1)
    assert loudness(clips["good3"], RATE) == pytest.approx(-30.0, abs=0.2)
    assert prepare(**options).dropped[CLIPPED]["count"] == 1  # other settings: prepared again
    assert prepare(manifest=manifest, data_dir=tmp_path / "data").voice is None
    assert prepare(**options, loudness=-10.0).voice["gain"]["limited"] > 10
    few = manifest.with_name("few.jsonl")
    few.write_text("".join(manifest.read_text().splitlines(keepends=True)[-7:]))
    report = prepare(manifest=few, data_dir=tmp_path / "data", voice=True)
    assert report.voice["letters_per_second"] is None
    assert set(report.dropped) == {CLIPPED}


def test_loudness_and_clean_up_without_a_voice(manifest, tmp_path, capsys):
    options = {"manifest": manifest, "data_dir": tmp_path / "data", "max_bad": 0.0}
    report = prepare(**options, loudness=-26.0, enhance="none")
    assert not report.dropped
    assert set(report.voice) == {"gain"}
    report.print()
    assert "remain quieter" in capsys.readouterr().out
    clips = stored(tmp_path / "data/my")
    assert loudness(clips["good3"], RATE) == pytest.approx(-26.0, abs=0.2)
    assert len(clips["silent ends"]) == 5 * RATE
    assert prepare(**options).voice is None  # other settings: prepared again
    plain = stored(tmp_path / "data/my")["silent ends"]
    assert np.abs(plain - clips["silent ends"].astype(int)).max() > 100
    (tmp_path / "a.txt").write_text("a line\n")
    with pytest.raises(DataError, match="is a set of text"):
        prepare("text", text=(str(tmp_path / "a.txt"),), data_dir=tmp_path / "data", enhance="wiener")


def test_any_number_of_workers_and_a_kill_make_the_same_set(manifest, tmp_path, monkeypatch):
    options = {"manifest": manifest, "voice": True}
    one = prepare(data_dir=tmp_path / "one", num_workers=1, **options)
    several = prepare(data_dir=tmp_path / "several", num_workers=4, **options)
    assert one == several
    decoded, decode = [], convert.fit_voice

    def killed_at_the_tenth(*arguments):
        decoded.append(arguments)
        if len(decoded) == 10:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(convert, "fit_voice", killed_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        prepare(data_dir=tmp_path / "killed", num_workers=1, **options)
    assert prepare(data_dir=tmp_path / "killed", num_workers=1, **options) == one
    assert len(decoded) < GOOD + 10  # clips of before the kill are not converted again
    first = stored(tmp_path / "one/my")
    for folder in ("several", "killed"):
        clips = stored(tmp_path / folder / "my")
        assert list(clips) == list(first)
        assert all(np.array_equal(clips[name], first[name]) for name in first)


def test_beam_makes_the_same_set(manifest, tmp_path):
    pytest.importorskip("apache_beam", reason="pip install -e '.[beam]'")
    options = {"manifest": manifest, "voice": True}
    one = prepare(data_dir=tmp_path / "one", **options)
    many = prepare(data_dir=tmp_path / "many", beam_runner="DirectRunner", beam_chunk=4, **options)
    assert many.voice["letters_per_second"] == one.voice["letters_per_second"]
    assert many.dropped == one.dropped
    assert (many.clips, many.voice["gain"]["clips"]) == (one.clips, one.voice["gain"]["clips"])
    for split in ("train", "test"):
        first, second = stored(tmp_path / "one/my", split), stored(tmp_path / "many/my", split)
        assert list(first) == list(second)
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_rate_of_speech_is_robust():
    rng = np.random.default_rng(0)
    good = [("x" * round(14 * seconds), seconds * rng.uniform(0.9, 1.1)) for seconds in rng.uniform(1, 9, 100)]
    wrong = [("x", 30.0), ("x" * 500, 1.0)] * 15
    rate, clean = speech_rate(good + wrong), speech_rate(good)
    assert rate.median == pytest.approx(clean.median, rel=0.02)
    assert 3 < rate.slowest < clean.median < rate.fastest < 60
    assert speech_rate(good[:19]) is None
    assert speech_rate([("", 1.0)] * 30) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--edge-silence", "0.5"], "no effect without --voice"),
        (["--loudness", "20"], "-50 to -5 LUFS"),
        (["--voice", "--loudness", "20"], "-50 to -5 LUFS"),
        (["--voice", "--max-clipped", "2"], "0 to 1"),
        (["--voice", "--edge-silence", "-1"], "0 to 10 s"),
    ],
)
def test_impossible_settings(manifest, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        main(["--manifest", str(manifest), "--data-dir", str(tmp_path / "data"), *options], "prepare")
    assert not (tmp_path / "data").exists()


def test_text_has_no_voice(tmp_path):
    (tmp_path / "a.txt").write_text("a line\n")
    with pytest.raises(DataError, match="is a set of text"):
        prepare("my", text=(str(tmp_path / "a.txt"),), data_dir=tmp_path / "data", voice=True)


def test_without_the_package_the_remedy_is_named(manifest, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyloudnorm", None)
    with pytest.raises(DataError, match=r"pyloudnorm.*\[tts\]"):
        prepare(manifest=manifest, data_dir=tmp_path / "data", voice=True)
