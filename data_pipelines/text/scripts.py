"""Words in text of any script, including scripts without spaces between words."""

import functools
import unicodedata
from collections.abc import Iterable

# By the beginnings of their characters' names. IDEOGRAPHIC are the marks and the zero that are used with Han.
_UNSPACED = (
    "CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "VERTICAL IDEOGRAPHIC", "NUSHU",
    "TANGUT", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI", "NEW TAI", "AHOM", "JAVANESE", "BALINESE",
)  # fmt: skip
_AM = "\u0e33\u0eb3"  # vowels of Thai and Lao that are written above and after a consonant
_VIRAMA = 9  # the combining class of signs that join two consonants


@functools.lru_cache(maxsize=1 << 14)
def is_unspaced(character: str) -> bool:
    """Returns whether a character's script has no spaces between words, such as Han, kana or Thai."""
    return unicodedata.name(character, "").startswith(_UNSPACED)


def words(text: str) -> list[str]:
    """Splits a text into words: at white space and, in a script without spaces, at every character.

    Combining marks stay with their character, punctuation with the word before it or, for opening marks, with the next.
    """
    result: list[str] = []
    for chunk in text.split():
        first = len(result)
        for character in chunk:
            if len(result) == first or _begins_word(result[-1], character):
                result.append(character)
            else:
                result[-1] += character
    return result


def _begins_word(word: str, character: str) -> bool:
    category = unicodedata.category(character)
    base = next((letter for letter in reversed(word) if unicodedata.category(letter)[0] in "LN"), "")
    if category in ("Ps", "Pi"):
        return bool(base) and is_unspaced(base)
    if category[0] not in "LN" or character in _AM or unicodedata.combining(word[-1]) == _VIRAMA:
        return False
    return bool(base) and (is_unspaced(base) or is_unspaced(character))


def join(texts: Iterable[str], separator: str = " ") -> str:
    """Joins stretches of text, without the separator between two characters of scripts without spaces."""
    joined = ""
    for text in filter(None, texts):
        meets = joined and is_unspaced(joined[-1]) and is_unspaced(text[0])
        joined += text if not joined or meets else separator + text
    return joined
