"""Text normalisation before scoring: a word error rate means little without the name of the normaliser."""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Literal

NormalizerName = Literal["none", "basic", "whisper-english"]

_APOSTROPHES = str.maketrans("\u2019\u02bc\uff07", "'''")  # typographic, modifier letter, full width
_UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def normalizer(name: NormalizerName) -> Callable[[str], str]:
    """The function of that name, from text to text.

    - `none`: NFKC and single spaces only, since two encodings of a character are not a recognition error.
    - `basic`: also lower case; punctuation and symbols become spaces, apostrophes inside a word stay. Any script.
    - `whisper-english`: OpenAI Whisper's, from the `whisper-normalizer` package: spells numbers as digits, expands
      contractions, turns British into American spelling. English only.
    """
    if name == "none":
        return lambda text: _fold_spaces(unicodedata.normalize("NFKC", text))
    if name == "basic":
        return basic
    return lambda text: _fold_spaces(_whisper_english()(text))


def basic(text: str) -> str:
    """NFKC, lower case, words only: letters, marks, numbers, apostrophes inside a word; single spaces between words."""
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")  # joiners, soft hyphens, direction marks
    text = unicodedata.normalize("NFKC", text.lower())
    spaced = (c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return _fold_spaces(re.sub(r"(?<!\w)'|'(?!\w)", " ", "".join(spaced)))


def written_without_spaces(texts: Iterable[str]) -> bool:
    """Whether most letters belong to a script that puts no spaces between words, such as Han, kana or Thai.

    Words cannot be counted there without a segmenter, so the character error rate is the one to quote.
    """
    letters = unspaced = 0
    for text in texts:
        for character in text:
            if unicodedata.category(character)[0] == "L":
                letters += 1
                unspaced += _is_unspaced(character)
    return 2 * unspaced > letters


@functools.lru_cache(maxsize=1 << 14)
def _is_unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSPACED_SCRIPTS)


def _fold_spaces(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def _whisper_english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer  # loads a spelling table of 60 kB

    return EnglishTextNormalizer()
