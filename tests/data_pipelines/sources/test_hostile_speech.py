"""Damaged and hostile listings of speech: bad items that name file and line, or an error with a remedy; never a crash,
and nothing is read or run that the user did not name.
"""

import gzip
import io
import json
import random
import tarfile

import pytest

from data_pipelines.audio.clips import Clip
from data_pipelines.core.errors import DataError
from data_pipelines.sources.listing import AUDIO_SUFFIXES
from data_pipelines.sources.speech_formats import FORMATS, guess, speech_source
from tests.data_pipelines.sources import speech_writers
from tests.data_pipelines.sources.speech_writers import Spoken, lines, put, sound, tar

CLIPS = [
    Spoken("1234_77_000000", "1234", "abc", "female", "train", 0, 10),
    Spoken("1234_77_000001", "1234", "xyz é", "female", "dev", 1, 12),
    Spoken("2345_77_000002", "2345", "z", "male", "train", 2, 11),
    Spoken("2345_77_000003", "2345", "中文", "male", "dev", 3, 9),
]


def items(path, name=None, **options):
    known = FORMATS[name] if name else guess(path)
    return list(speech_source(path, "my", known, "none", **options).unique_items())


def details(found):
    """Returns the messages of bad items."""
    return [item.detail for item in found if not isinstance(item, Clip) and item.is_bad]


def messages(path, name):
    """Returns the messages of bad items, or of the error that ends the listing."""
    try:
        return details(items(path, name))
    except DataError as error:
        return [str(error)]


