"""Conversion of numerals in text to words."""

import re
import unicodedata
from typing import NamedTuple

from num2words import CONVERTER_CLASSES, num2words

from data_pipelines.text.scripts import is_unspaced


class UnspeakableError(ValueError):
    """The text has a number or sign whose spoken form is unknown."""


class _Style(NamedTuple):
    """Notation and spoken form of decimal fractions and negative numbers in a language.

    Attributes:
      mark: the decimal mark, "." or ","; the other of the two groups digits by threes.
      point: its spoken form, followed by single digits; "" if fractions are spoken in another way.
      minus: the spoken form of a negative sign.
    """

    mark: str
    point: str
    minus: str


# num2words' own fractions and signs are not used: in some languages it reads 1.05 as 1.5, or loses the sign.
_STYLES = {
    "be": _Style(",", "", "мінус"),
    "ca": _Style(",", "coma", "menys"),
    "cs": _Style(",", "", "minus"),
    "da": _Style(",", "komma", "minus"),
    "de": _Style(",", "Komma", "minus"),
    "en": _Style(".", "point", "minus"),
    "eo": _Style(",", "komo", "minus"),
    "es": _Style(",", "coma", "menos"),
    "fi": _Style(",", "pilkku", "miinus"),
    "fr": _Style(",", "virgule", "moins"),
    "he": _Style(".", "נקודה", "מינוס"),
    "hu": _Style(",", "", "mínusz"),
    "id": _Style(",", "koma", "minus"),
    "is": _Style(",", "komma", "mínus"),
    "it": _Style(",", "virgola", "meno"),
    "ja": _Style(".", "点", "マイナス"),
    "ko": _Style(".", "점", "마이너스"),
    "lt": _Style(",", "", "minus"),
    "lv": _Style(",", "", "mīnus"),
    "nl": _Style(",", "komma", "min"),
    "no": _Style(",", "komma", "minus"),
    "pl": _Style(",", "", "minus"),
    "pt": _Style(",", "vírgula", "menos"),
    "ro": _Style(",", "virgulă", "minus"),
    "ru": _Style(",", "", "минус"),
    "sk": _Style(",", "", "mínus"),
    "sl": _Style(",", "", "minus"),
    "sr": _Style(",", "", "minus"),
    "sv": _Style(",", "komma", "minus"),
    "th": _Style(".", "จุด", "ลบ"),
    "tr": _Style(",", "virgül", "eksi"),
    "uk": _Style(",", "", "мінус"),
    "vi": _Style(",", "phẩy", "âm"),
}
_NUM2WORDS_CODES = {"kk": "kz", "nb": "no", "nn": "no"}
_LIMIT = 10**12  # num2words has gaps above

# Zero to nine in the languages of the telephone prompts; for English see also below.
_DIGITS = {
    "en": "zero one two three four five six seven eight nine",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
    "ru": "ноль один два три четыре пять шесть семь восемь девять",
}
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

GROUP, DECIMAL = "\u066c", "\u066b"  # marks with the same meaning in every language; Arabic uses them

_OPENING = "\\s(\\[{\"'\u2018\u201c\u201e\u00ab\u00bf\u00a1"
_NUMERAL = re.compile(
    rf"(?P<sign>(?<![^{_OPENING}])[-\u2212\u2013](?=\d))?(?P<body>\d+(?:[.,'\u2019{GROUP}{DECIMAL}]\d+)*)"
)
# Text before and after a numeral that makes it part of another expression.
_JOINED_BEFORE = re.compile(r"[:.,/_]$|\d[^\w\s]$|\de[-+]?$", re.IGNORECASE)
_JOINED_AFTER = re.compile(r"(?:st|nd|rd|th|s|['\u2019]s)\b|[^\w\s]\d|_\d|e[-+]?\d|\d| \d{3}(?!\d)", re.IGNORECASE)


# Languages in which a full stop after digits makes an ordinal.
_ORDINAL_STOP = frozenset(["cs", "da", "de", "et", "fi", "hr", "hu", "is", "lv", "no", "pl", "sk", "sl", "sr", "tr"])
_SUFFIX = re.compile(r"['\u2019-]?([^\W\d_]{1,4})(?!\w)")


def say_numbers(text: str, language: str) -> str:
    """Replaces every numeral of a text by words.

    The digits of a decimal fraction are read one by one, and so are numbers that begin with a zero.

    Args:
      text: in Unicode NFKC.

    Raises:
      UnspeakableError: the spoken form of a numeral is unknown: an ordinal, time, date, fraction, range, unusual
        grouping, or any numeral in a language without words for it.
    """
    language = primary(language)

    def in_words(match: re.Match[str]) -> str:
        joined = _JOINED_BEFORE.search(text, max(match.start() - 3, 0), match.start())
        if joined or _JOINED_AFTER.match(text, match.end()) or _is_ordinal(text, match.end(), language):
            raise _unspeakable(text[max(match.start() - 2, 0) : match.end() + 4], language)
        words = _say(match["body"], language)
        if match["sign"]:
            words = f"{_minus(match, language)} {words}"
        return words if is_unspaced(words[0]) else f" {words} "

    return _NUMERAL.sub(in_words, text)


