"""What each normaliser makes of a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_speechlm.evaluation.normalizers import basic, normalizer, written_without_spaces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don\u2019t  STOP\u2014the \u2018quoted\u2019 rock'n'roll!", "don't stop the quoted rock'n'roll"),
        ("dogs' 'tis ''", "dogs tis"),
        ("\ufb01ne \u2167 \uff21\uff22", "fine viii ab"),  # a ligature, a Roman numeral, full-width letters
        ("e\u0301te\u0301, \u00e9t\u00e9", "\u00e9t\u00e9 \u00e9t\u00e9"),  # composed and decomposed are one
        ("\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u4f60\u597d \u4e16\u754c"),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
        ),
        ("co\u00adoperate\u200b", "cooperate"),  # a soft hyphen and a zero-width space
        ("  ...  ", ""),
    ],
)
def test_basic(text, expected):
    assert basic(text) == expected


@given(st.text())
def test_basic_is_idempotent_and_leaves_words_only(text):
    once = basic(text)
    assert basic(once) == once
    assert once == " ".join(once.split())
    assert all(character.isalnum() or not character.isascii() or character in " '" for character in once)


def test_none_changes_encoding_and_spaces_only():
    assert normalizer("none")("A\u00a0 cafe\u0301,\n\uff22!") == "A caf\u00e9, B!"


def test_whisper_english_spells_numbers_as_digits():
    assert normalizer("whisper-english")("Mr. Smith's colour: twenty-three") == "mister smith is color 23"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u4f60\u597d", True),
        ("\u3053\u3093\u306b\u3061\u306f", True),
        ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", True),
        ("\ud55c\uad6d\uc5b4 \ubb38\uc7a5", False),
        ("mostly Latin \u4f60", False),
        ("123 ?!", False),
        ("", False),
    ],
)
def test_scripts_without_spaces(text, expected):
    assert written_without_spaces([text]) == expected
