"""Transcripts as recognition targets, and the rules that assign a transcript or a document to a split."""

import hashlib
import re
import unicodedata
from collections.abc import Collection

from data_pipelines.text.numbers import GROUP, UnspeakableError, primary, say_numbers, spell_out

SPLITS = ("train", "dev", "test")
_OTHER_NAMES = {
    "training": "train", "validation": "dev", "valid": "dev", "val": "dev", "development": "dev", "testing": "test",
}  # fmt: skip
NORMALISER_VERSION = 2
"""Version of `normalise`, stored with a prepared set. Version 1 replaced combining marks by spaces and converted some
numbers to wrong words."""


def usual_split(split: str, others: Collection[str] = ()) -> str:
    """Returns train, dev or test for another usual name of it, in any case; a split of another name is unchanged.

    Args:
      others: names of all splits of the set; if one of them is the usual name, `split` is unchanged.
    """
    usual = _OTHER_NAMES.get(split.lower(), split.lower())
    return usual if usual in SPLITS and usual not in others else split


def split_order(split: str) -> int:
    """Returns a sort key that puts the usual splits first, in their usual order."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


_KEYS = {"en": {"#": "pound", "*": "star"}, "fr": {"#": "dièse", "*": "étoile"}}  # as telephone prompts name them

_REMARK = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
_GROUPING_SPACE = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")  # thin or unbreakable
_INITIALS = re.compile(r"(?<=\b\w)\.(?=\w\b)")
_SIGNS = frozenset("#*%&@\u066a\u2030\u2031\u00a7")
_APOSTROPHES = "'\u2019\u02bc\uff07"  # plain, typographic, modifier letter, full width


def normalise(text: str, language: str) -> str:
    """Returns the spoken form of a transcript.

    It is in lower case and NFKC, with numbers, `#` and `*` in words, and no punctuation except apostrophes within
    words. Remarks in brackets are removed ("[beep]"), initials are joined ("A.M." -> "am"), other punctuation separates
    words; see `words_only`, which the scoring of recognisers uses too.

    Args:
      language: two-letter code; selects the words for numbers and keys, and lower case in Turkish and Azerbaijani.

    Raises:
      UnspeakableError: a number, currency or other sign has no known spoken form; such a text must not become a target.
    """
    text = _without_format_characters(text)
    _check_numerals(text, language)
    text = _GROUPING_SPACE.sub(GROUP, _REMARK.sub(" ", text))
    text = say_numbers(unicodedata.normalize("NFKC", text), language)
    for sign, word in _KEYS.get(primary(language), {}).items():
        text = text.replace(sign, f" {word} ")
    text = _INITIALS.sub(_close_up, text)
    for character in text:
        category = unicodedata.category(character)
        if category[0] == "S" or category in ("Nd", "No") or character in _SIGNS:
            raise UnspeakableError(f"no spoken form in {language!r} for {character!r} in {text.strip()!r}")
    return words_only(text, language)


def _check_numerals(text: str, language: str) -> None:
    """Checks for numerals that NFKC or the removal of remarks would change or delete.

    Raises:
      UnspeakableError: the text has one.
    """
    for remark in re.findall(r"\(([^)]*)\)", text):
        if re.search(r"\d", remark) and not re.search(r"[^\W\d_]", remark):
            raise UnspeakableError(f"no spoken form in {language!r} for '({remark})': use words or leave it out")
    for before, character, after in zip(" " + text, text, text[1:] + " ", strict=False):
        form = unicodedata.decomposition(character).partition(" ")[0]
        if character.isalnum() and form in ("<super>", "<sub>", "<fraction>", "<circle>", "<compat>"):
            is_number = unicodedata.category(character)[0] == "N"
            is_raised = is_number and form in ("<super>", "<fraction>")  # 10², ½
            if is_raised or before.isdigit() or (is_number and after.isdigit()):  # 1º, 10①
                raise UnspeakableError(f"no spoken form in {language!r} for {(before + character + after).strip()!r}")


def _close_up(match: re.Match[str]) -> str:
    """Removes the full stop between two initials; keeps one after a word that ends in a combining mark."""
    around = match.string[match.start() - 2 : match.start() - 1] + match.string[match.end() + 1 : match.end() + 2]
    return "." if any(unicodedata.category(character)[0] == "M" for character in around) else ""


def words_only(text: str, language: str = "") -> str:
    """Returns the words of a text in NFKC and lower case, separated by single spaces.

    Words consist of letters, marks, numbers and apostrophes inside a word. Training targets and scored texts share this
    form. Format characters (joiners, soft hyphens, direction marks) are removed, all other characters separate words.

    Args:
      language: two-letter code; in Turkish and Azerbaijani, I is the capital of dotless ı.
    """
    text = unicodedata.normalize("NFKC", _without_format_characters(text))
    text = lower(word_characters(text), language)
    # The modifier letter is an apostrophe within a word, and a letter where it begins or ends one.
    text = re.sub("[\u2019\uff07]|(?<=[^\\s\u02bc])\u02bc(?=[^\\s\u02bc])", "'", text)
    text = unicodedata.normalize("NFKC", text)
    # NFKC decomposes the vowel am of Thai and Lao, in an order that is not used in writing.
    return " ".join(text.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3").split())


def word_characters(text: str) -> str:
    """Replaces every character that is not part of a word, line ends included, by a space.

    Parts of words are letters, numbers, marks after one of these, and apostrophes within a word.
    """
    kept, before = [], " "
    for character in _without_format_characters(text):
        category = unicodedata.category(character)[0]
        if category == "M" and before in (" ", *_APOSTROPHES):
            continue  # a mark without a base character
        before = character if category in "LMN" or character in _APOSTROPHES else " "
        kept.append(before)
    return _LOOSE_APOSTROPHE.sub(" ", "".join(kept))


# The modifier letter is a letter where it begins or ends a word.
_LOOSE_APOSTROPHE = re.compile(r"(?<![^\s'\u2019\uff07])['\u2019\uff07]|['\u2019\uff07](?![^\s'\u2019\uff07])")


def lower(text: str, language: str) -> str:
    """Returns the text in lower case, by the rules of its language."""
    if primary(language) in ("tr", "az"):
        text = text.replace("I", "\u0131")
    return text.replace("\u0130", "i").lower()  # str.lower() would return i and a combining dot


def _without_format_characters(text: str) -> str:
    return text if text.isascii() else "".join(c for c in text if unicodedata.category(c) != "Cf")


def without_held_out(splits: Collection[str]) -> str | None:
    """Returns a message about the limits of a prepared set with these splits, or None if no usual split is missing."""
    limits = {"dev": "training on it alone validates nothing", "test": "nothing of it is held out to evaluate on"}
    return "; ".join(f"no {split} split: {limit}" for split, limit in limits.items() if split not in splits) or None


def split_key(text: str) -> str:
    """Returns the words of a transcript, without case and punctuation: equal keys are in the same split.

    The function must not change, or sentences move between the splits of sets that are prepared again.
    """
    return re.sub(r"\W+", " ", text.lower()).strip()


def normalised_split_key(text: str, language: str) -> str:
    """Returns the `split_key` of a transcript that is stored in the form of `normalise`.

    It uses version 1 of `normalise`, which must not change for the same reason, or the text itself if that fails.
    """
    try:
        return split_key(_normalise_1(text, language))
    except UnspeakableError:
        return split_key(text)


_NUMBER_1 = re.compile(r"(?<![\d:.,])\d+(?!\d|[:.,]\d|(?:st|nd|rd|th|s|'s)\b)")


def _normalise_1(text: str, language: str) -> str:
    """Version 1 of `normalise`, for split keys only: marks separate words, and some numbers become wrong words."""
    text = unicodedata.normalize("NFKC", _REMARK.sub(" ", text)).replace("\u2019", "'").lower()
    if language == "en":
        text = re.sub(r"(?<=\d)\.(?=\d)", " point ", text)
    text = _NUMBER_1.sub(lambda match: f" {spell_out(int(match[0]), language)} ", text)
    for sign, word in _KEYS.get(language, {}).items():
        text = text.replace(sign, f" {word} ")
    text = _INITIALS.sub("", text)
    if any(unicodedata.category(character)[0] in "NS" or character in "#*%&@" for character in text):
        raise UnspeakableError("a number or sign")
    text = re.sub(r"(?<!\w)'|'(?!\w)|[^\w\s']|_", " ", text)
    return " ".join(text.split())


def split_of(key: str) -> str:
    """Assigns 80 % of keys to train, 8 % to dev, 12 % to test, the same on every machine."""
    percentile = _percentile(key)
    return "test" if percentile < 12 else "dev" if percentile < 20 else "train"


def text_split_of(key: str) -> str:
    """Assigns 88 % of documents to train, 2 % to dev and a tenth to test, the same on every machine.

    Every key outside train here is test in `split_of`: no text of a train split is, as a whole, a test sentence of a
    speech set that is split by the same rule.
    """
    percentile = _percentile(key)
    return "test" if percentile < 10 else "dev" if percentile < 12 else "train"


def _percentile(key: str) -> int:
    return int(hashlib.sha1(key.encode()).hexdigest(), 16) % 100
