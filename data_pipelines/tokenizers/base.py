"""Tokenizers: text to token ids and back, by characters, words, SentencePiece pieces, phones or speech units.

All kinds follow one convention, so that models and losses do not depend on the kind:

- id 0 is the CTC blank and the padding value; `encode` never returns it and `decode` skips it;
- text is converted to Unicode NFKC before encoding, and is decoded to NFKC; characters keep case and spacing, while
  SentencePiece trims and collapses spaces unless it has pieces for bytes;
- a line end is a separate token if the training texts had some, otherwise it is read as a space;
- an unknown character is decomposed (NFD) and its known parts are kept, so that a foreign accented letter is read as
  its base letter; parts that are still unknown are dropped, not replaced: a symbol for "any other character" would
  teach an acoustic model a class without a sound. `find_unknown` counts the losses before a run starts.

Words (`data_pipelines.tokenizers.words`) are casefolded, and unknown ones are dropped whole.

A saved tokenizer is `tokenizer.json`, with `tokenizer.model` next to it for SentencePiece and `lexicon.txt.xz` for
phones; nothing is pickled.
"""

import collections
import dataclasses
import functools
import io
import json
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import sentencepiece

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import short_digest
from data_pipelines.core.paths import as_path
from data_pipelines.core.tokenizer import BLANK, PHONES, Kind, Tokenizer
from data_pipelines.tokenizers.words import WordTokenizer, train_words

COUNTED = ("char", *PHONES, "word")
"""Kinds that have an id for what occurs in the training texts, instead of a chosen number of pieces."""

_FILE = "tokenizer.json"
_MODEL_FILE = "tokenizer.model"
_SENTENCE_CHARACTERS = 1000
_SPACE = "\u2581"  # SentencePiece's notation of a space inside a piece


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One id per character: `characters[i]` has id i + 1.

    `decode` composes characters that `encode` decomposed, so `decode(encode(text))` is the NFKC form of every text over
    the alphabet.
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
        return short_digest(b"char\0" + self.characters.encode())

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        return ("", *self.characters.replace(" ", _SPACE))

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {character: id_ for id_, character in enumerate(self.characters, start=1)}

    def encode(self, text: str) -> list[int]:
        ids, text = self._ids, _readable(text, self._ids)
        try:
            return [ids[character] for character in text]
        except KeyError:
            return [ids[part] for part in _decompose(text, ids) if part in ids]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return unicodedata.normalize("NFKC", "".join(self.characters[id_ - 1] for id_ in ids if id_ != BLANK))

    def unknown(self, text: str) -> list[str]:
        return _unknown(text, self._ids)

    def save(self, directory: Path | str) -> None:
        _write(directory, {"kind": "char", "characters": list(self.characters)})


