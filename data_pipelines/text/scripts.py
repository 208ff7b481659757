"""Words in text of any script, also of those that put no spaces between them."""

import functools
import unicodedata
from collections.abc import Iterable

# By the beginnings of their characters' names. IDEOGRAPHIC are the marks and the zero that go with Han.
_UNSPACED = (
    "CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "VERTICAL IDEOGRAPHIC", "NUSHU",
    "TANGUT", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI", "NEW TAI", "AHOM", "JAVANESE", "BALINESE",
)  # fmt: skip
_AM = "\u0e33\u0eb3"  # vowels of Thai and Lao that are written above and behind a consonant
_VIRAMA = 9  # the combining class of signs that join two consonants


@functools.lru_cache(maxsize=1 << 14)
def is_unspaced(character: str) -> bool:
    """Whether a character's script puts no spaces between words, such as Han, kana or Thai."""
    return unicodedata.name(character, "").startswith(_UNSPACED)


def words(text: str) -> list[str]:
    """The words of a text: what white space parts and, in a script without spaces, every character by itself.

    Combining marks stay with their character, punctuation with the word before it or, where it opens something, behind.
    """
    found: list[str] = []
    for chunk in text.split():
        begun = len(found)
        for character in chunk:
            if len(found) == begun or _begins_word(found[-1], character):
                found.append(character)
            else:
                found[-1] += character
    return found


def _begins_word(word: str, character: str) -> bool:
    category = unicodedata.category(character)
    base = next((each for each in reversed(word) if unicodedata.category(each)[0] in "LN"), "")
    if category in ("Ps", "Pi"):
        return bool(base) and is_unspaced(base)
    if category[0] not in "LN" or character in _AM or unicodedata.combining(word[-1]) == _VIRAMA:
        return False
    return bool(base) and (is_unspaced(base) or is_unspaced(character))


def join(texts: Iterable[str], separator: str = " ") -> str:
    """Joins stretches of text, without the separator where a script without spaces meets itself."""
    joined = ""
    for text in filter(None, texts):
        meets = joined and is_unspaced(joined[-1]) and is_unspaced(text[0])
        joined += text if not joined or meets else separator + text
    return joined
