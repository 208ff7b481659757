"""The tokenizer of words: how text is split, which words have ids, and that it is saved and read."""

import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import find_unknown, load_tokenizer, train_tokenizer
from data_pipelines.tokenizers.words import WordTokenizer, split_words

HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"  # with marks inside
TEXTS = ["The cat sat on the mat.", "The CAT; the dog's mat\u2014'the end'", "A lone word"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP!", ["don't", "stop"]),
        ("the dogs\u2019 'quoted' words", ["the", "dogs", "quoted", "words"]),
        ("Stra\u00dfe caf\u00e9 cafe\u0301", ["strasse", "caf\u00e9", "caf\u00e9"]),
        (f"{HINDI} 12 snake_case a-b\nc", [HINDI, "12", "snake", "case", "a", "b", "c"]),
        (" ' \u2014 ", []),
    ],
)  # fmt: skip
def test_a_text_is_split_into_words(text, words):
    assert split_words(text) == words


def test_frequent_words_have_ids_by_frequency(tmp_path):
    tokenizer = train_tokenizer(TEXTS, "word", out=tmp_path, min_count=2)
    assert (tokenizer.words, tokenizer.counts) == (("the", "cat", "mat"), (5, 2, 2))
    assert tokenizer.pieces == ("", "the", "cat", "mat")
    assert tokenizer.encode("A mat for The cat") == [3, 1, 2]
    assert tokenizer.decode([3, 0, 1]) == "mat the"
    assert tokenizer.encode_batch(TEXTS)[2] == []
    assert tokenizer.unknown("the dog!") == ["d", "o", "g"]
    assert find_unknown(tokenizer, TEXTS).num_affected == 3
    again = load_tokenizer(tmp_path)
    assert again == tokenizer
    assert again.fingerprint == tokenizer.fingerprint
    assert tokenizer.fingerprint != WordTokenizer(tokenizer.words, (5, 2, 1)).fingerprint


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match="none of the 10 words in the texts occurs 9 times: lower --min-count"):
        train_tokenizer(TEXTS, "word", min_count=9)
    with pytest.raises(ValueError, match="leave vocab_size out"):
        train_tokenizer(TEXTS, "word", 100)
    with pytest.raises(ValueError, match="distinct words"):
        WordTokenizer(("a", "a"), (1, 1))
    with pytest.raises(ValueError, match="positive count"):
        WordTokenizer(("a", "b"), (1, 0))
    train_tokenizer(TEXTS, "word", out=tmp_path, min_count=2)
    saved = tmp_path / "tokenizer.json"
    saved.write_text(saved.read_text().replace("cat", "cow"))
    with pytest.raises(DataError, match="save it again"):
        load_tokenizer(tmp_path)
