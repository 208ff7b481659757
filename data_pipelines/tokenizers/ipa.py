"""Tokenizer of phones of the International Phonetic Alphabet, for voices of many languages, by eSpeak NG.

Symbols are the characters of eSpeak's notation (phones, marks of stress and length), a space between words, and the
marks of a pause `.,;:?!`. Only symbols that the training texts have get an id.

eSpeak NG and its Python package are under the GPL and optional. A saved tokenizer contains none of eSpeak, so it needs
them to encode a text, not to be read.
"""

import functools
import json
import logging
import threading
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import short_digest
from data_pipelines.core.paths import as_path
from data_pipelines.core.tokenizer import BLANK
from data_pipelines.tokenizers.phones import PAUSES

log = logging.getLogger(__name__)

_SPACE = "\u2581"
_LOCK = threading.Lock()
"""eSpeak is one library with one state, and the loader encodes on several threads."""


class IpaTokenizer:
    """One id per symbol: `symbols[i]` has id i + 1. `decode` returns the phones, not the words, of a text.

    Attributes:
      symbols: characters of phones, " " and marks, without repetition.
      language: eSpeak's name of the language, such as "en-us" or "fr-fr".
      scripts: of the letters of the training texts, such as "LATIN". eSpeak says the English names of other letters.
      espeak: version of eSpeak NG with which it was made; others may have other phones.
    """

    kind = "ipa"
    begin = None
    has_prefix = True
    other_ends = ()

    def __init__(self, symbols: str, language: str, scripts: Sequence[str], espeak: str):
        if len(set(symbols)) != len(symbols) or not symbols.strip(" " + PAUSES):
            raise ValueError(f"symbols must be distinct and contain phones, got {symbols[:20]!r}")
        self.symbols, self.language, self.scripts, self.espeak = symbols, language, tuple(scripts), espeak
        self._ids = {symbol: id_ for id_, symbol in enumerate(symbols, start=1)}

    @property
    def vocab_size(self) -> int:
        return len(self.symbols) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        return short_digest("\0".join(("ipa", self.language, *self.scripts, self.espeak, self.symbols)).encode())

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        return ("", *self.symbols.replace(" ", _SPACE))

    def encode(self, text: str) -> list[int]:
        self._warn_of_another_espeak()
        return [self._ids[symbol] for symbol in pronounce(text, self.language) if symbol in self._ids]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.symbols[id_ - 1] for id_ in ids if id_ != BLANK)

    def unknown(self, text: str) -> list[str]:
        """Returns the letters of other scripts than the training texts', and signs that eSpeak is silent on."""
        return [character for character in unicodedata.normalize("NFKC", text) if self._is_unknown(character)]

    def _is_unknown(self, character: str) -> bool:
        if character.isspace() or unicodedata.category(character)[0] in "PCM":
            return False
        if character.isalpha():
            return _script(character) not in self.scripts
        return not pronounce(character, self.language)

    @functools.cache  # noqa: B019  once a tokenizer; a run has one
    def _warn_of_another_espeak(self) -> None:
        if (installed := espeak_version()) != self.espeak:
            log.warning(
                "the tokenizer was made with eSpeak NG %s and %s is installed: its phones may differ",
                self.espeak,
                installed,
            )

    def save(self, directory: Path | str) -> None:
        directory = as_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        description = {"kind": self.kind, "symbols": self.symbols, "language": self.language}
        description |= {"scripts": self.scripts, "espeak": self.espeak, "fingerprint": self.fingerprint}
        text = json.dumps(description, ensure_ascii=False, indent=1)
        (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "IpaTokenizer":
        """Makes a tokenizer from the JSON that `save` wrote."""
        return cls(saved["symbols"], saved["language"], saved["scripts"], saved["espeak"])


def train_ipa(texts: Iterable[str], language: str) -> IpaTokenizer:
    """Makes a tokenizer with the symbols that occur in some texts; read once.

    Args:
      language: eSpeak's name of the language.

    Raises:
      DataError: eSpeak NG is not installed, or does not know the language.
      ValueError: the texts have no word.
    """
    used: set[str] = set()
    scripts: set[str] = set()
    for text in texts:
        used.update(pronounce(text, language))
        scripts.update(_script(character) for character in text if character.isalpha())
    if not used - {" ", *PAUSES}:
        raise ValueError(f"cannot build a tokenizer: the texts hold no word of {language}; check the set's transcripts")
    return IpaTokenizer("".join(sorted(used)), language, sorted(scripts), espeak_version())


def pronounce(text: str, language: str) -> str:
    """Returns the phones of a text, with spaces between words and the marks of pauses."""
    backend = _backend(language)
    lines = [" ".join(line.split()) for line in unicodedata.normalize("NFKC", text).splitlines()]
    with _LOCK:
        phones = backend.phonemize([line for line in lines if line], strip=True)
    kept = (c for c in " ".join(phones) if c in PAUSES or c == " " or unicodedata.category(c)[0] in "LMN")  # N: tones
    return " ".join("".join(kept).split())


def espeak_version() -> str:
    """Returns the version of the installed eSpeak NG, such as "1.52.0"."""
    return ".".join(map(str, _backend("en-us").version()))


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


@functools.cache
def _backend(language: str) -> Any:
    try:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ModuleNotFoundError as error:
        raise DataError(
            f"phones of the International Phonetic Alphabet need eSpeak NG ({error.name} is missing): pip install "
            "'jax_speechlm[espeak]', whose packages are under the GPL"
        ) from None
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    known = EspeakBackend.supported_languages()
    if language not in known:
        near = [name for name in sorted(known) if name.split("-")[0] == language.split("-")[0]]
        raise DataError(f"eSpeak NG has no language {language!r}; choose one of {', '.join(near or sorted(known))}")
    quiet = log.getChild("espeak")
    quiet.setLevel(logging.ERROR)  # it warns of every foreign word
    options = {"preserve_punctuation": True, "punctuation_marks": PAUSES, "with_stress": True, "logger": quiet}
    return EspeakBackend(language, language_switch="remove-flags", **options)
