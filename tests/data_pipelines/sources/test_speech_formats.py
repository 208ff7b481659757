"""Every format lists the same clips as any other, and what is wrong in its files is an error that names it."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.audio.clips import AudioFile, Clip
from data_pipelines.audio.decode import decode_flac
from data_pipelines.core.errors import DataError
from data_pipelines.prepare.convert import Format, Sound, by_recording, convert_clips
from data_pipelines.sources.speech_formats import guess, speech_source
from data_pipelines.text.normalize import split_key, split_of
from tests.data_pipelines.sources import speech_writers
from tests.data_pipelines.sources.speech_writers import Spoken, lines, put, sound, tar

# Of a format that has several ways to write it.
NAMES = {
    "manifest of stretches": "manifest",
    "lhotse recordings": "lhotse",
    "lhotse cuts": "lhotse",
    "lhotse shar": "lhotse",
    "kaldi segments": "kaldi",
    "espnet archive": "kaldi",
}


@st.composite
def spoken_clips(draw):
    texts = st.text(st.sampled_from("abcxyzé'中文字"), min_size=1, max_size=8)
    clips = []
    for number in range(draw(st.integers(2, 5))):
        speaker = draw(st.sampled_from(("1234", "2345")))
        split = draw(st.sampled_from(("train", "dev", "test"))) if number > 1 else ("train", "dev")[number]
        gender = {"1234": "female", "2345": "male"}[speaker]
        length = draw(st.integers(8, 20))
        clips.append(Spoken(f"{speaker}_77_{number:06d}", speaker, draw(texts), gender, split, number, length))
    return clips


def prepared(path, known):
    """Returns the fields and samples of the clips of a source by id, as `prepare` converts them."""
    items = list(speech_source(path, "my", known, "none").unique_items())
    assert all(isinstance(item, Clip) for item in items), items
    result = {}
    for group in by_recording(items):
        for index, converted in convert_clips(group, Format(9.0)):
            assert isinstance(converted, Sound), converted
            clip = group[index]
            fields = {name: getattr(clip, name) for name in ("text", "speaker", "gender", "language", "split")}
            result[clip.id] = fields, decode_flac(converted.flac)
    return result


@pytest.mark.parametrize("name", speech_writers.FORMATS)
@settings(max_examples=3)
@given(clips=spoken_clips())
def test_the_same_clips_in_every_format_give_the_same_set(name, clips, tmp_path_factory):
    written = speech_writers.FORMATS[name]
    path = written.write(tmp_path_factory.mktemp("my"), clips)
    known = guess(path)
    assert known.name == NAMES.get(name, name)
    result = prepared(path, known)
    by_id = {re.sub(r"^(train|dev|test)/", "", clip_id): row for clip_id, row in result.items()}
    assert sorted(by_id) == sorted(clip.id for clip in clips)
    for clip in clips:
        fields, samples = by_id[clip.id]
        expected = {field: getattr(clip, field) if field in written.fields else "" for field in ("speaker", "gender")}
        expected["split"] = clip.split if "split" in written.fields else split_of(split_key(clip.text) or clip.id)
        assert fields == expected | {"text": clip.text, "language": written.language}
        np.testing.assert_array_equal(samples, clip.samples)


def clip(name="1234_77_000000", number=0, split="train"):
    return Spoken(name, name[:4], f"text {number}", "female", split, number, 10 + number)


def listed(path):
    """Returns the clips that a file or folder lists, by id, and the reasons of what it leaves out."""
    items = list(speech_source(path, "my", guess(path), "none").unique_items())
    clips = {item.id: item for item in items if isinstance(item, Clip)}
    return clips, [item.reason for item in items if not isinstance(item, Clip)]


def lhotse_recording(*sources):
    return {"id": "r", "sources": list(sources), "sampling_rate": 16_000, "duration": 0.2, "num_samples": 3_200}


@pytest.mark.parametrize("is_one_file", [True, False])
def test_lhotse_channels_are_those_of_the_recording(is_one_file, tmp_path):
    """A recording may have its channels in one file, or each in a file of its own."""
    channels = [Spoken("x", "x", "", "", "", seed, 20).samples for seed in (1, 2)]
    if is_one_file:
        put(tmp_path / "both.wav", sound(np.stack(channels, 1)))
        sources = [{"type": "file", "channels": [0, 1], "source": "both.wav"}]
    else:
        names = [put(tmp_path / f"{number}.wav", sound(samples)).name for number, samples in enumerate(channels)]
        sources = [{"type": "file", "channels": [number], "source": name} for number, name in enumerate(names)]
    supervisions = [
        {"id": f"s{channel}", "recording_id": "r", "start": 0.05, "duration": 0.1, "channel": channel}
        for channel in (0, 1)
    ]
    lines(tmp_path / "my_recordings.jsonl", [lhotse_recording(*sources)])
    supervision_file = lines(tmp_path / "my_supervisions.jsonl", supervisions)
    cut = {"id": "c", "start": 0.05, "duration": 0.15, "type": "MonoCut", "recording": lhotse_recording(*sources)}
    inner = [row | {"start": 0.0} for row in supervisions]
    cuts = [cut | {"channel": channel, "supervisions": [row]} for channel, row in enumerate(inner)]
    cut_file = lines(tmp_path / "cuts.jsonl", cuts)
    for path in (supervision_file, tmp_path / "my_recordings.jsonl", cut_file):
        clips, _ = listed(path)
        for channel in (0, 1):
            np.testing.assert_array_equal(clips[f"s{channel}"].audio.decode(9.0), channels[channel][800:2400])


def test_lhotse_recordings_and_cuts_without_supervisions_have_no_text(tmp_path):
    put(tmp_path / "a.wav", sound(clip().samples))
    row = lhotse_recording({"type": "file", "channels": [0], "source": str(tmp_path / "a.wav")}) | {"duration": 0.1}
    whole = listed(lines(tmp_path / "recordings.jsonl", [row]))[0]["r"]
    assert (whole.text, whole.audio) == ("", AudioFile(str(tmp_path / "a.wav")))
    row = {"id": "c", "start": 0.02, "duration": 0.05, "channel": 0, "type": "MonoCut", "recording": row}
    part = listed(lines(tmp_path / "cuts.jsonl", [row]))[0]["c"]
    np.testing.assert_array_equal(part.audio.decode(9.0), clip().samples[320:1120])


def test_nemo_shards_with_manifests_of_their_own(tmp_path):
    path = speech_writers.FORMATS["nemo"].write(tmp_path, [clip(f"1234_77_{n:06d}", n) for n in range(4)])
    expected, _ = listed(path)
    rows = (path / "tarred_audio_manifest.json").read_text("utf-8").splitlines()
    (path / "tarred_audio_manifest.json").unlink()
    for shard in (0, 1):
        own = [row for row in rows if json.loads(row)["shard_id"] == shard]
        lines(path / f"sharded_manifests/manifest_{shard}.json", own)
    assert listed(path) == (expected, [])


def test_stretches_of_a_member_of_nemos_tar_files_follow_each_other(tmp_path):
    members = {name: sound(np.tile(clip().samples, 4)) for name in ("a.wav", "b.wav")}
    tar(tmp_path / "audio_0.tar", members)
    names = [f"{name}-sub{number}.wav" if number else f"{name}.wav" for number in range(3) for name in "ab"]
    rows = [{"audio_filepath": name, "offset": 0.1, "duration": 0.1, "shard_id": 0} for name in names]
    path = lines(tmp_path / "tarred_audio_manifest.json", rows)
    items = list(speech_source(path, "my", guess(path), "none").unique_items())
    assert [item.audio.source.name for item in items] == ["a.wav"] * 3 + ["b.wav"] * 3
    assert [len(group) for group in by_recording(items)] == [3, 3]


def test_webdataset_names_with_dots(tmp_path):
    """WebDataset ends names at the first dot; where that joins several sound files, the last one counts."""
    content = sound(clip().samples)
    members = {"a/b.wav": content, "a/b.txt": b"one", "c.0.wav": content, "c.0.txt": b"two"}
    members |= {"d.1.wav": content, "d.1.json": b'{"text": "three"}', "d.2.wav": content, "d.2.txt": b"four"}
    clips, dropped = listed(tar(tmp_path / "a.tar", members))
    assert {name: clip.text for name, clip in clips.items()} == {
        "a/b": "one",
        "c": "two",
        "d.1": "three",
        "d.2": "four",
    }
    assert dropped == []


def test_common_voice_without_official_splits_is_divided_by_sentence(tmp_path):
    clips = [clip(f"1234_77_{number:06d}", number) for number in range(8)]
    path = speech_writers.FORMATS["common_voice"].write(tmp_path, clips)
    (path / "train.tsv").unlink()
    found, _ = listed(path)
    assert {name: row.split for name, row in found.items()} == {row.id: split_of(split_key(row.text)) for row in clips}


def test_vctk_has_clips_without_text_where_transcripts_are_lost(tmp_path):
    path = speech_writers.FORMATS["vctk"].write(tmp_path, [clip(), clip("2345_77_000001", 1)])
    (path / "txt/2345/2345_77_000001.txt").unlink()
    lines(
        path / "speaker-info.txt", ["ID  AGE  GENDER  ACCENTS  REGION COMMENTS", "1234  23  F    English    Southern"]
    )
    clips, _ = listed(path)
    assert (clips["2345_77_000001"].text, clips["1234_77_000000"].text) == ("", "text 0")
    first = clips["1234_77_000000"]
    assert (first.age, first.gender, first.accent) == ("23", "female", "English")


def test_a_part_of_librispeech_is_divided_and_the_whole_keeps_its_parts(tmp_path):
    clips = [clip(f"1234_77_{number:06d}", number, split="train-clean-100") for number in range(9)]
    path = speech_writers.FORMATS["librispeech"].write(tmp_path, clips)
    assert {row.split for row in listed(path)[0].values()} == {"train_clean100"}
    part, _ = listed(path / "train-clean-100")
    assert {row.id: row.split for row in part.values()} == {row.id: split_of(split_key(row.text)) for row in clips}
    assert {row.gender for row in part.values()} == {"female"}  # of SPEAKERS.TXT above


def test_aishell_may_be_named_without_the_folder_around_it(tmp_path):
    path = speech_writers.FORMATS["aishell"].write(tmp_path, [clip()])
    clips, _ = listed(path / "data_aishell")
    assert clips == listed(path)[0]
    assert clips["1234_77_000000"].gender == "female"  # of resource_aishell beside it


def test_parquet_of_several_configurations_is_refused(tmp_path):
    for name in ("clean", "other"):
        speech_writers.FORMATS["parquet"].write(tmp_path / name, [clip()])
        (tmp_path / name / "data").rename(tmp_path / f"{name}.parquets")
        (tmp_path / name).rmdir()
    with pytest.raises(DataError, match=r"several configurations, in clean\.parquets, other\.parquets: name one"):
        listed(tmp_path)


@pytest.mark.parametrize("name", ["manifest", "common_voice", "ljspeech", "mls", "voxpopuli", "vctk"])
def test_the_folder_of_a_listing_is_not_taken_for_sound_files_without_text(name, tmp_path):
    path = speech_writers.FORMATS[name].write(tmp_path / "inner", [clip(f"1234_77_{n:06d}", n) for n in range(2)])
    with pytest.raises(DataError, match=rf"{path.parent}: in it, {path} is .*: name that"):
        guess(path.parent)


@pytest.mark.parametrize("kind", ["manifest", "kaldi"])
def test_a_million_clips_fit_into_a_gigabyte(kind, tmp_path):
    """An interpreter with the modules that `prepare` imports takes 110 MB, and a million ids of which none may occur
    twice 100 MB, which leaves 790 bytes for each clip. benchmarks/listing.py lists a million.
    """
    ids = [f"{number:04d}-{number:05d}-{number:08d}" for number in range(1_000)]
    text = "a transcript of the length that most of them have in read speech, which is some ninety letters"
    if kind == "kaldi":
        lines(tmp_path / "text", [f"{name} {text} {name}" for name in ids])
        lines(tmp_path / "utt2spk", [f"{name} {name[:4]}" for name in ids])
        path = lines(tmp_path / "wav.scp", [f"{name} flac -c -d -s /data/corpus/{name}.flac |" for name in ids]).parent
    else:
        rows = [{"audio": f"corpus/{name}.flac", "duration": 7.5, "text": f"{text} {name}"} for name in ids]
        path = lines(tmp_path / "my.jsonl", rows)
    tracemalloc.start()
    try:
        source = speech_source(path, "my", guess(path), "none")
        before, _ = tracemalloc.get_traced_memory()
        items = list(source.unique_items())
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(items) == len(ids)
    assert (after - before) / len(ids) < 790
