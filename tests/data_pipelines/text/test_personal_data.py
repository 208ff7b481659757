"""What identifies a person is replaced, and what does not is kept."""

import random
import re

import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from data_pipelines.sources.speech_formats import MANIFEST, speech_source
from data_pipelines.text.cleaning import Cleaning, clean
from data_pipelines.text.documents import Document
from data_pipelines.text.personal_data import scrub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to Jane.Doe+x@mail.example.co.uk.", "write to EMAIL."),
        ("from DE89 3704 0044 0532 0130 00 to GB82WEST12345698765432", "from ACCOUNT to ACCOUNT"),
        ("host 192.168.0.17, or 2001:db8::1.", "host ADDRESS, or ADDRESS."),
        ("my number is 078-05-1120", "my number is NUMBER"),
        ("card 4111 1111 1111 1111, or 5500-0000-0000-0004", "card CARD, or CARD"),
        ("call +49 30 901820-123 or (030) 9018 20123", "call PHONE or PHONE"),
        ("call 0171 234 5678 now", "call PHONE now"),
        ("it is five five five, one two three four", "it is NUMBER"),
        ("it is double five oh nine one two seven six", "it is NUMBER"),
    ],
)
def test_what_identifies_a_person_is_replaced(text, expected):
    assert scrub(text) == expected
    assert scrub(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "in 1984, on 2026-11-30 at 12:45:10, for 1,234,567.89 euros",
        "pi is 3.14159265358979",
        "version 1.2.3, section 4.5.6.7.8, ratio 16:9",
        "he said @ the corner",
        "one two three four five six",
        "DE89 3704 0044 0532 0130 01",  # its check digits are wrong
        "part 4111 1111 1111 1112 of the order",  # so is its
        "999.1.1.1",
        "",
    ],
)
def test_other_numbers_are_kept(text):
    assert scrub(text) == text


def test_check_digits_find_every_card_and_no_wrong_one():
    """Of ten last digits one is right."""
    draw = random.Random(0)
    for _ in range(50):
        stem = "".join(draw.choice("0123456789") for _ in range(18))  # too long for a telephone
        assert sum(scrub(f"card {stem}{last}") == "card CARD" for last in range(10)) == 1


def test_it_is_a_step_of_cleaning():
    (document,) = clean([Document("a", "Ask a@b.example today.")], Cleaning(steps=("personal", "punctuation")))
    assert re.fullmatch("Ask EMAIL today", document.text)


def test_transcripts_of_a_manifest_are_scrubbed_before_they_are_normalised(tmp_path):
    manifest = tmp_path / "calls.jsonl"
    manifest.write_text('{"audio": "a.wav", "text": "Write to a@b.example, or +49 30 901820123."}\n')
    for text_form, expected in (("none", "Write to EMAIL, or PHONE."), ("basic", "write to email or phone")):
        source = speech_source(manifest, "calls", MANIFEST, text_form, scrubs=True)
        assert [clip.text for clip in source.items()] == [expected]


def test_the_option_is_for_transcripts(tmp_path):
    with pytest.raises(DataError, match="for text add `personal` to --steps"):
        prepare("asterisk-en", scrub=True, data_dir=tmp_path)
