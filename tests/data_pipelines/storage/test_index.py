import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import IndexMismatchError, read_index, splits_of, token_lengths
from data_pipelines.storage.records import RecordReader
from data_pipelines.tokenizers.base import CharTokenizer, train_tokenizer
from tests.data_pipelines.prepared import flac, noise, write_prepared

FIRST = [(noise(i, 1000 + i), f"first {i}") for i in range(5)]
SECOND = [(noise(i, 2000 + i), f"second {i}") for i in range(3)]


@pytest.fixture
def sets(tmp_path):
    return [
        write_prepared(tmp_path / "one", {"train": FIRST, "dev": SECOND}),
        write_prepared(tmp_path / "two", {"train": SECOND}),
    ]


def test_sets_lie_end_to_end_and_remember_where_rows_come_from(sets):
    index = read_index(sets, "train")
    np.testing.assert_array_equal(index.num_samples, [1000, 1001, 1002, 1003, 1004, 2000, 2001, 2002])
    assert index.column("text").to_pylist() == [text for _, text in FIRST + SECOND]
    assert index.column("speaker")[6].as_py() == "speaker1"
    part, number = index.locate(6)
    assert (part.set_dir, part.split, number) == (sets[1], "train", 1)
    with pytest.raises(IndexError):
        index.locate(8)
    reader = RecordReader(index)
    for row, (samples, text) in enumerate(FIRST + SECOND):
        assert reader.read(row) == (flac(samples), text)


def test_fingerprints_tell_contents_not_places(sets, tmp_path):
    moved = write_prepared(tmp_path / "elsewhere", {"train": SECOND})
    assert read_index(sets[1], "train").fingerprint == read_index(moved, "train").fingerprint
    assert read_index(sets, "train").fingerprint != read_index(sets[::-1], "train").fingerprint


def test_token_lengths_are_counted_once_for_each_index_and_tokenizer(sets):
    index = read_index(sets, "train")
    words, digits = CharTokenizer("abcdefghijklmnopqrstuvwxyz "), CharTokenizer("0123456789")
    for tokenizer in (words, digits):
        expected = [len(tokenizer.encode(text)) for _, text in FIRST + SECOND]
        for _ in range(2):
            lengths = token_lengths(index, tokenizer)
            assert lengths.dtype == np.int32
            np.testing.assert_array_equal(lengths, expected)
    caches = sorted(sets[0].glob("index/*.npy"))
    assert len(caches) == 2
    np.save(caches[0], np.full(5, 77, np.int32))  # what stands in the cache is what is used
    assert 77 in {*token_lengths(index, words)[:5], *token_lengths(index, digits)[:5]}
    for cache in caches:  # a cache that was cut short is made anew
        cache.write_bytes(cache.read_bytes()[:-3])
    np.testing.assert_array_equal(token_lengths(index, digits), np.ones(8))


def test_a_changed_index_is_refused(sets):
    path = sets[0] / "index" / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "num_samples", pa.array([1] * 5)), path)
    with pytest.raises(IndexMismatchError, match=r"train\.parquet is not the index that its meta\.json .*prepare one"):
        read_index(sets, "train")


def test_records_of_another_number_are_refused(sets):
    meta = json.loads((sets[0] / "meta.json").read_text())
    (sets[1] / "meta.json").write_text(json.dumps({**meta, "tfds_dir": "../two/tiny/1.0.0"}))
    (sets[1] / "index" / "train.parquet").write_bytes((sets[0] / "index" / "train.parquet").read_bytes())
    index = read_index(sets[1], "train")
    with pytest.raises(IndexMismatchError, match=r"5 rows.*3 records"):
        RecordReader(index)


def test_missing_pieces_are_named(sets, tmp_path):
    with pytest.raises(DataError, match=r"not a prepared data set.*jax-speechlm prepare nowhere"):
        read_index(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no split 'test'; it has dev, train"):
        read_index(sets[0], "test")
    assert splits_of(sets[0]) == ("train", "dev")
    with pytest.raises(ValueError, match="at least one"):
        read_index([], "train")
    (sets[0] / "index" / "dev.parquet").unlink()
    with pytest.raises(DataError, match=r"dev\.parquet is missing"):
        read_index(sets[0], "dev")
    index = read_index(sets, "train")
    for shard in sets[0].glob("tiny/1.0.0/*"):
        shard.unlink()
    with pytest.raises(IndexMismatchError, match=r"cannot open the records of one/train"):
        RecordReader(index)
    (sets[0] / "meta.json").write_text("{}")
    with pytest.raises(IndexMismatchError, match=r"meta\.json is damaged"):
        read_index(sets[0], "train")


def test_a_tokenizer_can_be_trained_on_an_index(sets):
    texts = read_index(sets, "train").column("text").to_pylist()
    assert set(train_tokenizer(texts, "char").characters) == set("firstsecond 01234")
