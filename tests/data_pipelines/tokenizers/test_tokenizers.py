import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import BLANK
from data_pipelines.tokenizers.base import CharTokenizer, find_unknown, load_tokenizer, train_tokenizer

TEXTS = [
    "press one for sales or press two for support",
    "weasels have eaten our phone system",
    "all circuits are busy now please try your call again later",
    "the quick brown fox jumps over the lazy dog",
    "приветствую вас в системе",
    "今日は良い天気です",
    "cafe\u0301 naïve Ærø",
]
ALPHABET = sorted(set(unicodedata.normalize("NFKC", "".join(TEXTS))))


@pytest.fixture(scope="module", params=["char", "unigram", "bpe"])
def tokenizer(request):
    return train_tokenizer(TEXTS, request.param, None if request.param == "char" else 110)


@given(text=st.text(st.sampled_from(ALPHABET)))
@settings(max_examples=50)
def test_characters_round_trip_any_text_over_the_alphabet(text):
    tokenizer = CharTokenizer("".join(ALPHABET))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(alphabet=st.text(min_size=1), data=st.data())
@settings(max_examples=50)
def test_round_trip_holds_for_alphabets_of_any_script(alphabet, data):
    """Composition may join characters of the alphabet to one outside it; the text is the same all the same."""
    tokenizer = train_tokenizer([alphabet], "char")
    text = data.draw(st.text(st.sampled_from(tokenizer.characters)))
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFKC", text)


def test_known_texts_come_back(tokenizer):
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == unicodedata.normalize("NFKC", text)
        assert all(0 < number < tokenizer.vocab_size for number in ids)
        assert tokenizer.unknown(text) == []


@given(text=st.text())
@settings(max_examples=100)
def test_any_text_encodes_without_blank_and_loses_just_what_is_reported(tokenizer, text):
    ids = tokenizer.encode(text)
    assert BLANK not in ids
    if tokenizer.kind == "char":
        kept = len(unicodedata.normalize("NFKC", text)) - len(tokenizer.unknown(text))
        assert len(ids) >= kept  # decomposition may make more of one character
    assert (not tokenizer.unknown(text)) or find_unknown(tokenizer, [text]).num_affected == 1


def test_compatibility_forms_and_foreign_accents_are_read_as_their_base(tokenizer):
    assert tokenizer.decode(tokenizer.encode("\ufb01ve \uff46\uff4f\uff58")) == "five fox"
    assert tokenizer.decode(tokenizer.encode("fôx")) == "fox"
    assert tokenizer.unknown("fôx") == ["\u0302"]


def test_blanks_are_skipped_and_repeats_kept(tokenizer):
    ids = tokenizer.encode("press one")
    padded = [BLANK, *(part for number in ids for part in (number, BLANK)), BLANK]
    assert tokenizer.decode(padded) == "press one"
    char = CharTokenizer("ab")
    assert char.decode([1, 1, 0, 2]) == "aab"


def test_saving_and_loading_keeps_every_id(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.kind == tokenizer.kind
    assert loaded.vocab_size == tokenizer.vocab_size
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_the_same_texts_give_the_same_tokenizer_and_others_another(tokenizer):
    size = None if tokenizer.kind == "char" else 110
    assert train_tokenizer(iter(TEXTS), tokenizer.kind, size).fingerprint == tokenizer.fingerprint
    assert train_tokenizer([*TEXTS, "ß"], tokenizer.kind, size).fingerprint != tokenizer.fingerprint


def test_pieces_are_longer_than_characters():
    sizes = {kind: len(train_tokenizer(TEXTS, kind, 110).encode(TEXTS[0])) for kind in ("unigram", "bpe")}
    assert max(sizes.values()) < len(TEXTS[0])


def test_a_text_too_small_for_the_vocabulary_gives_a_smaller_one():
    assert 3 <= train_tokenizer(["aa bb aa"], "unigram", 500).vocab_size < 20


def test_the_report_counts_characters_and_texts():
    report = find_unknown(CharTokenizer("ab "), ["ab", "xa", "xx y", ""])
    assert report.characters == {"x": 3, "y": 1}
    assert (report.num_texts, report.num_affected) == (4, 2)
    assert "2 of 4 texts" in str(report)
    assert "'x' (U+0078) 3 times" in str(report)
    assert "every character of 1 texts" in str(find_unknown(CharTokenizer("a"), ["a"]))


def test_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a readable tokenizer"):
        load_tokenizer(tmp_path)
    train_tokenizer(TEXTS, "bpe", 110, out=tmp_path / "one")
    train_tokenizer(TEXTS, "bpe", 100, out=tmp_path / "other")
    (tmp_path / "one" / "tokenizer.model").write_bytes((tmp_path / "other" / "tokenizer.model").read_bytes())
    with pytest.raises(DataError, match="different tokenizers"):
        load_tokenizer(tmp_path / "one")
    with pytest.raises(ValueError, match="hold no character"):
        train_tokenizer([""], "char")
    with pytest.raises(ValueError, match="needs a vocab_size"):
        train_tokenizer(TEXTS, "bpe")
    with pytest.raises(ValueError, match="leave vocab_size out"):
        train_tokenizer(TEXTS, "char", 30)
    with pytest.raises(ValueError, match="could not learn 5 bpe pieces"):
        train_tokenizer(TEXTS, "bpe", 5)
    with pytest.raises(ValueError, match="distinct"):
        CharTokenizer("aa")
