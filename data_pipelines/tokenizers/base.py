"""Text to token ids and back: characters, or SentencePiece pieces.

One convention holds for every kind, so that models and losses need not ask which they have:

- id 0 is the CTC blank and the padding value; `encode` never returns it and `decode` skips it;
- text is brought to Unicode NFKC on the way in, and comes back in NFKC; case and spacing are left as they are by
  characters, while SentencePiece trims and collapses spaces unless it has pieces for bytes;
- a line end is a token of its own where the tokenizer was trained on some, and else read as a space;
- a character that a tokenizer does not know is decomposed (NFD) and its known parts kept, so that a foreign accented
  letter is read as its base letter; what is unknown even then is dropped, not replaced: a symbol for "something else"
  would teach an acoustic model a class without a sound. `find_unknown` counts what is lost before a run starts.

A saved tokenizer is `tokenizer.json`, with `tokenizer.model` beside it for SentencePiece; nothing is pickled.
"""

import collections
import dataclasses
import functools
import hashlib
import io
import json
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import sentencepiece

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path

BLANK = 0
"""The id of the CTC blank and of padding, which no text has."""
_FILE = "tokenizer.json"
_MODEL_FILE = "tokenizer.model"
_SENTENCE_CHARACTERS = 1000
_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece

Kind = Literal["char", "unigram", "bpe", "hugging_face"]


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer offers."""

    @property
    def kind(self) -> Kind:
        """What the ids stand for."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids, the blank included."""
        ...

    @property
    def begin(self) -> int | None:
        """The id that begins a text, for tokenizers from elsewhere that have one; None where the boundary does."""
        ...

    @property
    def has_prefix(self) -> bool:
        """Whether a text has anything before it: `begin` or the boundary. False for some tokenizers from elsewhere."""
        ...

    @property
    def other_ends(self) -> tuple[int, ...]:
        """Ids at which generation stops besides the boundary; only tokenizers from elsewhere have some."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides the ids."""
        ...

    @property
    def pieces(self) -> tuple[str, ...]:
        """What each id spells, a space written as "\u2581"; the blank's is empty."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids in [1, vocab_size) of a text; unknown characters are dropped."""
        ...

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of every text; SentencePiece uses `num_threads`."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; blanks are skipped (repeats are not merged, that is CTC's business)."""
        ...

    def unknown(self, text: str) -> list[str]:
        """The characters of a text that `encode` drops, in order."""
        ...

    def save(self, directory: Path | str) -> None:
        """Writes the tokenizer into an existing or new directory."""
        ...


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One id a character: `characters[i]` has id i + 1.

    `decode` composes what `encode` decomposed, so `decode(encode(text))` is the NFKC form of every text over the
    alphabet.
    """

    characters: str
    kind: Kind = dataclasses.field(default="char", init=False)
    begin: ClassVar[None] = None
    has_prefix: ClassVar[bool] = True
    other_ends: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        if len(set(self.characters)) != len(self.characters) or not self.characters:
            raise ValueError(f"an alphabet needs distinct characters, got {self.characters!r}")

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        return _digest(b"char\0" + self.characters.encode())

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        return ("", *self.characters.replace(" ", _SPACE))

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters, start=1)}

    def encode(self, text: str) -> list[int]:
        ids, text = self._ids, _readable(text, self._ids)
        try:
            return [ids[character] for character in text]
        except KeyError:
            return [ids[part] for part in _decompose(text, ids) if part in ids]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return unicodedata.normalize("NFKC", "".join(self.characters[number - 1] for number in ids if number != BLANK))

    def unknown(self, text: str) -> list[str]:
        return _unknown(text, self._ids)

    def save(self, directory: Path | str) -> None:
        _write(directory, {"kind": "char", "characters": list(self.characters)})


class SentencePieceTokenizer:
    """SentencePiece pieces (Kudo and Richardson 2018), unigram or BPE.

    The model is trained so that its obligatory unknown piece has id 0 and no other control piece exists. As `encode`
    drops unknown pieces, id 0 is free to be the blank, and SentencePiece's ids are ours.
    """

    begin = None
    has_prefix = True
    other_ends = ()

    def __init__(self, kind: Kind, model: bytes):
        """Takes a serialised SentencePiece model of the kind "unigram" or "bpe"."""
        self.kind = kind
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        if self._processor.unk_id() != BLANK or self._processor.bos_id() >= 0 or self._processor.eos_id() >= 0:
            raise ValueError("this SentencePiece model was not made by train_tokenizer: its only control id must be 0")

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @functools.cached_property
    def fingerprint(self) -> str:
        return _digest(self.kind.encode() + b"\0" + self.model)

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        return ("", *(self._processor.id_to_piece(number) for number in range(1, self.vocab_size)))

    @functools.cached_property
    def newline(self) -> int:
        """The id of a line end, the blank where there is none.

        Lines are encoded one by one, so that the first word of a line is the same piece as elsewhere.
        """
        known = [
            self._processor.piece_to_id("\n"),
            *([self._processor.piece_to_id("<0x0A>")] if self.has_bytes else []),
        ]
        return next((number for number in known if number != BLANK), BLANK)

    @functools.cached_property
    def has_bytes(self) -> bool:
        """Whether characters without a piece are spelled in bytes, so that none is unknown."""
        return any(self._processor.is_byte(number) for number in range(self.vocab_size))

    @functools.cached_property
    def known(self) -> frozenset[str]:
        """The characters that it has pieces for."""
        # trained with full coverage, so each character of the training texts is a piece of its own
        pieces = "".join(self._processor.id_to_piece(number) for number in range(1, self.vocab_size))
        return frozenset(pieces.replace(_SPACE, " "))

    def is_byte(self, number: int) -> bool:
        """Whether an id stands for a byte."""
        return number < self.vocab_size and self._processor.is_byte(number)

    def score(self, number: int) -> float:
        """What SentencePiece ranks a piece by: its log-probability, or minus the number of its merge."""
        return self._processor.get_score(number)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        lines = [self._without_unknown(text).split("\n") for text in texts]
        encoded = iter(self._processor.encode([line for text in lines for line in text], num_threads=num_threads))
        return [self._join([next(encoded) for _ in text]) for text in lines]

    def _join(self, lines: list[list[int]]) -> list[int]:
        ids = [piece for line in lines for piece in (self.newline, *line) if piece != BLANK]
        return ids if self.newline == BLANK else ids[1:]

    def _without_unknown(self, text: str) -> str:
        if self.has_bytes:
            return unicodedata.normalize("NFKC", text)
        text = _readable(text, self.known)
        if self.known.issuperset(text):
            return text
        return "".join(part for part in _decompose(text, self.known) if part in self.known)

    def decode(self, ids: Iterable[int]) -> str:
        lines: list[list[int]] = [[]]
        for piece in ids:
            if piece == self.newline != BLANK:
                lines.append([])
            elif piece != BLANK:
                lines[-1].append(int(piece))
        return "\n".join(self._processor.decode(lines))

    def unknown(self, text: str) -> list[str]:
        return [] if self.has_bytes else _unknown(text, self.known)

    def save(self, directory: Path | str) -> None:
        _write(directory, {"kind": self.kind, "model": _MODEL_FILE, "fingerprint": self.fingerprint}, self.model)


def train_tokenizer(
    texts: Iterable[str],
    kind: Kind,
    vocab_size: int | None = None,
    out: Path | str | None = None,
    *,
    byte_fallback: bool = False,
) -> Tokenizer:
    """Makes a tokenizer from texts.

    Args:
      texts: transcripts; read once.
      kind: "char" takes every character that occurs; "unigram" and "bpe" learn `vocab_size` pieces.
      vocab_size: number of ids with the blank, for SentencePiece. Texts too small for so many pieces give fewer.
      out: directory to save to, if any.
      byte_fallback: gives SentencePiece 256 more pieces, the bytes: then no character is unknown (the rarest, 0.05 % of
        those in the texts, are spelled in bytes too) and no space is lost, so that every text comes back in NFKC.

    Raises:
      ValueError: where the texts hold no character, or `vocab_size` does not fit the kind.
    """
    normalised = (unicodedata.normalize("NFKC", text) for text in texts)
    if kind == "char":
        if vocab_size is not None:
            raise ValueError("a character tokenizer has as many ids as characters; leave vocab_size out")
        alphabet = sorted(set().union(*normalised))
        if not alphabet:
            raise ValueError("cannot build a tokenizer: the texts hold no character; check the set's transcripts")
        tokenizer: Tokenizer = CharTokenizer("".join(alphabet))
    elif kind in ("unigram", "bpe"):
        if vocab_size is None:
            raise ValueError(f"a {kind} tokenizer needs a vocab_size")
        tokenizer = SentencePieceTokenizer(kind, _train_sentencepiece(normalised, kind, vocab_size, byte_fallback))
    else:
        raise ValueError(f"unknown tokenizer kind {kind!r}; choose char, unigram or bpe")
    if out is not None:
        tokenizer.save(out)
    return tokenizer


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
      DataError: where the directory holds no tokenizer, or its files are damaged or belong to different tokenizers.
    """
    path = as_path(directory) / _FILE
    if not path.exists():
        raise DataError(f"{path} is missing: {directory} holds no tokenizer; make one with train_tokenizer")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["kind"] == "char":
            return CharTokenizer("".join(saved["characters"]))
        if saved["kind"] == "hugging_face":
            from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer

            return HuggingFaceTokenizer.from_saved(saved)
        tokenizer = SentencePieceTokenizer(saved["kind"], (path.parent / saved["model"]).read_bytes())
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise DataError(f"{path} is not a readable tokenizer ({error}); save it anew") from error
    if tokenizer.fingerprint != saved["fingerprint"]:
        raise DataError(f"{path} and {saved['model']} beside it belong to different tokenizers; save it anew")
    return tokenizer


