"""Rows of a manifest that are stretches or channels of long recordings."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.audio import stretches
from data_pipelines.audio.clips import AudioFile, AudioSlice, Clip, Dropped
from data_pipelines.audio.command import Command
from data_pipelines.audio.decode import AudioError, decode, decode_flac, stream
from data_pipelines.audio.parquet import ParquetAudio
from data_pipelines.audio.stretches import Stretch, decode_stretches
from data_pipelines.prepare.clip_files import read_clips, write_clips
from data_pipelines.prepare.job import prepare
from data_pipelines.sources import manifest
from data_pipelines.sources.listing import finish
from data_pipelines.storage import index
from data_pipelines.storage.records import RecordReader

PITCHES = [300, 500, 700, 900]  # Hz, a second of each; a fifth higher in the second channel


def session(path, rate=44_100, seconds=4):
    times = np.arange(seconds * rate) / rate
    pitch = np.array(PITCHES)[np.minimum(times.astype(int), 3)]
    channels = [0.4 * np.sin(2 * np.pi * share * pitch * times) for share in (1, 1.5)]
    soundfile.write(path, np.stack(channels, axis=1), rate, format="OGG" if path.suffix == ".ogg" else None)
    return path


def pitch_of(samples):
    return round(np.argmax(np.abs(np.fft.rfft(samples.astype(float)))) * 16_000 / len(samples) / 10) * 10


def write_manifest(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder, *rows):
    return list(finish(manifest.rows(write_manifest(folder / "my.jsonl", rows)), "none"))


@pytest.fixture
def decoded(monkeypatch):
    """The files of which a pass began."""
    files = []

    def counted(path, **options):
        files.append(Path(path).name)
        return stream(path, **options)

    monkeypatch.setattr(stretches, "stream", counted)
    return files


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_manifest_rows_of_one_session_become_its_stretches_in_one_pass(tmp_path, decoded, suffix):
    session(tmp_path / f"a{suffix}")
    session(tmp_path / f"b{suffix}")
    spans = [{"offset": n, "duration": 1} for n in range(4)] + [{"start": 2.25, "end": "2.75"}, {"start": 3.0}]
    rows = [{"audio": f"{name}{suffix}", "text": str(n)} | span for n, span in enumerate(spans) for name in "ab"]
    path = write_manifest(tmp_path / "my.jsonl", [*rows, {"audio": f"a{suffix}", "text": "whole", "duration": 4.0}])
    report = prepare(manifest=path, data_dir=tmp_path / "data", num_workers=2, normalise_text="none")
    assert (report.clips, report.dropped) == (13, {})
    assert sorted(decoded) == [f"a{suffix}", f"b{suffix}"]
    found = {}
    for split in index.splits_of(tmp_path / "data/my"):
        rows = index.read_index(tmp_path / "data/my", split)
        reader = RecordReader(rows)
        ids = rows.column("id").to_pylist()
        found |= {(name[0], reader.read(row)[1]): decode_flac(reader.read(row)[0]) for row, name in enumerate(ids)}
    for name in "ab":
        for number in range(4):
            samples = found[name, str(number)]
            assert len(samples) == pytest.approx(16_000, abs=400)  # MP3 pads
            assert pitch_of(samples[2_000:14_000]) in (PITCHES[number], 1.5 * PITCHES[number])
        assert len(found[name, "4"]) == 8_000
        assert pitch_of(found[name, "4"]) in (700, 1050)
    whole = decode(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(found["a", "1"], whole[16_000:32_000], atol=2)
    np.testing.assert_allclose(found["a", "5"], whole[48_000:], atol=2)


def test_manifest_channel_is_read_alone(tmp_path):
    session(tmp_path / "a.wav")
    one, other, both, part, missing = read(
        tmp_path,
        {"audio": "a.wav", "channel": 0},
        {"audio": "a.wav", "channel": "1"},
        {"audio": "a.wav", "channels": [0, 1]},
        {"audio": "a.wav", "channel": [1], "offset": 1, "duration": 1},
        {"audio": "a.wav", "channel": 2},
    )
    assert [pitch_of(clip.audio.decode(9)[:16_000]) for clip in (one, other)] == [300, 450]
    np.testing.assert_allclose(both.audio.decode(9), decode(tmp_path / "a.wav"), atol=2)
    assert pitch_of(part.audio.decode(9)) == 750
    with pytest.raises(AudioError, match="no channel 2; the file has 2, counted from 0"):
        missing.audio.decode(9)
    assert len({clip.id for clip in (one, other, both, part, missing)}) == 5


def test_stretches_of_a_shuffled_manifest_come_together(tmp_path):
    rows = [{"audio": f"{n % 3}.wav", "offset": n, "duration": 1, "text": str(n)} for n in range(9)]
    rows[4] = {"audio": "1.wav", "text": "whole"}
    path = tmp_path / "my.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\nno JSON")
    items = list(finish(manifest.rows(path), "none"))
    assert [item.text for item in items[:-1]] == ["0", "3", "6", "1", "7", "2", "5", "8", "whole"]
    assert items[-1].id == f"{path}:18"


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ({"offset": 3.5, "duration": 1}, "stretch outside the recording"),
        ({"start": 5, "end": 6}, "stretch outside the recording"),
        ({"start": 5}, "stretch outside the recording"),
        ({"duration": 1.0}, "duration contradicts the file"),
        ({"duration": 8, "channel": 0}, "duration contradicts the file"),
        ({"start": 0, "end": 4.05}, None),  # rounded
        ({"duration": 4.05}, None),
        ({"offset": 0, "duration": 1.0}, None),
    ],
)
def test_manifest_duration_that_contradicts_the_file_is_counted(tmp_path, span, reason):
    session(tmp_path / "a.wav", 16_000)
    (clip,) = read(tmp_path, {"audio": "a.wav", "text": "a"} | span)
    if reason is None:
        clip.audio.decode(9)
    else:
        with pytest.raises(AudioError) as error:
            clip.audio.decode(9)
        assert error.value.reason == reason


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"offset": -1, "duration": 1}, '"offset" must be seconds, found -1'),
        ({"offset": True}, '"offset" must be seconds'),
        ({"offset": "soon"}, '"offset" must be seconds'),
        ({"start": float("nan")}, '"start" must be seconds'),
        ({"start": float("inf")}, '"start" must be seconds'),
        ({"start": 2, "end": 1}, "the stretch from 2 to 1 s has no length"),
        ({"start": 1, "duration": 0}, "the stretch from 1 to 1 s has no length"),
        ({"start": 1, "end": 2, "duration": 9}, '"duration" 9 contradicts the times'),
        ({"start": 1, "offset": 2}, '"start" and "offset" differ'),
        ({"Start": 1, "offset": 2}, '"Start" and "offset" differ'),
        ({"channel": -1}, '"channel" must be the number of a channel'),
        ({"channel": "left"}, '"channel" must be the number'),
        ({"channel": 0.5}, '"channel" must be the number'),
        ({"channels": 2}, '"channels" could be a number of channels'),
        ({"start_time": 1.0}, '"start_time" looks as if'),
        ({"endTime": "3.5"}, '"endTime" looks as if'),
        ({"begin": 0}, '"begin" looks as if'),
        ({"start_ms": 20, "end_ms": 40}, '"start_ms" looks as if'),
        ({"frame_offset": 16_000}, '"frame_offset" looks as if'),
        ({"segment": [0.5, 2]}, '"segment" looks as if'),
        ({"segments": [{"start": 0, "end": 1, "text": "a"}]}, '"segments" looks as if'),
        ({"timestamp": [0, 1.5]}, '"timestamp" looks as if'),
        ({"channel_id": 1}, '"channel_id" looks as if'),
        ({"side": "A"}, '"side" looks as if'),
        ({"supervisions": [{"start": 0}]}, '"supervisions" looks as if'),
    ],
)
def test_manifest_keys_that_change_what_a_label_belongs_to_are_refused_by_name(tmp_path, span, message):
    (item,) = read(tmp_path, {"audio": "a.wav", "text": "a"} | span)
    assert isinstance(item, Dropped)
    assert item.is_bad
    assert f"my.jsonl:1: {message}" in item.detail


def test_manifest_keys_that_change_nothing_are_ignored(tmp_path):
    row = {
        "audio": "a.wav",
        "text": "a",
        "num_channels": 2,
        "sample_rate": 16_000,
        "segment": "Benchmark",
        "up_votes": 2,
    }
    row |= {"client_id": "x", "pred_text": "b", "end_of_turn": True, "timestamp": 1_690_000_000, "channel_id": "UCx"}
    row |= {"offset": None, "duration": None, "channel": None, "start": "", "segments": [], "words": [[0, 1, "a"]]}
    (clip,) = read(tmp_path, row)
    assert (clip.audio, clip.speaker, clip.id) == (AudioFile(str(tmp_path / "a.wav")), "x", "a.wav")


@pytest.mark.parametrize("audio", ["audio_filepath", "path", "file", "wav", "audio_path", "audioFilePath", "file_name"])
@pytest.mark.parametrize("text", ["sentence", "transcription", "transcript", "normalized_text", "Text"])
def test_manifest_names_of_others_are_recognised(tmp_path, audio, text):
    (clip,) = read(tmp_path, {audio: "a.wav", text: "what is said", "text": None, "id": None, "split": None})
    assert (clip.audio.path, clip.text, clip.id) == (str(tmp_path / "a.wav"), "what is said", "a.wav")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "a.wav", "raw_text": "a"}, '"raw_text" looks like a transcript: call it "text"'),
        ({"audio": "a.wav", "words": "a b"}, '"words" looks like a transcript'),
        ({"audio": "a.wav", "utterance": "a b"}, '"utterance" looks like a transcript'),
        ({"sound": "a.wav", "text": "a"}, '"audio" must be the path of a file, found "sound", "text"'),
        ({"audio": {"path": "a.wav", "bytes": None}, "text": "a"}, '"audio" must be the path of a file, found'),
        ({"audio_filepath": ["a.wav", "b.wav"], "text": "a"}, '"audio_filepath" must be the path of a file'),
        ({"path": "a.wav", "file": "b.wav"}, '"path" and "file" differ: keep one of them, as "audio"'),
        ({"audio": "a.wav", "sentence": "a", "transcript": "b"}, '"sentence" and "transcript" differ'),
        ({"audio": "a.wav", "text": True}, '"text" must be a string'),
        ({"audio": "a.wav", "id": ["a"]}, '"id" must be a string'),
    ],
)
def test_manifest_rows_whose_text_or_audio_is_not_found_are_named(tmp_path, row, message):
    (item,) = read(tmp_path, row)
    assert f"my.jsonl:1: {message}" in item.detail


def test_text_comes_before_other_transcripts(tmp_path):
    (clip,) = read(tmp_path, {"audio": "a.wav", "path": "elsewhere.wav", "text": "A.", "normalized_text": "a"})
    assert (clip.text, Path(clip.audio.path).name) == ("A.", "a.wav")


def test_a_damaged_session_keeps_the_stretches_before_the_damage(tmp_path, monkeypatch):
    session(tmp_path / "a.wav", 16_000)

    def damaged(path, **options):
        yield next(stream(path, mix=False))[:32_000]
        raise AudioError(str(path), "cannot be decoded", "try to play it")

    monkeypatch.setattr(stretches, "stream", damaged)
    spans = [Stretch(str(tmp_path / "a.wav"), start, start + 1) for start in range(4)]
    outcomes = dict(decode_stretches(spans, 9))
    assert [isinstance(outcomes[place], AudioError) for place in range(4)] == [False, False, True, True]


def test_a_long_stretch_is_refused_before_it_is_decoded(tmp_path, decoded):
    session(tmp_path / "a.wav", 16_000)
    path = str(tmp_path / "a.wav")
    assert [outcome.reason for _, outcome in decode_stretches([Stretch(path, 0, 3)], 2)] == ["too long"]
    assert decoded == []
    assert [outcome.reason for _, outcome in decode_stretches([Stretch(path, 1)], 2)] == ["too long"]


def test_clips_come_back_from_their_file(tmp_path):
    audios = [
        AudioFile(str(tmp_path / "a.wav"), 2.5),
        AudioSlice(str(tmp_path / "a"), "b", 3, 4),
        Stretch(str(tmp_path / "é"), 1.25, None, (1,)),
        AudioFile(str(tmp_path / "\udcff")),
        Stretch(AudioSlice("a.tar", "b.wav", 3, 4), 1.0, 2.0),
        Stretch(Command("cat a.wav", "/", "wav.scp:1"), 1.0),
        Command("cat a.wav", "/", "wav.scp:1"),
        ParquetAudio("a.parquet", 1, 2, "audio.bytes"),
    ]
    clips = [Clip(f"{n}", audio, "é\u2028", "s", "fr", "dev", "e") for n, audio in enumerate(audios)]
    write_clips(tmp_path / "clips.jsonl", clips)
    assert read_clips(tmp_path / "clips.jsonl") == clips