def kept(found):
    return [item.id for item in found if isinstance(item, Clip)]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Returns the content of a file after one of several accidents."""
    at = draw.randrange(len(content) + 1)
    rows = content.split(b"\n")
    draw.shuffle(rows)
    accidents = [
        content[:at],
        content[:at] + bytes(draw.randrange(256) for _ in range(9)) + content[at:],
        content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :],
        content.replace(bytes([draw.choice(b'\t ",|:0/')]), draw.choice((b"", b"\0", b"-")), 3),
        content + content,
        b"\n".join(rows),
        b"".join(part.upper() for part in rows),
        b"",
        b"[1, 2]\nnull\n{}\n" + content,
        content.decode("latin-1").encode("utf-16"),
    ]
    return draw.choice(accidents)


@pytest.mark.parametrize("name", speech_writers.FORMATS)
def test_damage_is_a_bad_item_or_an_error_with_a_remedy(name, tmp_path):
    path = speech_writers.FORMATS[name].write(tmp_path, CLIPS)
    known = guess(path)
    listings = [file for file in known.files(path) if file.suffix not in AUDIO_SUFFIXES]
    draw = random.Random(name)
    num_wrong = 0
    for _ in range(40):
        file = draw.choice(listings)
        original = file.read_bytes()
        plain = gzip.decompress(original) if file.suffix == ".gz" and draw.random() < 0.7 else original
        changed = damaged(plain, draw)
        file.write_bytes(changed if plain is original else gzip.compress(changed))
        wrong = messages(path, known.name)
        file.write_bytes(original)
        num_wrong += bool(wrong)
        assert all(str(tmp_path) in message or "occurs twice" in message for message in wrong)
    assert num_wrong > 3 or name == "files"  # whose texts may be anything


@pytest.mark.parametrize("name", FORMATS)
def test_a_wrong_format_is_an_error_with_a_remedy(name, tmp_path):
    for other, written in speech_writers.FORMATS.items():
        path = written.write(tmp_path / other.replace(" ", "_"), CLIPS)
        if guess(path).name != name:
            assert all(str(path) in message for message in messages(path, name))


def test_an_unknown_folder_and_an_unknown_format_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"the format is not known.*kaldi \(a Kaldi or ESPnet data folder\)"):
        guess(tmp_path)
    with pytest.raises(DataError, match="none: cannot be read"):
        guess(tmp_path / "none")


OUTSIDE = "../../secret"


@pytest.mark.parametrize(
    ("name", "path", "row"),
    [
        ("common_voice", "train.tsv", f"s\t{OUTSIDE}.mp3\ttext\t2\t\t\t\ten"),
        ("common_voice", "train.tsv", "s\t/etc/hostname.mp3\ttext\t2\t\t\t\ten"),
        ("audiofolder", "train/metadata.csv", f"{OUTSIDE}.wav,1,text,s,female"),
        ("librispeech", "train/1234/7/1234-7.trans.txt", f"{OUTSIDE} text"),
        ("mls", "mls_english/train/transcripts.txt", "1234_.._../../secret\ttext"),
        ("voxpopuli", "en/asr_train.tsv", f"{OUTSIDE}\t\ttext\ts\ttrain\tmale\tTrue\tNone"),
        ("ljspeech", "LJSpeech-1.1/metadata.csv", f"{OUTSIDE}|text|text"),
    ],
)
def test_a_corpus_names_no_file_outside_its_folder(name, path, row, tmp_path):
    root = speech_writers.FORMATS[name].write(tmp_path, CLIPS)
    listing = tmp_path / path
    number = len(listing.read_text("utf-8").splitlines()) + 1
    listing.write_text(listing.read_text("utf-8") + row + "\n", "utf-8")
    found = items(root)
    assert sorted(kept(found)) == [clip.id for clip in CLIPS]
    (detail,) = details(found)
    assert detail.startswith(f"{listing}:{number}: ")
    assert "no path below" in detail


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("utt call 0.5", "expected a name, a recording, start and end, found 3 fields"),
        ("utt call -1 2", '"start" must be seconds'),
        ("utt call x 2", '"start" must be seconds'),
        ("utt call 0 nan", '"end" must be seconds'),
        ("utt call 2 1", "has no length"),
        ("utt elsewhere 0 1", "wav.scp has no recording 'elsewhere'"),
        ("utt call 0 1 x", "invalid literal"),
    ],
)
def test_a_wrong_segment_is_named_by_its_line(row, message, tmp_path):
    path = speech_writers.FORMATS["kaldi segments"].write(tmp_path, CLIPS)
    listing = put(path / "segments", (path / "segments").read_text("utf-8") + row)
    (detail,) = details(items(path))
    assert detail.startswith(f"{listing}:5: ")
    assert message in detail


def test_a_segment_past_the_end_is_left_out_when_it_is_decoded(tmp_path):
    path = speech_writers.FORMATS["kaldi segments"].write(tmp_path, CLIPS)
    put(path / "segments", (path / "segments").read_text("utf-8") + "utt call 0.4 100")
    clip = next(item for item in items(path) if item.id == "utt")
    with pytest.raises(DataError, match=r"long\.wav\[0\.4:100\]: stretch outside the recording; .* lasts 0\.62 s"):
        clip.audio.decode(200.0)


def test_a_command_of_a_list_runs_only_if_allowed(tmp_path):
    wave = put(tmp_path / "a.wav", sound(CLIPS[0].samples))
    path = lines(tmp_path / "data/wav.scp", [f"a touch {tmp_path}/ran; cat {wave} |", "b exit 3 |", "c true |"]).parent
    found = items(path)
    assert not kept(found)
    assert details(found)[0].startswith(f"{path}/wav.scp:1: a is the output of a command, `touch")
    assert all("--allow-commands" in detail for detail in details(found))
    assert not (tmp_path / "ran").exists()
    works, fails, is_empty = items(path, allow_commands=True)
    assert (works.audio.decode(9.0) == CLIPS[0].samples).all()
    assert (tmp_path / "ran").exists()
    with pytest.raises(DataError, match=r"wav\.scp:2: command fails; `exit 3` ends with status 3"):
        fails.audio.decode(9.0)
    with pytest.raises(DataError, match="it writes nothing"):
        is_empty.audio.decode(9.0)


def test_segments_of_a_command_that_does_not_know_its_length(tmp_path):
    """Programs that write to a pipe cannot go back to the header."""
    wave = bytearray(sound(CLIPS[0].samples))
    wave[4:8] = wave[40:44] = b"\xff\xff\xff\xff"
    put(tmp_path / "a.wav", bytes(wave))
    lines(tmp_path / "data/wav.scp", [f"call cat < {tmp_path}/a.wav |"])
    lines(tmp_path / "data/segments", ["a call 0.02 0.05", "b call 0.05 -1"])
    first, rest = items(tmp_path / "data", allow_commands=True)
    assert (first.audio.decode(9.0) == CLIPS[0].samples[320:800]).all()
    assert (rest.audio.decode(9.0) == CLIPS[0].samples[800:]).all()


def test_members_of_a_tar_file_that_are_links_are_bad_items(tmp_path):
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("a.wav", tarfile.SYMTYPE), ("b.wav", tarfile.LNKTYPE), ("c.wav", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("../d.wav")  # a name is a name: nothing is unpacked
        content = sound(CLIPS[0].samples)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    found = items(path)
    assert kept(found) == ["../d"]
    assert [detail.partition(": ")[0] for detail in details(found)] == [f"{path}:{name}.wav" for name in "abc"]


def test_tar_files_that_are_cut_short_or_compressed(tmp_path):
    whole = tar(tmp_path / "a.tar", {"a.wav": sound(CLIPS[0].samples), "b.wav": sound(CLIPS[1].samples)}).read_bytes()
    path = put(tmp_path / "short.tar", whole[:4_000])
    found = items(path)
    (detail,) = details(found)
    assert f"{path}: unexpected end of data" in detail
    path = put(tmp_path / "zipped.tar", gzip.compress(whole))
    assert "it may be damaged: copy it again" in details(items(path))[0]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": b"text"}, "expected one sound file, found txt"),
        ({"a.wav": b"x", "a.txt": b"\xff"}, "invalid start byte"),
        ({"a.wav": b"x", "a.json": b"{"}, "Expecting property name"),
        ({"a.wav": b"x", "a.json": b'{"text": [1]}'}, '"text" must be a string'),
    ],
)
def test_a_wrong_sample_of_webdataset_is_named(members, message, tmp_path):
    path = tar(tmp_path / "a.tar", members)
    (detail,) = details(items(path))
    assert detail.startswith(f"{path}:a: ")
    assert message in detail


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_filepath": "none.wav"}, "has no member 'none.wav'"),
        ({"shard_id": 9}, "no audio_9.tar is next to the manifest"),
        ({"shard_id": [1]}, '"shard_id" must be the number of a tar file'),
        ({"offset": -1}, '"offset" must be seconds'),
        ({"audio_filepath": None}, '"audio" must be the path of a file'),
    ],
)
def test_a_wrong_row_of_nemo_is_named_by_its_line(change, message, tmp_path):
    path = speech_writers.FORMATS["nemo"].write(tmp_path, CLIPS)
    listing = path / "tarred_audio_manifest.json"
    rows = [json.loads(line) for line in listing.read_text("utf-8").splitlines()]
    lines(listing, [*rows, rows[-1] | {"id": "x"} | change])
    (detail,) = details(items(path))
    assert detail.startswith(f"{listing}:5: ")
    assert message in detail


def cut(**changes):
    recording = {"id": "r", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}], "duration": 1.0}
    supervision = {"id": "s", "recording_id": "r", "start": 0, "duration": 0.5, "channel": 0, "text": "a"}
    row = {"id": "c", "start": 0, "duration": 1.0, "channel": 0, "supervisions": [supervision], "type": "MonoCut"}
    return row | {"recording": recording} | changes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (cut(recording=None), "not as lhotse writes it"),
        (cut(channel=3, supervisions=[]), "no source has the channels"),
        (cut(start=-1), '"start" must be seconds'),
        (cut(supervisions=[{"start": 0, "duration": 1}]), 'no "id"'),
        (cut(supervisions=[{"id": "s", "start": 0, "duration": -1}]), '"duration" must be seconds'),
        (cut(supervisions=[{"id": "s", "start": 2, "duration": 1}]), "has no length"),
        ({"type": "MonoCut", "id": "c"}, "no key 'recording'"),
    ],
)
def test_a_wrong_cut_is_named_by_its_line(row, message, tmp_path):
    path = lines(tmp_path / "cuts.jsonl", [cut(), row])
    found = items(path)
    assert kept(found) == ["s"]
    (detail,) = details(found)
    assert detail.startswith(f"{path}:2: ")
    assert message in detail


def test_cuts_that_are_mixed_or_augmented_are_left_out_and_counted(tmp_path):
    speed = cut()
    speed["recording"]["transforms"] = [{"name": "Speed", "kwargs": {"factor": 0.9}}]
    memory = cut()
    memory["recording"]["sources"][0] |= {"type": "memory", "source": "UklGRg=="}
    found = items(lines(tmp_path / "cuts.jsonl", [speed, {"id": "m", "tracks": [], "type": "MixedCut"}, memory]))
    assert [item.reason for item in found] == [
        "augmented recording",
        "audio that is no file",
        "cut of several recordings",
    ]
    assert not any(item.is_bad for item in found)


def test_a_duplicate_id_keeps_the_first(tmp_path):
    path = speech_writers.FORMATS["kaldi"].write(tmp_path, CLIPS)
    listing = path / "train/wav.scp"
    put(listing, listing.read_text("utf-8") * 2)
    found = items(path)
    assert sorted(kept(found)) == [clip.id for clip in CLIPS]
    assert [item.reason for item in found if not isinstance(item, Clip)] == ["duplicate id"] * 2


def test_a_list_in_another_encoding_is_an_error_that_names_the_line(tmp_path):
    path = speech_writers.FORMATS["kaldi"].write(tmp_path, CLIPS)
    put(path / "dev/text", "1234_77_000001 xyz é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"dev/text, line 1 is not UTF-8 .*: convert the file, for example with iconv"):
        items(path)