@dataclasses.dataclass(frozen=True)
class UnknownReport:
    """What a tokenizer drops from some texts: occurrences by character, and how many of the texts lose any."""

    characters: dict[str, int]
    num_texts: int
    num_affected: int

    def __str__(self) -> str:
        if not self.characters:
            return f"every character of {self.num_texts} texts is known to the tokenizer"
        shown = ", ".join(f"{c!r} (U+{ord(c):04X}) {count} times" for c, count in list(self.characters.items())[:10])
        more = f" and {len(self.characters) - 10} more" if len(self.characters) > 10 else ""
        return (
            f"{self.num_affected} of {self.num_texts} texts lose characters that the tokenizer does not know: "
            f"{shown}{more}; train the tokenizer on these texts too, or normalise them"
        )


def find_unknown(tokenizer: Tokenizer, texts: Iterable[str]) -> UnknownReport:
    """Counts the characters of texts that a tokenizer drops, the most frequent first."""
    counts: collections.Counter[str] = collections.Counter()
    num_texts = num_affected = 0
    for text in texts:
        unknown = tokenizer.unknown(text)
        counts.update(unknown)
        num_texts += 1
        num_affected += bool(unknown)
    return UnknownReport(dict(counts.most_common()), num_texts, num_affected)


def _readable(text: str, known: Collection[str]) -> str:
    text = unicodedata.normalize("NFKC", text)
    return text if "\n" in known else text.replace("\n", " ")


