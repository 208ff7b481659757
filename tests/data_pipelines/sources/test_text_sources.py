"""Where text comes from: HTML pages, Debian packages, users' files of any kind."""

import base64
import bz2
import gzip
import json
import lzma
import shutil
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.sources import debian, debian_texts
from data_pipelines.sources.html_text import prose
from data_pipelines.sources.text_files import text_files
from data_pipelines.text.documents import Document


def test_prose_of_a_page():
    page = """<html><head><title>no</title><style>no</style></head><body>
    <div class="navheader"><table><tr><td>no</td></tr></table><div>no</div></div>
    <h1>A  title</h1><p>Some <em>run</em>ning
    text &amp; more&#8212;<br/>a line<hr>rule</p><pre>no <b>no</b></pre>
    <ul><li>one<p>two</p></li><li>three</li></ul><div class="x toc">no<div>no</div>no</div>tail<script>no</script>"""
    assert prose(page).split("\n") == [
        "A title",
        "Some running text & more—",
        "a line",
        "rule",
        "one",
        "two",
        "three",
        "tail",
    ]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_bible_by_chapter(tmp_path):
    text = b"Holy Bible\nGe1:1 In the beginning.\nGe1:2 And the earth.\nGe2:1 Thus.\nJude1:25 Amen.\n"
    header = bytes(0x54) + struct.pack(">II", 65536, 2) + bytes(4 * 3)
    write(tmp_path / "usr/lib/bible.data", header + gzip.compress(text))  # gzip reads LZW and its own format
    chapters = {item.id: item.text for item in debian_texts.bible(tmp_path)}
    assert chapters == {"bible/Ge1": "In the beginning.\nAnd the earth.", "bible/Ge2": "Thus.", "bible/Jude1": "Amen."}


def test_fortunes_one_by_one(tmp_path):
    folder = tmp_path / "usr/share/games/fortunes"
    write(folder / "cookie", "B\bBold words.\n%\n100%\nsure\n%\n")
    write(folder / "cookie.dat", b"\xff\xfe")
    write(folder / "ascii-art", "/\\")
    texts = {item.id: item.text.strip() for item in debian_texts.fortunes(tmp_path)}
    assert texts == {"fortunes/cookie/0": "Bold words.", "fortunes/cookie/1": "100%\nsure", "fortunes/cookie/2": ""}


def test_one_long_text_is_capped(tmp_path):
    for number in range(10):
        write(tmp_path / f"usr/share/doc/anarchism/html/sec{number}.html", f"<p>{'word ' * 20}</p>")
    items = list(debian_texts.anarchism(tmp_path, max_characters=500))
    kept = [item.id for item in items if isinstance(item, Document)]
    assert len(kept) == 5
    assert len({item.reason for item in items if isinstance(item, Dropped)}) == 1
    assert kept == [item.id for item in debian_texts.anarchism(tmp_path, 500) if isinstance(item, Document)]


def test_dictionary_entries(tmp_path):
    def number(value):
        digits = base64.b64encode(value.to_bytes(6, "big")).decode().lstrip("A")  # six bits a digit, as in base 64
        return digits or "A"

    entries = {"00-database-info": "About", "a": "A\n  first", "b": "Bee\n  second", "bee": "Bee\n  second"}
    text = "".join(dict.fromkeys(entries.values()))
    lines = [f"{word}\t{number(text.index(entry))}\t{number(len(entry))}" for word, entry in entries.items()]
    write(tmp_path / "usr/share/dictd/toy.index", "\n".join(lines))
    write(tmp_path / "usr/share/dictd/toy.dict.dz", gzip.compress(text.encode()))
    assert [item.text for item in debian_texts.dictionary(tmp_path)] == ["A\n  first", "Bee\n  second"]


def test_wordnet_glosses(tmp_path):
    noun = "  1 licence\n00001740 03 n 02 entity 0 a_thing 0 001 ~ 00001930 n 0000 | that which is  \n"
    for kind in ("adj", "adv", "noun", "verb"):
        write(tmp_path / f"usr/share/wordnet/data.{kind}", noun if kind == "noun" else "")
    assert [item.text.strip() for item in debian_texts.wordnet(tmp_path)] == ["entity, a thing: that which is"]


def test_a_package_that_is_laid_out_otherwise_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "newest", lambda name: name)
    monkeypatch.setattr(debian, "fetch", lambda name, cache: debian.Package(name, "1.0", tmp_path))
    with pytest.raises(DataError, match=r"bible-kjv-text 1\.0 has an unexpected layout"):
        list(debian_texts.debian_texts("text-en", tmp_path).documents())


def test_newest_follows_a_package_without_a_version(monkeypatch):
    records = {
        "postgresql-doc": {"Version": "15", "Depends": "postgresql-doc-15"},
        "fortunes": {"Depends": "fortunes-min"},
    }
    monkeypatch.setattr(debian, "_lookup", lambda name: records[name])
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    assert [debian.newest(name) for name in records] == ["postgresql-doc-15", "fortunes"]


