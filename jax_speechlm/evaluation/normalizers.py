"""Normalises texts before scoring. A word error rate is meaningful only together with its normalizer."""

import functools
import unicodedata
from collections.abc import Callable, Iterable
from typing import Literal

from data_pipelines.text.normalize import words_only as basic
from data_pipelines.text.scripts import is_unspaced

NormalizerName = Literal["none", "basic", "whisper-english"]


Normalizer = Callable[..., str]
"""`(text, language="") -> normalised text`; the language is '' if unknown."""


def normalizer(name: NormalizerName) -> Normalizer:
    """Returns the normalizer of a name.

    - `none`: NFKC and single spaces only, because the encoding of a character is not a recognition error.
    - `basic`: also lower case, and spaces for punctuation and symbols, except apostrophes inside a word. For any
      script. Equals `prepare --normalise-text basic` without the expansion of numbers.
    - `whisper-english`: OpenAI Whisper's, from the `whisper-normalizer` package: writes numbers in digits, expands
      contractions and converts British English to American. English only.
    """
    if name == "none":
        return lambda text, language="": _fold_spaces(unicodedata.normalize("NFKC", text))
    if name == "basic":
        return basic
    return lambda text, language="": _fold_spaces(_whisper_english()(text))


def written_without_spaces(texts: Iterable[str]) -> bool:
    """Returns whether most letters belong to a script without spaces between words, such as Han, kana or Thai.

    Counting words would need a segmenter there, so report the character error rate.
    """
    letters = unspaced = 0
    for text in texts:
        for character in text:
            if unicodedata.category(character)[0] == "L":
                letters += 1
                unspaced += is_unspaced(character)
    return 2 * unspaced > letters


def _fold_spaces(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def _whisper_english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer  # deferred: loads a table of 60 kB

    return EnglishTextNormalizer()