def _decompose(text: str, known: Collection[str]) -> str:
    return "".join(c if c in known else unicodedata.normalize("NFD", c) for c in text)


def _unknown(text: str, known: Collection[str]) -> list[str]:
    return [part for part in _decompose(_readable(text, known), known) if part not in known]


def _train_sentencepiece(texts: Iterable[str], kind: Kind, vocab_size: int, byte_fallback: bool) -> bytes:
    model = io.BytesIO()
    has_lines, sentences = False, []
    for text in texts:
        has_lines = has_lines or "\n" in text
        sentences += _sentences(text)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=0.9995 if byte_fallback else 1.0,
            byte_fallback=byte_fallback,
            remove_extra_whitespaces=not byte_fallback,
            user_defined_symbols=["\n"] if has_lines else [],  # a piece of its own, and part of no other
            normalization_rule_name="identity",  # NFKC is applied here, by the Unicode tables that `encode` uses too
            unk_id=BLANK,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,  # the same texts give the same model
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"SentencePiece could not learn {vocab_size} {kind} pieces from these texts: {error}"
        ) from error
    return model.getvalue()


def _sentences(text: str) -> Iterator[str]:
    """The lines of a text, in stretches that SentencePiece takes (it skips what has over 4192 bytes)."""
    for line in text.split("\n"):
        while len(line) > _SENTENCE_CHARACTERS:
            end = line.rfind(" ", 0, _SENTENCE_CHARACTERS) + 1 or _SENTENCE_CHARACTERS
            yield line[:end]
            line = line[end:]
        if line:
            yield line


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _write(directory: Path | str, description: dict, model: bytes | None = None) -> None:
    directory = as_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if model is not None:
        (directory / _MODEL_FILE).write_bytes(model)
    text = json.dumps(description, ensure_ascii=False, indent=1)
    (directory / _FILE).write_text(text + "\n", encoding="utf-8")
