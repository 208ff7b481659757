"""Text normalisation before scoring: a word error rate means little without the name of the normaliser."""

import functools
import unicodedata
from collections.abc import Callable, Iterable
from typing import Literal

from data_pipelines.text.normalize import words_only as basic
from data_pipelines.text.scripts import is_unspaced

NormalizerName = Literal["none", "basic", "whisper-english"]


Normalizer = Callable[..., str]
"""(text, language="") -> the text that is compared; the language is '' where unknown."""


def normalizer(name: NormalizerName) -> Normalizer:
    """The function of that name.

    - `none`: NFKC and single spaces only, since two encodings of a character are not a recognition error.
    - `basic`: also lower case; punctuation and symbols become spaces, apostrophes inside a word stay. Any script.
      What transcripts are brought to by `prepare --normalise-text basic`, but for their numbers, which are spelled.
    - `whisper-english`: OpenAI Whisper's, from the `whisper-normalizer` package: spells numbers as digits, expands
      contractions, turns British into American spelling. English only.
    """
    if name == "none":
        return lambda text, language="": _fold_spaces(unicodedata.normalize("NFKC", text))
    if name == "basic":
        return basic
    return lambda text, language="": _fold_spaces(_whisper_english()(text))


def written_without_spaces(texts: Iterable[str]) -> bool:
    """Whether most letters belong to a script that puts no spaces between words, such as Han, kana or Thai.

    Words cannot be counted there without a segmenter, so the character error rate is the one to quote.
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
    from whisper_normalizer.english import EnglishTextNormalizer  # loads a spelling table of 60 kB

    return EnglishTextNormalizer()
