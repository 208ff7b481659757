"""Tokenizers for running text: lines, bytes, long paragraphs, many texts at once."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers.base import CharTokenizer, load_tokenizer, train_tokenizer

VERSES = [
    "In the beginning God created the heaven and the earth.\nAnd the earth was without form, and void.\n\n"
    "And God said, Let there be light: and there was light.",
    "He said:  two spaces\n and an indent",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def with_bytes(request):
    return train_tokenizer(VERSES, request.param, 330, byte_fallback=True)


@settings(max_examples=150)
@given(text=ANY_TEXT)
def test_with_bytes_every_text_comes_back(with_bytes, text):
    ids = with_bytes.encode(text)
    assert with_bytes.decode(ids) == unicodedata.normalize("NFKC", text)
    assert all(0 < number < with_bytes.vocab_size for number in ids)
    assert with_bytes.unknown(text) == []


def test_bytes_survive_saving(with_bytes, tmp_path):
    with_bytes.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == with_bytes.fingerprint
    assert loaded.encode("日本\n語") == with_bytes.encode("日本\n語")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_lines_come_back_and_their_words_are_those_of_other_places(kind):
    tokenizer = train_tokenizer(VERSES[:1], kind, 90)
    assert tokenizer.decode(tokenizer.encode(VERSES[0])) == VERSES[0]
    line_end = tokenizer.pieces.index("\n")
    assert tokenizer.encode("\nthe\n\nearth\n") == [
        line_end,
        *tokenizer.encode("the"),
        line_end,
        line_end,
        *tokenizer.encode("earth"),
        line_end,
    ]
    assert [piece for piece in tokenizer.pieces if "\n" in piece] == ["\n"]


def test_an_unknown_line_end_is_a_space():
    for tokenizer in (CharTokenizer("ab "), train_tokenizer(["ab a b ab"], "bpe", 6)):
        assert tokenizer.decode(tokenizer.encode("a\nb")) == "a b"
        assert tokenizer.unknown("a\nb") == []
    assert CharTokenizer("ab\n").decode(CharTokenizer("ab\n").encode("a\nb")) == "a\nb"


@pytest.mark.parametrize("text", ["ab cd " * 3000, "日本" * 5000, "x" * 2500 + " y"])
def test_long_paragraphs_are_learned_from(text):
    """SentencePiece passes over sentences of more than 4192 bytes without a word."""
    tokenizer = train_tokenizer([text, "z"], "bpe", 20)
    assert tokenizer.unknown(text) == []
    assert tokenizer.decode(tokenizer.encode(text)) == " ".join(text.split())


def test_many_texts_at_once(with_bytes):
    texts = [*VERSES, "", "x\n", *VERSES]
    for tokenizer in (with_bytes, CharTokenizer("abcdefgh \n"), train_tokenizer(VERSES, "unigram", 90)):
        for num_threads in (1, 3):
            assert tokenizer.encode_batch(texts, num_threads) == [tokenizer.encode(text) for text in texts]
        assert tokenizer.encode_batch([]) == []
