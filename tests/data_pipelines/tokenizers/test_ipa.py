"""Tokenizer of IPA phones: several languages by eSpeak NG, what is stored, and what is missing."""

import logging
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.text.spoken_form import UnspokenError, text_for
from data_pipelines.tokenizers import ipa
from data_pipelines.tokenizers.base import load_tokenizer, train_tokenizer

pytest.importorskip("phonemizer")
pytest.importorskip("espeakng_loader")
TEXTS = ["Please enter your password, then press the pound key.", "Hello world! Sure?"]


@pytest.fixture(scope="module")
def english():
    return train_tokenizer(TEXTS, "ipa")


def test_a_text_becomes_phones_with_pauses(english):
    assert isinstance(english, Tokenizer)
    assert english.decode(english.encode("Hello,  \u201cworld\u201d!\n")) == "həlˈoʊ, wˈɜːld!"
    assert english.decode([0, *english.encode("sure?"), 0]) == "ʃˈʊɹ?"
    assert english.encode("") == english.encode(" - ") == []
    assert english.encode_batch(TEXTS) == [english.encode(text) for text in TEXTS]
    assert len(english.pieces) == english.vocab_size == len(english.symbols) + 1
    assert "\u2581" in english.pieces


def test_sounds_that_the_training_texts_lack_are_left_out(english):
    assert "θ" not in english.symbols
    assert english.decode(english.encode("thin")) == "ˈn"  # θ and ɪ


@pytest.mark.parametrize(
    ("language", "text", "phones"),
    [
        ("fr-fr", "Bonjour, le monde", "bɔ̃ʒˈuʁ, lə mˈɔ̃d"),
        ("de", "Guten Tag", "ɡˈuːtən tˈɑːk"),
        ("es", "Buenos días", "bwˈenos ðˈias"),
        ("ru", "Привет", "prʲivʲˈet"),
    ],
)
def test_other_languages(language, text, phones):
    tokenizer = train_tokenizer([text], "ipa", language=language)
    assert tokenizer.decode(tokenizer.encode(text)) == phones
    assert tokenizer.unknown(text) == []


def test_letters_of_other_scripts_are_unknown(english):
    assert english.unknown("caf\u00e9 \u20ac 5 \u041f\u6f22\u03a9") == ["\u041f", "\u6f22", "\u03a9"]
    assert text_for(english, "Caf\u00e9: 2") == "Caf\u00e9: two"
    with pytest.raises(UnspokenError, match="CYRILLIC"):
        text_for(english, "\u041f\u0440\u0438")


def test_a_saved_tokenizer_is_read_without_espeak(english, tmp_path, monkeypatch):
    english.save(tmp_path)
    ipa._backend.cache_clear()
    monkeypatch.setitem(sys.modules, "phonemizer", None)
    monkeypatch.setitem(sys.modules, "phonemizer.backend", None)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.fingerprint, loaded.pieces) == (english.fingerprint, english.pieces)
    with pytest.raises(DataError, match=r"espeak\]"):
        loaded.encode("hello")
    ipa._backend.cache_clear()


def test_another_espeak_is_warned_of_once(english, caplog):
    older = ipa.IpaTokenizer(english.symbols, "en-us", english.scripts, "1.48.0")
    assert older.fingerprint != english.fingerprint
    with caplog.at_level(logging.WARNING):
        assert older.encode("hello") == older.encode("hello") == english.encode("hello")
    assert [record.getMessage().count("1.48.0") for record in caplog.records] == [1]


def test_threads_and_processes_encode_alike(english):
    """EspeakNG is one library with one state."""
    texts = [text * (1 + place % 3) for place, text in enumerate(TEXTS * 40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(english.encode, texts)) == [english.encode(text) for text in texts]
    assert pickle.loads(pickle.dumps(english)).encode(TEXTS[0]) == english.encode(TEXTS[0])


def test_what_cannot_be_made_is_named():
    with pytest.raises(DataError, match="fr-be, fr-ch, fr-fr"):
        train_tokenizer(["bonjour"], "ipa", language="fr")
    with pytest.raises(ValueError, match="no word of en-us"):
        train_tokenizer([" - "], "ipa")
