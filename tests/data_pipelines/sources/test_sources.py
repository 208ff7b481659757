"""The parsers of each source, on tiny hand-made copies of their formats."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.audio.clips import Clip, Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.sources import asterisk, catalogue, fillets, manifest, queen, text_files, tuxpaint
from data_pipelines.sources.listing import finish
from data_pipelines.text.normalize import usual_split


def kept(items):
    return {item.id: item for item in items if isinstance(item, Clip)}


def dropped(items):
    return {item.id: item.reason for item in items if isinstance(item, Dropped)}


def write(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_asterisk(tmp_path):
    transcripts = (
        "\ufeff; comment\n\nadded: Added.\nvm-star: Press * or 1\ndigits/1: one\nbeep: [beep]\nleave: <beep>\n"
        "silence/1: (1 second)\nlost: Lost\nspy: H.323\nadded: Twice\n"
    )
    path = tmp_path / "text/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    write(path, gzip.compress(transcripts.encode()))
    for key in ("added", "vm-star", "digits/1", "beep", "leave", "silence/1", "spy"):
        write(tmp_path / f"audio/usr/share/asterisk/sounds/en_Voice/{key}.g722", bytes(8_000))
    items = list(asterisk.clips("en", tmp_path / "text", tmp_path / "audio"))
    clips = kept(items)
    assert {key: clip.text for key, clip in clips.items()} == {
        "added": "added",
        "vm-star": "press star or one",
        "digits/1": "one",
    }
    assert clips["digits/1"].split == "test"  # sha1("one") % 100 is 6
    assert clips["added"].speaker == "en_Voice"
    assert len(clips["added"].audio.decode(9.0)) == 16_000  # G.722: two samples a byte
    assert dropped(items) == {
        "beep": "text in square brackets",
        "leave": "remark without words",
        "silence/1": "silence",
        "lost": "transcript without audio",
        "spy": "number or sign without spoken form",
    }


def game_string(text: str, at: int, align: int) -> bytes:
    """As the game stores it: length, text, padding up to a multiple of `align` from the start of the file."""
    body = bytes([len(text)]) + text.encode("latin-1")
    return body + bytes(-(at + len(body)) % align) if text else body


def dialogue_file(talk_key: int, joe: dict[int, str], person: dict[int, str], again: tuple[str, str]) -> bytes:
    header = 32  # no dialogue levels
    body = bytearray(header)

    def put_texts(texts):
        start = len(body)
        for index, text in texts.items():
            body.extend(struct.pack(">HH", 0, index))
            body.extend(game_string(text, len(body), 4))
        return start

    put_texts(joe)
    person_at = put_texts(person)
    again_at = len(body)
    for text in again:
        body.extend(game_string(text, len(body), 2))
    struct.pack_into(">5h", body, 0, 0, 0, talk_key, len(joe), len(person))
    struct.pack_into(">3H", body, 22, person_at, 0, again_at)
    return bytes(20) + bytes(body)


def cut_scene_file(texts: list[str]) -> bytes:
    body = bytearray(struct.pack(">5H", 0, len(texts), 0, 0, 12) + bytes(2))
    for text in ["*FL", *texts]:
        body.extend(game_string(text, len(body), 2))
    return bytes(20) + bytes(body)


def archive(files: dict[str, bytes]) -> bytes:
    offset = 15 + 21 * len(files)
    table = b""
    for name, content in files.items():
        table += struct.pack(">12sBII", name.encode(), 0, offset, len(content))
        offset += len(content)
    return b"QTBLCEM10".ljust(13, b"\0") + struct.pack(">H", len(files)) + table + b"".join(files.values())


@pytest.fixture
def queen_root(tmp_path):
    remarks = [b"It's a rock*02It is old*24"] + [b"*14"] * 1_186 + [b"It won't open*03"] + [b""] * 39
    files = {
        "BOB2.DOG": dialogue_file(
            7, {10: "Hi Bob!*14How are you?*XY00(237,112)"}, {255: "Fine."}, ("Again?*02", "Yes.")
        ),
        "C1A.CUT": cut_scene_file(["*", "#credits", "Look out!*14*WT@@ La la @@"]),
        "QUEEN2.JAS": b"\r\n".join(remarks),
    }
    clips = ("07000AJ1", "07000AJ2", "0700FFP1", "07XXXXP1", "07XXXXJ1", "C1A__031", "C1A__033", "JOE00411", "JOE00412")
    for number, name in enumerate((*clips, "JOE00011", "07SSSSJ1", "MIK_0019")):
        files[f"{name}.SB"] = bytes([number]) * (number + 1)
    write(tmp_path / "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c", archive(files))
    return tmp_path


def test_queen_matches_each_segment_with_its_clip(queen_root):
    items = list(queen.clips(queen_root))
    assert {key: (clip.text, clip.speaker) for key, clip in kept(items).items()} == {
        "07000AJ1": ("hi bob", "joe"),
        "07000AJ2": ("how are you", "joe"),
        "0700FFP1": ("fine", "bob"),
        "07XXXXP1": ("again", "bob"),
        "07XXXXJ1": ("yes", "joe"),
        "C1A__031": ("look out", ""),
        "C1A__033": ("la la", ""),
        "JOE00411": ("it's a rock", "joe"),
        "JOE00412": ("it is old", "joe"),
        "JOE00011": ("it won't open", "joe"),
    }
    assert dropped(items) == {"MIK_0019": "audio without transcript"}
    for number, clip in enumerate(kept(items).values()):
        content = Path(clip.audio.path).read_bytes()[clip.audio.offset :][: clip.audio.size]
        assert content == bytes([number]) * (number + 1)


def test_queen_refuses_another_format(tmp_path):
    write(tmp_path / "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c", b"something else")
    with pytest.raises(DataError, match=r"queen\.1c: not a QTBL archive"):
        list(queen.clips(tmp_path))


def test_fillets(tmp_path):
    script = (
        '\ndialogId("a", "font_small", "What is \\"that\\"?")\ndialogStr("Co je \\"to\\"?")\n'
        'dialogId("b", "font_big", "No.")\ndialogStr(\n  "Ne.")\n'
        'dialogId("c", "font_big", "F2!")\ndialogStr("F2!")\n'
    )
    write(tmp_path / "text/usr/share/games/fillets-ng/script/wreck/dialogs_cs.lua", script.encode())
    for name in "abcd":
        write(tmp_path / f"audio/usr/share/games/fillets-ng/sound/wreck/cs/{name}.ogg")
    items = list(fillets.clips("cs", tmp_path / "text", tmp_path / "audio"))
    clips = kept(items)
    assert (clips["wreck/a"].text, clips["wreck/a"].translation) == ("co je to", 'What is "that"?')
    assert (clips["wreck/a"].speaker, clips["wreck/b"].speaker) == ("small", "big")
    assert clips["wreck/a"].split == clips["wreck/b"].split
    assert dropped(items) == {
        "wreck/c": "number or sign without spoken form",
        "wreck/d": "audio without transcript",
    }


def test_tuxpaint(tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    write(stamps / "animals/cow.txt", b"A cow.\nfr.utf8=Une vache.\nfr_CA.utf8=Vache\nde.utf8=Eine Kuh.\n")
    write(stamps / "coin.txt", b"1 cent\nfr.utf8=1 centime\n")
    for name in (
        "animals/cow_desc_fr.ogg",
        "animals/cow_desc.ogg",
        "animals/cow.ogg",
        "coin_desc_fr.ogg",
        "x_desc_fr.ogg",
    ):
        write(stamps / name)
    items = list(tuxpaint.clips("fr", tmp_path))
    clip = kept(items)["animals/cow"]
    assert (clip.text, clip.translation, clip.split) == ("une vache", "A cow.", "train")
    assert dropped(items) == {"coin": "number or sign without spoken form", "x": "audio without transcript"}
    english = kept(tuxpaint.clips("en", tmp_path))
    assert {key: clip.text for key, clip in english.items()} == {"animals/cow": "a cow"}
    assert {key: clip.text for key, clip in kept(tuxpaint.sounds(tmp_path)).items()} == {"animals/cow": ""}


def test_manifest(tmp_path):
    rows = [
        {"audio": "a.wav", "text": "E\u0301t\u00e9, 2!", "speaker": 7, "language": "fr", "other": [1]},
        {"audio": "/abs/b.wav", "id": "b", "split": "holdout"},
        {"audio": ""},
        {"text": "no audio"},
        {"audio": "c.wav", "text": ["list"]},
        {"audio": "d.wav", "split": "../dev"},
        [1],
    ]
    lines = [json.dumps(row) for row in rows] + ["", "{broken", "\xff"]
    path = write(tmp_path / "my.jsonl", "\n".join(lines).encode("latin-1"))
    items = list(finish(manifest.rows(path), "none"))
    clips = kept(items)
    assert clips["a.wav"].text == "\u00c9t\u00e9, 2!"  # NFC, otherwise as given
    assert clips["a.wav"].speaker == "7"
    assert clips["a.wav"].audio.path == str(tmp_path / "a.wav")
    assert (clips["b"].text, clips["b"].split, clips["b"].audio.path) == ("", "holdout", "/abs/b.wav")
    bad = [item for item in items if isinstance(item, Dropped)]
    assert [item.id for item in bad] == [f"{path}:{number}" for number in (3, 4, 5, 6, 7, 9, 10)]
    assert all(item.is_bad and item.reason == "malformed line" and "remove the line" in item.detail for item in bad)
    basic = kept(finish(manifest.rows(path), "basic"))
    assert basic["a.wav"].text == "\u00e9t\u00e9 deux"
    spoken = kept(finish(manifest.rows(path), "spoken"))
    assert spoken["a.wav"].text == "\u00c9t\u00e9, deux!"
    assert spoken["a.wav"].split == clips["a.wav"].split


def test_splits_of_other_usual_names_are_train_dev_and_test(tmp_path):
    names = ("training", "Train", "validation", "valid", "VAL", "development", "testing", "holdout", "eval")
    rows = [{"audio": f"{name}.wav", "text": "a", "split": name} for name in names]
    path = write(tmp_path / "my.jsonl", "\n".join(map(json.dumps, rows)).encode())
    splits = [clip.split for clip in kept(finish(manifest.rows(path), "none")).values()]
    assert splits == ["train", "train", "dev", "dev", "dev", "dev", "test", "holdout", "eval"]
    path = write(tmp_path / "text.jsonl", "\n".join(map(json.dumps, rows)).encode())
    texts = text_files.text_files([str(path)], "my", unit="line", encoding="utf-8")
    assert [document.split for document in texts.documents()] == splits
    assert usual_split("validation", ("train", "validation", "test")) == "dev"
    assert usual_split("validation", ("train", "dev", "validation")) == "validation"  # another set of the same corpus


def test_manifest_splits_by_words_and_without_text_by_id(tmp_path):
    rows = [{"audio": f"{name}.wav", "text": text} for name, text in (("a", "One."), ("b", "one"), ("one", ""))]
    path = write(tmp_path / "my.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert {key: clip.split for key, clip in kept(finish(manifest.rows(path), "none")).items()} == {
        "a.wav": "test",
        "b.wav": "test",
        "one.wav": "train",  # sha1("one.wav") % 100
    }


def test_unknown_set_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="Did you mean asterisk-en"):
        catalogue.debian_source("asterisk-eng", tmp_path)


def test_truncated_archive_is_an_error(tmp_path):
    from data_pipelines.audio.clips import AudioSlice
    from data_pipelines.audio.decode import AudioError

    path = write(tmp_path / "queen.1c", bytes(np.zeros(10, np.uint8)))
    with pytest.raises(AudioError, match="truncated archive"):
        AudioSlice(str(path), "A.SB", 5, 10).decode(9.0)
