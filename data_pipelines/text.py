"""Transcripts as recognition targets, and the rules that assign a transcript or a document to a split."""

import hashlib
import re
import unicodedata
from collections.abc import Collection

SPLITS = ("train", "dev", "test")


def split_order(split: str) -> int:
    """A key by which the usual splits come first, in their usual order."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


class UnspeakableError(ValueError):
    """The text holds a number or sign whose spoken form is not known."""


# Zero to nine; English has more below. A language that is absent here has no numbers spelled.
_DIGITS = {
    "en": "zero one two three four five six seven eight nine",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
    "ru": "ноль один два три четыре пять шесть семь восемь девять",
}
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_KEYS = {"en": {"#": "pound", "*": "star"}, "fr": {"#": "dièse", "*": "étoile"}}  # as telephone prompts name them

_REMARK = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
# Ordinals (13th), decades (1940's) and times (19:00) stay digits here, and are then refused.
_NUMBER = re.compile(r"(?<![\d:.,])\d+(?!\d|[:.,]\d|(?:st|nd|rd|th|s|'s)\b)")
_INITIALS = re.compile(r"(?<=\b\w)\.(?=\w\b)")
_SIGNS = frozenset("#*%&@")


def normalise(text: str, language: str) -> str:
    """The spoken words: lower case, numbers and `#`, `*` spelled, no punctuation but apostrophes within words, NFKC.

    Remarks in brackets go ("[beep]"), initials close up ("A.M." -> "am"), other punctuation parts words.

    Args:
      text: a transcript as its source writes it.
      language: two-letter code; chooses the words for numbers and keys.

    Raises:
      UnspeakableError: a number, currency or other sign has no known spoken form; such a text must not become a target.
    """
    text = unicodedata.normalize("NFKC", _REMARK.sub(" ", text)).replace("\u2019", "'").lower()
    if language == "en":
        text = re.sub(r"(?<=\d)\.(?=\d)", " point ", text)
    text = _NUMBER.sub(lambda match: f" {spell(int(match[0]), language)} ", text)
    for sign, word in _KEYS.get(language, {}).items():
        text = text.replace(sign, f" {word} ")
    text = _INITIALS.sub("", text)
    for character in text:
        if unicodedata.category(character)[0] in "NS" or character in _SIGNS:
            raise UnspeakableError(f"no spoken form in {language!r} for {character!r} in {text.strip()!r}")
    text = re.sub(r"(?<!\w)'|'(?!\w)|[^\w\s']|_", " ", text)
    return " ".join(text.split())


def spell(number: int, language: str) -> str:
    """A number in words: zero to nine in the languages of the telephone prompts, below ten thousand in English.

    Four English digits are read in pairs, as years and telephone extensions are: 1844 is "eighteen forty four".

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
        return f"{spell(pair, 'en')} hundred"
    if number < 1000:
        return f"{digits[pair]} hundred {spell(rest, 'en')}"
    return f"{spell(pair, 'en')} {'oh ' if rest < 10 else ''}{spell(rest, 'en')}"


def without_held_out(splits: Collection[str]) -> str | None:
    """What a prepared set with these splits cannot be used for alone, in words; None where nothing is missing."""
    missing = {"dev": "training on it alone validates nothing", "test": "nothing of it is held out to evaluate on"}
    said = [f"no {split} split: {why}" for split, why in missing.items() if split not in splits]
    return "; ".join(said) or None


def split_key(text: str) -> str:
    """What two transcripts must share to fall into the same split: their words, without case and punctuation."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def split_of(key: str) -> str:
    """Assigns 80 % of keys to train, 8 % to dev, 12 % to test, the same on every machine."""
    percentile = _percentile(key)
    return "test" if percentile < 12 else "dev" if percentile < 20 else "train"


def text_split_of(key: str) -> str:
    """Assigns 88 % of documents to train, 2 % to dev and a tenth to test, the same on every machine.

    What is not train here is test by `split_of`: no text of a train split is, as a whole, a test sentence of a speech
    set that is split by the same rule.
    """
    percentile = _percentile(key)
    return "test" if percentile < 10 else "dev" if percentile < 12 else "train"


def _percentile(key: str) -> int:
    return int(hashlib.sha1(key.encode()).hexdigest(), 16) % 100
