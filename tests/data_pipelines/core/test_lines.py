"""Users' files of lines: linear, bounded, and named by line where a string cannot be stored."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.audio.clips import Clip, Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import byte_lines, csv_rows, parse_object, text_lines
from data_pipelines.sources import manifest
from data_pipelines.sources.listing import finish
from data_pipelines.sources.text_files import text_files
from data_pipelines.storage.index import read_index
from data_pipelines.text.documents import Document
from data_pipelines.tokenizers.base import CharTokenizer
from tests.data_pipelines.spoken_sets import write_spoken_set


def documents(path, **options):
    items = list(text_files([str(path)], "my", **{"unit": "line", "encoding": "utf-8"} | options).documents())
    return [item for item in items if isinstance(item, Document)], [item for item in items if isinstance(item, Dropped)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_do_not_depend_on_the_blocks(size):
    content = b"one\n\ntwo\r\n\nlast"
    found = list(byte_lines(content[start : start + size] for start in range(0, len(content), size)))
    assert [line.content for line in found] == content.splitlines(keepends=True)
    assert [content[line.offset :][: len(line.content)] for line in found] == [line.content for line in found]


def test_a_line_over_the_limit_is_named_and_the_next_are_read(tmp_path):
    long = json.dumps({"audio": "b.wav", "text": "x" * 100})
    (tmp_path / "a.jsonl").write_text('{"audio": "a.wav", "text": "a"}\n' + long + '\n{"audio": "c.wav", "text": "c"}')
    clips = list(finish(manifest.rows(tmp_path / "a.jsonl", max_line=50), "none"))
    assert [getattr(item, "text", "") for item in clips] == ["a", "", "c"]
    assert "a.jsonl:2: longer than 50 bytes" in clips[1].detail
    kept, bad = documents(tmp_path / "a.jsonl", max_line=50)
    assert ([item.text for item in kept], [item.reason for item in bad]) == (["a", "c"], ["line too long"])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: longer than 50 bytes"):
        list(text_lines(tmp_path / "a.jsonl", max_line=50))


def test_a_long_line_takes_linear_time(tmp_path):
    """128 blocks of one line: joined anew at each block, they are 8 GB to copy."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        for _ in range(128):
            file.write(b"x" * 2**20)
        file.write(b'\n{"text": "behind"}\n')
    start = time.process_time()
    kept, bad = documents(path)
    assert time.process_time() - start < 1.5
    assert ([item.text for item in kept], [item.reason for item in bad]) == (["behind"], ["line too long"])


UNSTORABLE = ["a\0b", "a\ud83d", "\udc80"]


@pytest.mark.parametrize("value", UNSTORABLE)
@pytest.mark.parametrize("key", ["audio", "id", "text", "speaker", "language", "translation", "split"])
def test_a_nul_or_surrogate_in_a_manifest_is_one_bad_line(tmp_path, key, value):
    rows = [{"audio": "a.wav", "text": "a"}, {"audio": "b.wav", "text": "b"} | {key: value}, {"audio": "c.wav"}]
    path = tmp_path / "my.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    items = list(finish(manifest.rows(path), "none"))
    assert [type(item) for item in items] == [Clip, Dropped, Clip]
    assert items[1].is_bad
    assert f"{path}:2: " in items[1].detail
    items[1].detail.encode()


@pytest.mark.parametrize("value", UNSTORABLE)
@pytest.mark.parametrize("key", ["id", "text", "language", "source", "label", "split"])
def test_a_nul_or_surrogate_in_a_corpus_is_one_bad_row(tmp_path, key, value):
    rows = [{"text": "a"}, {"text": "b"} | {key: value}, {"text": "c"}]
    path = tmp_path / "my.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    kept, bad = documents(path)
    if (key, value) == ("text", "a\0b"):  # which cleaning removes, as all control characters
        assert len(kept) == 3
    else:
        assert [item.text for item in kept] == ["a", "c"]
        assert "my.jsonl:2: " in bad[0].detail