def _is_ordinal(text: str, end: int, language: str) -> bool:
    """Returns whether digits that end at `end` are an ordinal or inflected, as 9de, 5-й, 3. or 3'te.

    English ordinals are excluded by `_JOINED_AFTER`.
    """
    if language == "en":
        return False
    suffix = _SUFFIX.match(text, end)
    return (suffix is not None and suffix[1].islower()) or (
        language in _ORDINAL_STOP and re.compile(r"\.\s+\w").match(text, end) is not None
    )


def check_no_numerals(text: str) -> None:
    """Checks that a text has no digits, whose spoken form may depend on the counted noun.

    Raises:
      UnspeakableError: it has.
    """
    if re.search(r"\d", text):
        raise UnspeakableError(f"numeral in {text!r}")


def primary(language: str) -> str:
    """Returns the language of a code that may include a script or region: "pt" of "pt-BR"."""
    return re.split("[-_]", language.lower())[0]


def cardinal(number: int, language: str) -> str:
    """Returns the words of a whole number from 0.

    Raises:
      UnspeakableError: the words are unknown in this language.
    """
    if language == "en" and number < 1100:
        return spell_out(number, "en")
    code = _NUM2WORDS_CODES.get(language, language)
    if code not in CONVERTER_CLASSES or number >= _LIMIT:
        raise _unspeakable(str(number), language)
    try:
        words = num2words(number, lang=code)
    except Exception as error:  # of many kinds, where its tables have gaps
        raise _unspeakable(str(number), language) from error
    alphabets = {unicodedata.name(character).split()[0] for character in words if character.isalpha()}
    if len(alphabets) != 1 or re.search(r"\d", words):  # a gap in num2words' tables
        raise _unspeakable(str(number), language)
    return re.sub(r"\band\b|,", "", words).replace("-", " ") if language == "en" else words


def spell_out(number: int, language: str) -> str:
    """Returns the words of a number as in English telephone prompts and years, or of zero to nine in the prompts'
    languages.

    Four English digits are read in pairs: 1844 is "eighteen forty four". Prepared sets and their splits depend on this
    function: its results must not change.

    Raises:
      UnspeakableError: this number in this language is not in the tables.
    """
    digits = _DIGITS.get(language, "").split()
    if number < len(digits):
        return digits[number]
    if language != "en" or number >= 10_000:
        raise UnspeakableError(f"no spoken form in {language!r} for {number}")
    if number < 20:
        return _TEENS[number - 10]
    if number < 100:
        return _TENS[number // 10 - 2] + (f" {digits[number % 10]}" if number % 10 else "")
    if number % 1000 == 0:
        return f"{digits[number // 1000]} thousand"
    pair, rest = divmod(number, 100)
    if rest == 0:
        return f"{spell_out(pair, 'en')} hundred"
    if number < 1000:
        return f"{digits[pair]} hundred {spell_out(rest, 'en')}"
    return f"{spell_out(pair, 'en')} {'oh ' if rest < 10 else ''}{spell_out(rest, 'en')}"


def _say(body: str, language: str) -> str:
    if body.isdigit():
        return _whole(body, language)
    style = _STYLES.get(language)
    mark, group = (style.mark, ".,".replace(style.mark, "")) if style else (DECIMAL, GROUP)
    number = re.fullmatch(
        rf"(?:(\d+)|(\d{{1,3}}(?:([{group}'\u2019{GROUP}])\d{{3}})(?:\3\d{{3}})*))(?:[{mark}{DECIMAL}](\d+))?", body
    )
    if number is None:
        parts = body.split(".")
        if language == "en" and len(parts) > 2 and all(map(str.isdigit, parts)):  # a version or an address
            return " point ".join(_whole(part, language) for part in parts)
        raise _unspeakable(body, language)
    plain, grouped, _, fraction = number.groups()
    digits = plain or re.sub(r"\D", "", grouped)
    words = _digit_by_digit(digits, language) if _has_zeros(digits) else cardinal(int(digits), language)
    if fraction is None:
        return words
    if style is None or not style.point:
        raise _unspeakable(body, language)
    space = "" if is_unspaced(words[0]) else " "
    return space.join([words, style.point, _digit_by_digit(fraction, language)])


def _whole(digits: str, language: str) -> str:
    if _has_zeros(digits):
        return _digit_by_digit(digits, language)
    if language == "en" and len(digits) <= 4:
        return spell_out(int(digits), "en")
    if len(digits) > len(str(_LIMIT)):
        raise _unspeakable(digits, language)
    return cardinal(int(digits), language)


def _has_zeros(digits: str) -> bool:
    return len(digits) > 1 and int(digits[0]) == 0


def _digit_by_digit(digits: str, language: str) -> str:
    words = [cardinal(int(digit), language) for digit in digits]
    return ("" if is_unspaced(words[0][0]) else " ").join(words)


def _minus(match: re.Match[str], language: str) -> str:
    style = _STYLES.get(language)
    if style is None or match["sign"] == "\u2013":  # an en dash may be a minus sign or a dash
        raise _unspeakable(match[0], language)
    return style.minus


def _unspeakable(numeral: str, language: str) -> UnspeakableError:
    if not language:
        return UnspeakableError(f'cannot spell out {numeral.strip()!r} without a language; add "language": "en" or so')
    return UnspeakableError(f"no spoken form in {language!r} for {numeral.strip()!r}")
