# ruff: noqa: RUF001  typographic signs are meant
"""Text as it is read aloud."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.core.errors import UserError
from data_pipelines.text.numbers import UnspeakableError
from data_pipelines.text.spoken_form import PAUSES, UnspokenError, read_aloud, spoken_form, text_for
from data_pipelines.tokenizers.base import CharTokenizer

CASES = {
    # cardinals, years, decimals
    "I have 7 of 1,234,567": "I have seven of one million two hundred thirty four thousand five hundred sixty seven",
    "1844, 1905, 1900 and 2005": "eighteen forty four, nineteen oh five, nineteen hundred and two thousand five",
    "in 2000": "in two thousand",
    "1,050 or 10000": "one thousand fifty or ten thousand",
    "1,000,000,000,000": "one trillion",
    "3.14, 0.5, .5 and 007": "three point one four, zero point five, point five and zero zero seven",
    "-5 and −5.2": "minus five and minus five point two",
    "version 1.2.3": "version one point two point three",
    "12345678901": "one two three four five six seven eight nine zero one",
    "٣ cats": "three cats",
    # ordinals, fractions, decades, powers
    "1st, 2nd, 3rd, 12th, 20th, 21st": "first, second, third, twelfth, twentieth, twenty first",
    "the 100th": "the one hundredth",
    "1/2, 3/4, 2/3, 5/8": "one half, three quarters, two thirds, five eighths",
    "2½ and 1 1/4": "two and a half and one and one quarter",
    "24/7": "twenty four seven",
    "the 1990s and '80s": "the nineteen nineties and eighties",
    "10^6, x² and 5 m³": "ten to the power of six, x squared and five cubic meters",
    "2+2=4, 5 - 3 and 3x4": "two plus two equals four, five minus three and three times four",
    # dates and times
    "3/4/2021, 25/12/2021": "March fourth twenty twenty one, December twenty fifth twenty twenty one",
    "2021-12-25": "December twenty fifth twenty twenty one",
    "Dec. 5, 1995": "December fifth nineteen ninety five",
    "on 25 December 2021": "on the twenty fifth of December twenty twenty one",
    "the 4th of July": "the fourth of July",
    "99/99/2021": "ninety nine ninety nine twenty twenty one",
    "3:45 pm, 10:05, 10:00": "three forty five p m, ten oh five, ten o'clock",
    "at 9 a.m. We left": "at nine ay m. We left",
    "12:30:15": "twelve thirty and fifteen seconds",
    "10.30am": "ten thirty ay m",
    "9am-5pm": "nine ay m to five p m",
    # money
    "$1, $5.50, $0.99, $1.01": "one dollar, five dollars and fifty cents, ninety nine cents, one dollar and one cent",
    "£3.20, €5 million, 5 €": "three pounds and twenty pence, five million euros, five euros",
    "$1.5bn or ¥100": "one point five billion dollars or one hundred yen",
    "$25.4tn": "twenty five point four trillion dollars",
    "-$5, $5-10": "minus five dollars, five to ten dollars",
    # digit strings, ranges
    "555-1234": "five five five, one two three four",
    "+1 (555) 123-4567": "plus one, five five five, one two three, four five six seven",
    "1-800-555-0199": "one, eight zero zero, five five five, zero one nine nine",
    "978-3-16-148410-0": "nine seven eight, three, one six, one four eight four one zero, zero",
    "16:9, 5th-6th, 9/11, 50/50": "sixteen to nine, fifth to sixth, nine eleven, fifty fifty",
    "10 000 and 1\u00a0234\u202f567": (
        "ten thousand and one million two hundred thirty four thousand five hundred sixty seven"
    ),
    "555 123 4567": "five five five, one two three, four five six seven",
    "pages 5–10, 1990-1995": "pages five to ten, nineteen ninety to nineteen ninety five",
    # percent and units
    "50%, 1 kg, 10-15 km": "fifty percent, one kilogram, ten to fifteen kilometers",
    "20°C at 60 mph": "twenty degrees Celsius at sixty miles per hour",
    "5'10\"": "five feet ten inches",
    "5ft 10in, 12 oz. of 9.58 s.": "five feet ten inches, twelve ounces of nine point five eight seconds.",
    "5 µm, 3 Ω, ~5 km": "five micrometers, three ohms, about five kilometers",
    # abbreviations
    "Dr. Smith and Mr. and Mrs. Jones": "Doctor Smith and Mister and Missus Jones",
    "21 Main St. in St. Louis": "twenty one Main Street in Saint Louis",
    "5 Elm Dr.": "five Elm Drive.",
    "fruit, e.g. figs, etc.": "fruit, for example figs, et cetera.",
    "No. 5, p. 7, vol. 2": "number five, page seven, volume two",
    "the U.S. and the U.S.S.R.": "the u s and the u s s r.",
    "J. K. Rowling, Ph.D.": "j k Rowling, p h d.",
    # initialisms, capitals, letters
    "The FBI, NASA and TVs": "The f b i, nasa and t v's",
    "I am SO happy, IT'S fun": "I am so happy, it's fun",
    "HELLO MY WORLD": "hello my world",
    "MP3, COVID-19, 3D, H2O, A4": "m p three, covid nineteen, three d, h two o, ay four",
    "Plan B, vitamin A, A man": "Plan b, vitamin ay, A man",
    "C++ and C#": "c plus plus and c sharp",
    "Ask Dr. Who, Mr Jones or Dr Smith": "Ask Doctor Who, Mister Jones or Doctor Smith",
    "Visit St. Paul": "Visit Saint Paul",
    "a.k.a. Bob, node.js": "ay k ay Bob, node dot js",
    # names with Roman numerals
    "Henry VIII, Elizabeth I.": "Henry the eighth, Elizabeth the first.",
    "Pope Leo XIV": "Pope Leo the fourteenth",
    "World War II, Chapter IV, Rocky III": "World War two, Chapter four, Rocky three",
    "in vol. XIV": "in volume fourteen",
    # addresses and signs
    "a.doe_1@example.com": "ay dot doe underscore one at example dot com",
    "See https://www.example.co.uk/a?b=1.": (
        "See w w w dot example dot c o dot u k slash ay question mark b equals one."
    ),
    "debian.org is up": "debian dot org is up",
    "a & b, #5, @me, *bold*, snake_case": "a and b, number five, at me, bold, snake case",
    "5 < 7 ≤ 9": "five less than seven at most nine",
    # punctuation
    "“Well…” she said — (softly) — ok?!": "Well, she said, softly, ok?",
    "rock 'n' roll, O’Brien's well-known dog": "rock n roll, O'Brien's well-known dog",
    "one\n\n  two\t3": "one\ntwo three",
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_english(text):
    assert spoken_form(text, "en") == CASES[text]
    assert spoken_form(CASES[text], "en-US") == CASES[text]


@given(st.lists(st.from_regex(r"[A-Z]?[a-z]{1,12}(?:'[a-z]{1,3}|-[a-z]{1,9})?", fullmatch=True), min_size=1))
def test_plain_words_are_unchanged(words):
    for text in (" ".join(words), ", ".join(words) + "."):
        assert spoken_form(text, "en") == text
    assert spoken_form(" ".join(words).lower(), "fi") == " ".join(words).lower()


@given(st.one_of(st.text(), st.text("0123456789 .,:;-/$%'()ABVIXabmpst\n"), st.text("Á9’–½²…ßЯ漢ก็ं\u200d😀\x00")))
def test_any_text_has_a_spoken_form_or_named_parts(text):
    for language in ("en", "de", "th", ""):
        reading = read_aloud(text, language)
        assert read_aloud(reading.text, language) == (reading.text, ())
        assert not any(c.isdecimal() or not (c.isalpha() or c.isspace() or c in f"{PAUSES}'-" or c not in "#$%&*@<>")
                       for c in reading.text)  # fmt: skip
        if reading.unspoken:
            with pytest.raises(UnspokenError):
                spoken_form(text, language)
        else:
            assert spoken_form(text, language) == reading.text


@pytest.mark.parametrize(
    "unit",
    ["1", "a", "A", "a.", "1,", "1.1", "1-", "/", "@", "a@", "$", "(1) ", "Dr. ", "😀", "1/", "www.", "I ", "'", ". ",
     "+1", "5 kg 3:45 pm $5.50 ", " ", "\n", "A ", "1:"],
)  # fmt: skip
def test_time_is_linear(unit):
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    read_aloud(text, "en")
    read_aloud(text, "de")
    assert time.process_time() - start < 10  # half a second; quadratic patterns take minutes


def test_what_cannot_be_spoken_is_named():
    with pytest.raises(UnspokenError, match=r"'😀' \(U\+1F600 GRINNING FACE\).*U\+D800.*leave them out") as error:
        spoken_form("hi 😀😀 \ud800", "en")
    assert error.value.parts == ("😀", "\ud800")
    assert isinstance(error.value, UnspeakableError)
    assert isinstance(error.value, UserError)  # the command line prints the message alone
    assert str(error.value).encode()  # can be printed
    with pytest.raises(UnspokenError, match="and 15 more"):
        spoken_form("".join(map(chr, range(0x1F600, 0x1F600 + 25))), "en")


def test_other_languages_have_plain_numbers():
    assert spoken_form("Nimm 5 Äpfel, 3,5 kg!", "de") == "Nimm fünf Äpfel, drei Komma fünf kg!"
    assert spoken_form("Dr. FBI", "de") == "Dr. FBI"
    assert read_aloud("am 3. Mai um 19:00", "de").unspoken == ("19:00",)
    assert read_aloud("am 3. Mai", "de").unspoken == ("3.",)
    assert read_aloud("1" + ".111" * 2000, "de").unspoken  # more digits than Python converts
    with pytest.raises(UnspokenError, match="name the language"):
        spoken_form("5", "")


def test_text_for_a_tokenizer():
    plain, cased = CharTokenizer(" 'abcdefghilnoprstuvwy"), CharTokenizer(" '-,.?Habdefghlinorstuvwy")
    assert text_for(plain, "Hello, Dr. Seuss: it's 5 – or three?") == "hello doctor seuss it's five or three"
    assert text_for(plain, "One two. Three? Dr. No!") == "one two\nthree\ndoctor no"
    assert text_for(cased, "Hello, it's 5 – or three?") == "Hello, it's five, or three?"
    assert text_for(cased, "Hello! It's five; or three") == "Hello. it's five, or three"
    assert text_for(plain, "Café\nolé!") == "cafe\nole"
    assert text_for(CharTokenizer("DONT "), "don't") == "DONT"
    with pytest.raises(UnspokenError, match=r"not trained on: 'П' .*CYRILLIC CAPITAL LETTER PE.*'z'.*another|choose"):
        text_for(plain, "Привет, ze")
    with pytest.raises(UnspokenError, match="no words"):
        text_for(plain, "hi 🙂")