def test_what_json_takes_no_object_from_is_one_bad_line(tmp_path):
    path = tmp_path / "my.jsonl"
    bad = ["[" * 100_000, '{"a":' * 100_000, "9" * 5_000, '{"text": "a", "text": "b"}', "[1]", '"text"']
    path.write_text("\n".join([*bad, '{"audio": "a.wav", "text": "a"}']))
    items = list(finish(manifest.rows(path), "none"))
    assert [item.reason for item in items[:-1]] == ["malformed line"] * len(bad)
    assert items[-1].text == "a"
    kept, dropped = documents(path)
    assert (len(kept), len(dropped)) == (1, len(bad))


def test_a_path_that_no_file_can_have_is_one_bad_clip(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps({"audio": "x" * 5_000, "text": "a"}))
    (clip,) = finish(manifest.rows(path), "none")
    clip.audio.fingerprint()
    with pytest.raises(DataError, match="cannot be opened"):
        clip.audio.decode(9.0)


def test_utf16_is_read_by_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "é"}\n{"text": "b"}\n'.encode("utf-16"))
    assert [item.text for item in documents(tmp_path / "a.jsonl", encoding="utf-16")[0]] == ["é", "b"]
    (tmp_path / "b.txt").write_bytes("one\ntwo\n".encode("utf-16")[:-1])
    _, bad = documents(tmp_path / "b.txt", encoding="utf-16")
    assert [item.reason for item in bad] == ["wrong encoding"]
    with pytest.raises(DataError, match="--encoding hex"):
        documents(tmp_path / "b.txt", encoding="hex")


def test_a_parquet_row_that_is_not_utf8_is_one_bad_row(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", b"also good"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    kept, bad = documents(tmp_path / "a.parquet")
    assert [item.text for item in kept] == ["good", "also good"]
    assert bad[0].detail.startswith("a.parquet:1 is not UTF-8")


def test_lists_are_read_by_line_feeds_alone(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffone\u2028still\x85one\r\ntwo".encode())
    assert list(text_lines(path)) == [(1, "one\u2028still\x85one"), (2, "two")]
    path.write_bytes(b"fine\nna\xefve\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2 is not UTF-8 \(byte 2\)"):
        list(text_lines(path))
    path.write_bytes(b"fine\nn\0\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2: holds a NUL"):
        list(text_lines(path))
    path.write_text('id,text\n1,"two\nlines"\n')
    assert list(csv_rows(path)) == [(3, {"id": "1", "text": "two\nlines"})]
    path.write_text("id\n" + "x" * 200_000)
    with pytest.raises(DataError, match=r"list\.txt, line 2: not CSV"):
        list(csv_rows(path))


def test_minimal_pairs_trials_phrases_and_hypotheses_name_the_line(tmp_path):
    from jax_speechlm.decoding.ctc.boosting import read_phrases
    from jax_speechlm.evaluation.minimal_pairs import read_pairs
    from jax_speechlm.evaluation.rover import _read
    from jax_speechlm.evaluation.speakers import _listed

    path = tmp_path / "a.jsonl"
    good = {"sentence_good": "a\u2028b", "sentence_bad": "b"}
    path.write_text(json.dumps(good, ensure_ascii=False) + "\n", "utf-8")
    assert read_pairs([path])[0].good == "a\u2028b"
    for value in UNSTORABLE:
        path.write_text("\n".join(map(json.dumps, [good, good | {"sentence_bad": value}])))
        with pytest.raises(DataError, match=r"a\.jsonl, line 2: "):
            read_pairs([path])
    path.write_text(json.dumps(good) + "\n" + "[" * 100_000)
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: .*nested too deeply"):
        read_pairs([path])
    row = {"id": "a", "reference": "x", "hypothesis": "x\u2028y"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    assert _read(path)[1][0].id == "a"

    path.write_text("ab\t1\nba\tnan\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: 'nan' is not a number"):
        read_phrases(path, CharTokenizer(" ab"))
    path.write_bytes("\ufeffab\nb\0\n".encode())
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: holds a NUL"):
        read_phrases(path, CharTokenizer(" ab"))

    rows = read_index(write_spoken_set(tmp_path / "set", {"x": [("a", 16_000)] * 3}), "x")
    path.write_text("1 x0 x2\n0 x1 x2\n")
    np.testing.assert_array_equal(_listed(path, rows).is_target, [True, False])
    path.write_bytes(b"1 x0 x2\n1 x0\0 x2\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: holds a NUL"):
        _listed(path, rows)


def test_parse_object_keeps_what_is_no_text():
    assert parse_object(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
