"""Transcripts as targets, and the split rule."""

import dataclasses
import io

import pytest
from rich.console import Console

from data_pipelines.report import summarise
from data_pipelines.text import UnspeakableError, normalise, spell, split_key, split_of
from data_pipelines.text_report import TextReport


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("Press 1, or * and then #!", "en", "press one or star and then pound"),
        ("It's 6 A.M. -- 'really'.", "en", "it's six am really"),
        ("at least a 28.8 kilobit modem", "en", "at least a twenty eight point eight kilobit modem"),
        ("in 1844, extension 8500", "en", "in eighteen forty four extension eighty five hundred"),
        ("3D audio [loud] (sigh) <ahem>", "en", "three d audio"),
        ("L\u2019interne\u00a07\u2026", "fr", "l'interne sept"),
        ("Нажмите 2 - чтобы", "ru", "нажмите два чтобы"),
        ("ﬁn de appuyez sur 5.Pour", "fr", "fin de appuyez sur cinq pour"),
        ("snake_case", "en", "snake case"),
        ("[beep]", "en", ""),
    ],
)
def test_normalise(text, language, words):
    assert normalise(text, language) == words
    assert normalise(words, language) == words  # idempotent


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("the 13th", "en"),
        ("at 19:00", "en"),
        ("the 1940's", "en"),
        ("5 €", "en"),
        ("stiskni F1", "cs"),
        ("a & b", "en"),
    ],
)
def test_what_cannot_be_spoken_is_refused(text, language):
    with pytest.raises(UnspeakableError):
        normalise(text, language)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (323, "three hundred twenty three"),
        (1100, "eleven hundred"),
        (1905, "nineteen oh five"),
        (1922, "nineteen twenty two"),
        (2000, "two thousand"),
    ],
)
def test_spell(number, words):
    assert spell(number, "en") == words


def test_spell_refuses_what_it_does_not_know():
    for number, language in ((10, "fr"), (10_000, "en"), (1, "cs")):
        with pytest.raises(UnspeakableError):
            spell(number, language)


def test_split_rule_is_the_published_one():
    # int(sha1, 16) % 100 of these is 6, 16 and 20, the first of train.
    assert [split_of(key) for key in ("one", "five", "b")] == ["test", "dev", "train"]
    shares = [split_of(f"sentence {number}") for number in range(5_000)]
    assert shares.count("test") / 5_000 == pytest.approx(0.12, abs=0.015)
    assert shares.count("dev") / 5_000 == pytest.approx(0.08, abs=0.015)


def test_split_ignores_case_and_punctuation():
    assert split_key(" Hello,   WORLD! ") == "hello world"


def test_a_set_without_a_dev_or_test_split_is_said_when_it_is_prepared():
    counts = {"documents": 1, "words": 1, "bytes": 1}
    printed = {}
    for splits in (("train",), ("train", "dev"), ("train", "dev", "test")):
        out = io.StringIO()
        TextReport("x", dict.fromkeys(splits, counts), {}, {}).print(Console(file=out, width=200))
        speech = summarise("x", [], [])
        rows = {split: {"clips": 1, "hours": 1.0, "words": 1} for split in splits}
        dataclasses.replace(speech, splits=rows).print(Console(file=out, width=200))
        printed[splits] = out.getvalue()
    assert printed["train",].count("no dev split") == printed["train",].count("no test split") == 2
    assert "no dev split" not in printed["train", "dev"]
    assert printed["train", "dev"].count("no test split") == 2
    assert "warning" not in printed["train", "dev", "test"]