class SentencePieceTokenizer:
    """SentencePiece pieces (Kudo and Richardson 2018), unigram or BPE.

    The model is trained with the obligatory unknown piece as id 0 and without other control pieces. As `encode` drops
    unknown pieces, id 0 is free for the blank, and SentencePiece's ids need no mapping.
    """

    begin = None
    has_prefix = True
    other_ends = ()

    def __init__(self, kind: Kind, model: bytes):
        """
        Raises:
          ValueError: its control ids differ from the convention of `train_tokenizer`.
        """
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
        return short_digest(self.kind.encode() + b"\0" + self.model)

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        return ("", *(self._processor.id_to_piece(number) for number in range(1, self.vocab_size)))

    @functools.cached_property
    def newline(self) -> int:
        """The id of a line end, or the blank if it has none.

        Lines are encoded separately, so that the first word of a line is the same piece as elsewhere.
        """
        known = [
            self._processor.piece_to_id("\n"),
            *([self._processor.piece_to_id("<0x0A>")] if self.has_bytes else []),
        ]
        return next((number for number in known if number != BLANK), BLANK)

    @functools.cached_property
    def has_bytes(self) -> bool:
        """Whether characters without a piece are encoded as bytes, so that every character is known."""
        return any(self._processor.is_byte(number) for number in range(self.vocab_size))

    @functools.cached_property
    def known(self) -> frozenset[str]:
        """The characters that have pieces."""
        # trained with full coverage, so each character of the training texts is a piece of its own
        pieces = "".join(self._processor.id_to_piece(number) for number in range(1, self.vocab_size))
        return frozenset(pieces.replace(_SPACE, " "))

    def is_byte(self, number: int) -> bool:
        """Returns whether an id represents a byte."""
        return number < self.vocab_size and self._processor.is_byte(number)

    def score(self, number: int) -> float:
        """Returns the rank criterion of a piece: its log-probability, or minus the number of its merge."""
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
    language: str = "en-us",
    min_count: int = 5,
) -> Tokenizer:
    """Makes a tokenizer from texts.

    Args:
      texts: transcripts; read once.
      kind: "char" takes every character that occurs, "phones" every phone and mark of a pause
        (`data_pipelines.tokenizers.phones`), "ipa" the same of any language (`data_pipelines.tokenizers.ipa`),
        "word" every frequent word (`data_pipelines.tokenizers.words`); "unigram" and "bpe" learn `vocab_size` pieces.
      vocab_size: number of ids including the blank, for SentencePiece. A small corpus may result in fewer.
      byte_fallback: adds 256 pieces for bytes to SentencePiece: then every character is known (the rarest, 0.05 % of
        the characters in the texts, are encoded as bytes too) and spaces are kept, so that every text is decoded to its
        NFKC form.
      language: eSpeak's name of the language of "ipa".
      min_count: occurrences that a "word" needs.

    Raises:
      DataError: the package that a kind needs is not installed.
      ValueError: the texts contain no character, or `vocab_size` does not fit the kind.
    """
    normalised = (unicodedata.normalize("NFKC", text) for text in texts)
    if kind in COUNTED and vocab_size is not None:
        raise ValueError("a tokenizer of characters, phones or words has as many ids as occur; leave vocab_size out")
    if kind == "char":
        alphabet = sorted(set().union(*normalised))
        if not alphabet:
            raise ValueError("cannot build a tokenizer: the texts hold no character; check the set's transcripts")
        tokenizer: Tokenizer = CharTokenizer("".join(alphabet))
    elif kind == "phones":
        from data_pipelines.tokenizers.phones import train_phones

        tokenizer = train_phones(normalised)
    elif kind == "ipa":
        from data_pipelines.tokenizers.ipa import train_ipa

        tokenizer = train_ipa(normalised, language)
    elif kind == "word":
        tokenizer = train_words(normalised, min_count)
    elif kind in ("unigram", "bpe"):
        if vocab_size is None:
            raise ValueError(f"a {kind} tokenizer needs a vocab_size")
        tokenizer = SentencePieceTokenizer(kind, _train_sentencepiece(normalised, kind, vocab_size, byte_fallback))
    else:
        raise ValueError(f"unknown tokenizer kind {kind!r}; choose char, phones, ipa, word, unigram or bpe")
    if out is not None:
        tokenizer.save(out)
    return tokenizer


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """Reads a directory that `Tokenizer.save` wrote.

    Raises:
      DataError: the directory has no tokenizer, or its files are damaged or belong to different tokenizers.
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
        if saved["kind"] == "units":
            from data_pipelines.tokenizers.units import UnitTokenizer

            return UnitTokenizer.from_saved(saved)
        if saved["kind"] == "phones":
            from data_pipelines.tokenizers.phones import PhoneTokenizer

            tokenizer: Tokenizer = PhoneTokenizer.from_saved(saved, path.parent)
        elif saved["kind"] == "ipa":
            from data_pipelines.tokenizers.ipa import IpaTokenizer

            tokenizer = IpaTokenizer.from_saved(saved)
        elif saved["kind"] == "word":
            tokenizer = WordTokenizer.from_saved(saved)
        else:
            tokenizer = SentencePieceTokenizer(saved["kind"], (path.parent / saved["model"]).read_bytes())
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise DataError(f"{path} is not a readable tokenizer ({error}); save it again") from error
    if tokenizer.fingerprint != saved["fingerprint"]:
        other = f" and {file} next to it belong" if (file := saved.get("model") or saved.get("lexicon")) else " belongs"
        raise DataError(f"{path}{other} to different tokenizers; save it again")
    return tokenizer


@dataclasses.dataclass(frozen=True)
class UnknownReport:
    """Characters that a tokenizer drops from some texts: occurrences by character, and the number of affected
    texts.
    """

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
    """Counts the characters of texts that a tokenizer drops.

    Returns:
      The counts, the most frequent character first.
    """
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
            num_threads=1,  # for a reproducible model
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"SentencePiece could not learn {vocab_size} {kind} pieces from these texts: {error}"
        ) from error
    return model.getvalue()


def _sentences(text: str) -> Iterator[str]:
    """Yields the lines of a text, in parts that SentencePiece accepts (it skips sentences of over 4192 bytes)."""
    for line in text.split("\n"):
        while len(line) > _SENTENCE_CHARACTERS:
            end = line.rfind(" ", 0, _SENTENCE_CHARACTERS) + 1 or _SENTENCE_CHARACTERS
            yield line[:end]
            line = line[end:]
        if line:
            yield line


def _write(directory: Path | str, description: dict, model: bytes | None = None) -> None:
    directory = as_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if model is not None:
        (directory / _MODEL_FILE).write_bytes(model)
    text = json.dumps(description, ensure_ascii=False, indent=1)
    (directory / _FILE).write_text(text + "\n", encoding="utf-8")