def read(*patterns, unit="line", encoding="utf-8"):
    return list(text_files([str(pattern) for pattern in patterns], "my", unit=unit, encoding=encoding).documents())


def texts(items):
    return [item.text for item in items if isinstance(item, Document)]


PLAIN = "one\ntwo\n\n  \nthree\r\nfour"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["one\n", "two\n", "three\r\n", "four"]),
        ("paragraph", ["one\ntwo\n", "three\r\nfour"]),
        ("file", [PLAIN]),
    ],
)
def test_units_of_plain_text(tmp_path, unit, expected):
    items = read(write(tmp_path / "a.txt", PLAIN), unit=unit)
    assert texts(items) == expected
    assert [item.id for item in items] == [
        f"a.txt:{n}" for n in {"line": (1, 2, 5, 6), "paragraph": (1, 5)}.get(unit, (1,))
    ]
    assert items[0].source == "a"


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
)
def test_compressed_text(tmp_path, suffix, compress):
    content = "".join(f"line {number}\n" for number in range(200_000))  # over one block
    items = read(write(tmp_path / f"a.txt{suffix}", compress(content.encode())))
    assert texts(items) == content.splitlines(keepends=True)
    rows = [{"text": "a", "id": 7}, {"text": "b", "label": "x", "language": "en", "split": "dev", "more": [1]}]
    jsonl = "\n".join(map(json.dumps, rows)).encode()
    found = read(write(tmp_path / f"b.jsonl{suffix}", compress(jsonl)))
    assert found == [
        Document("7", "a", source="b"),
        Document(f"b.jsonl{suffix}:2", "b", "en", source="b", label="x", split="dev"),
    ]


def test_globs_parquet_and_order(tmp_path):
    pq.write_table(pa.table({"text": ["p", None], "source": ["s", "s"]}), tmp_path / "b.parquet")
    write(tmp_path / "deep/er/a.txt", "x")
    write(tmp_path / "c.txt", "y")
    items = read(tmp_path / "*.parquet", tmp_path / "**/*.txt")
    assert [(item.id, getattr(item, "source", item.id)) for item in items if isinstance(item, Document)] == [
        ("b.parquet:0", "s"),
        ("c.txt:1", "c"),
        ("deep/er/a.txt:1", "a"),
    ]
    assert [(item.id, item.reason, item.is_bad) for item in items if isinstance(item, Dropped)] == [
        ("b.parquet:1", "malformed row", True)
    ]


def test_bad_files_are_named_and_the_others_read(tmp_path):
    write(tmp_path / "a.txt", b"good\nn\xe4her\nalso good\n")
    write(tmp_path / "b.txt", b"")
    write(tmp_path / "c.txt.gz", gzip.compress(b"one\n" * 9)[:-12])
    write(
        tmp_path / "d.jsonl",
        '{"text": "ok", "id": "i"}\n{"text": 3}\n{"tex\n["x"]\n{"text": "n", "id": "i"}\n{"text": "n", "split": "."}\n',
    )
    items = read(tmp_path / "*")
    bad = [item for item in items if isinstance(item, Dropped)]
    assert all(item.is_bad and str(tmp_path) in item.detail for item in bad)
    assert [item.reason for item in bad] == [
        "wrong encoding",
        "empty file",
        "unreadable file",
        "malformed row",
        "malformed line",
        "malformed row",
        "duplicate id",
        "malformed row",
    ]
    assert "a.txt: byte 6 (line 2) is not utf-8" in bad[0].detail
    assert "--encoding" in bad[0].detail
    assert texts(items)[:2] == ["good\n", "also good\n"]
    assert texts(items)[-1] == "ok"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "cp1252"])
def test_other_encodings(tmp_path, encoding):
    items = read(write(tmp_path / "a.txt", "näher\nfern\n".encode(encoding)), unit="paragraph", encoding=encoding)
    assert texts(items) == ["näher\nfern\n"]
    assert texts(read(write(tmp_path / "b.txt", "näher".encode("utf-8-sig")))) == [
        "näher"
    ]  # a mark of UTF-8 is no letter


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("a.csv", "x", {}, r"a\.csv: not one of \.txt, \.jsonl, \.parquet"),
        ("a.txt", "x", {"encoding": "utf-9"}, "--encoding utf-9: not an encoding of Python"),
        (None, "", {}, r"no such file; give a path, or a pattern in quotes"),
    ],
)
def test_refused_before_any_work(tmp_path, name, content, arguments, message):
    path = write(tmp_path / name, content) if name else tmp_path / "*.txt"
    with pytest.raises(DataError, match=message):
        text_files([str(path)], "my", **{"unit": "line", "encoding": "utf-8"} | arguments)


def test_parquet_without_text_or_damaged(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no column is called 'text', only body"):
        read(tmp_path / "a.parquet")
    (item,) = read(write(tmp_path / "b.parquet", b"PAR1 and nothing"))
    assert item.reason == "unreadable file"
