"""Tokenizer of speech units: numbers and ids, repeats, words that are no units, and what is stored."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.tokenizers.base import load_tokenizer
from data_pipelines.tokenizers.units import UnitTokenizer

TOKENIZER = UnitTokenizer(13, "0123456789abcdef")
CODES = dataclasses.replace(TOKENIZER, merges_repeats=False)


def test_numbers_are_ids_and_back():
    assert isinstance(TOKENIZER, Tokenizer)
    assert TOKENIZER.encode(" 12 5\n0 ") == [13, 6, 1]
    assert TOKENIZER.decode([0, 13, 6, 0, 1]) == "12 5 0"
    assert TOKENIZER.encode("") == []
    assert TOKENIZER.encode_batch(["1", "2 3"]) == [[2], [3, 4]]
    assert TOKENIZER.pieces == ("", *map(str, range(13)))
    assert len(TOKENIZER.pieces) == TOKENIZER.vocab_size


@given(st.lists(st.integers(0, 12)))
def test_repeats_are_one_token_unless_each_has_its_own_sound(units):
    text = " ".join(map(str, units))
    assert CODES.decode(CODES.encode(text)) == text
    merged = [unit for place, unit in enumerate(units) if place == 0 or unit != units[place - 1]]
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == " ".join(map(str, merged))


@pytest.mark.parametrize("word", ["13", "-1", "1.0", "05", "hello", "1,2", "\u0663"])
def test_a_word_that_is_no_unit_is_named(word):
    assert TOKENIZER.unknown(f"3 {word} 4") == [word]
    with pytest.raises(DataError, match=r"no speech units: .*; write numbers from 0 to 12 with spaces") as error:
        TOKENIZER.encode(f"3 {word} 4")
    assert repr(word) in str(error.value)


def test_many_wrong_words_make_a_short_message():
    with pytest.raises(DataError, match="and 990 more") as error:
        TOKENIZER.encode(" ".join(f"{number}{'x' * 1000}" for number in range(1000)))
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("tokenizer", [TOKENIZER, CODES])
def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert loaded == tokenizer
    assert loaded.fingerprint == tokenizer.fingerprint


def test_the_fingerprint_is_of_the_units_too():
    changes = {"num_units": 14, "units": "another", "merges_repeats": False}
    changed = [dataclasses.replace(TOKENIZER, **{name: value}) for name, value in changes.items()]
    assert len({each.fingerprint for each in (TOKENIZER, *changed)}) == 4


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"kind": "units", "num_units": 13}')
    with pytest.raises(DataError, match="is not a readable tokenizer"):
        load_tokenizer(tmp_path)
