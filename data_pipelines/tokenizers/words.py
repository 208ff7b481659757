"""Tokenizer of whole words, for word vectors: a word is an id, and rare words have none.

Text is converted to NFKC and casefolded. A word is a run of letters, marks, digits and inner apostrophes: "Don't stop!"
has the words "don't" and "stop". Scripts that are written without spaces need a word segmenter first.
"""

import collections
import dataclasses
import functools
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.core.files import short_digest
from data_pipelines.core.paths import as_path
from data_pipelines.core.tokenizer import BLANK, Kind


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    """One id per word: `words[i]` has id i + 1.

    Attributes:
      words: distinct words, as `split_words` returns them.
      counts: occurrences of each word in the training texts, which subsampling and negative sampling use.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    kind: Kind = dataclasses.field(default="word", init=False)
    begin: ClassVar[None] = None
    has_prefix: ClassVar[bool] = True
    other_ends: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        """Raises ValueError unless there are distinct words with a positive count each."""
        if not self.words or len(set(self.words)) != len(self.words):
            raise ValueError(f"a vocabulary needs distinct words, got {self.words[:20]}")
        if len(self.counts) != len(self.words) or min(self.counts) < 1:
            raise ValueError(f"{len(self.words)} words need a positive count each, got {self.counts[:20]}")

    @property
    def vocab_size(self) -> int:
        return len(self.words) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        return short_digest(b"word\0" + json.dumps([self.words, self.counts]).encode())

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        return ("", *self.words)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: id_ for id_, word in enumerate(self.words, start=1)}

    def encode(self, text: str) -> list[int]:
        return [self._ids[word] for word in split_words(text) if word in self._ids]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.words[id_ - 1] for id_ in ids if id_ != BLANK)

    def unknown(self, text: str) -> list[str]:
        """Returns the characters of the words that have no id."""
        return [character for word in split_words(text) if word not in self._ids for character in word]

    def save(self, directory: Path | str) -> None:
        directory = as_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        description = {"kind": self.kind, "words": self.words, "counts": self.counts, "fingerprint": self.fingerprint}
        text = json.dumps(description, ensure_ascii=False)
        (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "WordTokenizer":
        """Makes a tokenizer from the JSON that `save` wrote."""
        return cls(tuple(saved["words"]), tuple(saved["counts"]))


class _ToSpaces(dict[int, int]):
    """A table for `str.translate` that turns all but letters, marks, digits and apostrophes into spaces."""

    def __missing__(self, code: int) -> int:
        character = chr(code)
        inside = unicodedata.category(character)[0] in "LMN" or character == "'"
        self[code] = code if inside else ord(" ")
        return self[code]


_TO_SPACES = _ToSpaces({0x2019: ord("'"), 0x02BC: ord("'")})


def split_words(text: str) -> list[str]:
    """Returns the casefolded words of a text in order."""
    pieces = unicodedata.normalize("NFKC", text).casefold().translate(_TO_SPACES).split()
    return [word for piece in pieces if (word := piece.strip("'"))]


def train_words(texts: Iterable[str], min_count: int) -> WordTokenizer:
    """Makes a tokenizer of the words that occur at least `min_count` times in some texts, the most frequent first.

    Raises:
      ValueError: no word is so frequent.
    """
    counts = collections.Counter[str]()
    for text in texts:
        counts.update(split_words(text))
    kept = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    if not kept:
        raise ValueError(
            f"none of the {len(counts)} words in the texts occurs {min_count} times: lower --min-count, or name sets "
            "with more text"
        )
    return WordTokenizer(tuple(word for _, word in kept), tuple(-count for count, _ in kept))
