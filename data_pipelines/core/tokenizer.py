"""The interface of tokenizers, which models and loaders know; `data_pipelines.tokenizers` implements it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

BLANK = 0
"""The id of the CTC blank and of padding; it is not in any text."""

Kind = Literal["char", "word", "phones", "ipa", "units", "unigram", "bpe", "hugging_face"]

PHONES = ("phones", "ipa")
"""Kinds whose `decode` returns phones, not the words of a text."""


@runtime_checkable
class Tokenizer(Protocol):
    """Interface of all tokenizers."""

    @property
    def kind(self) -> Kind:
        """The kind of pieces that have ids."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids, including the blank."""
        ...

    @property
    def begin(self) -> int | None:
        """The id that begins a text, in imported tokenizers that have one; None if the boundary begins it."""
        ...

    @property
    def has_prefix(self) -> bool:
        """Whether an id precedes a text: `begin` or the boundary. False for some imported tokenizers."""
        ...

    @property
    def other_ends(self) -> tuple[int, ...]:
        """Ids in addition to the boundary at which generation stops; only imported tokenizers have some."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of all settings that decide the ids."""
        ...

    @property
    def pieces(self) -> tuple[str, ...]:
        """Text of every id, with "\u2581" for a space; the blank's is empty."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids, in [1, vocab_size), of a text; unknown characters are dropped."""
        ...

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Returns `encode` of every text; SentencePiece uses `num_threads`."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; blanks are skipped, repeated ids are not merged (which is a task of CTC)."""
        ...

    def unknown(self, text: str) -> list[str]:
        """Returns the characters of a text that `encode` drops, in order."""
        ...

    def save(self, directory: Path | str) -> None:
        """Writes the tokenizer to an existing or new directory."""
        ...
