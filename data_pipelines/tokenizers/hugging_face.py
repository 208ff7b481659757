"""Tokenizers of Hugging Face's `tokenizers` under this project's convention, with ids that move where that needs it.

Here 0 is blank and padding, and a language model's boundary and mask stand behind the tokenizer's ids; elsewhere they
stand anywhere. `IdMap` says which id of theirs is which of ours: their order stays, but for those few.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.core.errors import DataError, is_panic
from data_pipelines.core.paths import as_path
from data_pipelines.tokenizers.normalizer_growth import GrowthLimit

if TYPE_CHECKING:
    import tokenizers

_FILE = "tokenizer.json"
_SPACE = "\u2581"
_NOBODY = -1
_OPTIONAL = {"other_ends": (), "has_prefix": True}


@dataclasses.dataclass(frozen=True)
class IdMap:
    """Which row of their table is which of ours.

    Ours are: padding; all that have no other place, in their order; then, of a language model, boundary and mask.
    A place that nothing of theirs has takes a row that no token of theirs names, the last first, or else none.

    Attributes:
      num_rows: of their table of embeddings, or of their CTC head.
      padding: their id of padding or of the CTC blank; None where it has no id to itself.
      end: their id of a text's end, which is our boundary; None for CTC.
      mask: their mask; None where there is none.
      begin: their id of a text's begin, where that is not `end`.
      spare: rows without a name, ascending.
      other_ends: further ids at which generation stops.
      has_prefix: whether their tokenizer puts `begin` (or `end`, where that is None) before a text. Where it puts
        nothing there, no prompt has anything before it either.
    """

    num_rows: int
    padding: int | None
    end: int | None = None
    mask: int | None = None
    begin: int | None = None
    spare: tuple[int, ...] = ()
    other_ends: tuple[int, ...] = ()
    has_prefix: bool = True

    def __post_init__(self):
        named = {name: getattr(self, name) for name in ("padding", "end", "mask", "begin")}
        used = [number for number in named.values() if number is not None]
        for name, number in named.items():
            if number is not None and not 0 <= number < self.num_rows:
                raise ValueError(f"the id {number} of {name} is none of the {self.num_rows} rows of the table")
        if len(set(used)) != len(used) or set(used) & set(self.spare) or not set(self.spare) <= set(self.all):
            raise ValueError(f"ids that must differ are the same: {named}")
        if not {self.padding, self.end, self.mask, *self.spare}.isdisjoint(self.other_ends):
            raise ValueError(f"one of the ids {self.other_ends} that end a text has another meaning: {named}")
        if not set(self.other_ends) <= set(self.all):
            raise ValueError(f"one of the ids {self.other_ends} that end a text is none of the {self.num_rows} rows")

    @property
    def all(self) -> range:
        return range(self.num_rows)

    @functools.cached_property
    def theirs(self) -> np.ndarray:
        """int32: their id for each of ours, -1 where they have none: of the tokenizer, then boundary and mask."""
        free = list(self.spare)
        padding = self.padding if self.padding is not None else free.pop() if free else _NOBODY
        behind = []
        if self.end is not None:
            behind = [self.end, self.mask if self.mask is not None else free.pop() if free else _NOBODY]
        others = [number for number in self.all if number not in (padding, *behind)]
        return np.array([padding, *others, *behind], np.int32)

    @property
    def tokenizer_size(self) -> int:
        """How many of ours are the tokenizer's."""
        return len(self.theirs) - (0 if self.end is None else 2)

    @functools.cached_property
    def ours(self) -> np.ndarray:
        """int32 [num_rows]: our id for each of theirs; the inverse of `theirs`."""
        ours = np.full(self.num_rows, _NOBODY, np.int32)
        here = np.flatnonzero(self.theirs != _NOBODY)
        ours[self.theirs[here]] = here
        return ours

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON; the newest only where they say something, so that older fingerprints stay valid."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k not in _OPTIONAL or v != _OPTIONAL[k]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "IdMap":
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def rows(self, size: int) -> np.ndarray:
        """int32 [size]: their row for each of ours, with as many behind as a table of `size` rows has more."""
        return np.pad(self.theirs, (0, size - len(self.theirs)), constant_values=_NOBODY)


class HuggingFaceTokenizer:
    """A tokenizer of Hugging Face's, from its `tokenizer.json`.

    Text is read as that file says, not brought to NFKC here; what it does not know it drops or names, as it says. What
    looks like one of its special tokens in a text is text. Special tokens are left out of decoded text. Texts are read
    whole: truncation, padding and dropout that the file names are for other calls than these.

    Attributes:
      places: which id of theirs is which of ours.
      files: JSON files of the folder that it is from, by name; to be written again when a model is exported.
      special: settings of the folder's `config.json` that name ids, for the same.
    """

    kind = "hugging_face"

    def __init__(self, description: str, places: IdMap, files: Mapping[str, Any], special: Mapping[str, Any]):
        """
        Args:
          description: the text of a `tokenizer.json`.

        Raises:
          DataError: `tokenizers` is not installed.
          ValueError: it cannot be read, or names ids that the table has not.
        """
        self.description, self.places = description, places
        self.files, self.special = dict(files), dict(special)
        self._tokenizer = open_description(description)
        self._growth = GrowthLimit(description)
        self._special = {
            number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self._tokenizer.encode_special_tokens = True
        names = {number: name for name, number in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        beyond = [name for number, name in names.items() if number >= places.num_rows and number not in self._special]
        if beyond:
            raise ValueError(f"the tokenizer has {min(beyond)!r}, whose id is none of the table's {places.num_rows}")
        self._names = names

    @property
    def vocab_size(self) -> int:
        return self.places.tokenizer_size

    @property
    def begin(self) -> int | None:
        """Our id of what begins a text, where that is not the boundary."""
        return None if self.places.begin is None else int(self.places.ours[self.places.begin])

    @property
    def other_ends(self) -> tuple[int, ...]:
        """Our ids of what ends a text besides the boundary."""
        return tuple(int(self.places.ours[number]) for number in self.places.other_ends)

    @property
    def has_prefix(self) -> bool:
        """Whether anything stands before a text or a prompt: `begin`, or the boundary where that is None."""
        return self.places.has_prefix

    @functools.cached_property
    def fingerprint(self) -> str:
        file = self.files.get(_FILE, {})
        # Texts used to be cut where the file says so; tokens that were stored then are of another tokenizer.
        was_obeyed = file.get("truncation"), file.get("padding"), (file.get("model") or {}).get("dropout")
        whole = {"whole": True} if any(was_obeyed) else {}
        return hashlib.sha256(json.dumps(self._saved() | whole, sort_keys=True).encode()).hexdigest()[:16]

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        spell = _bytes_of if '"ByteLevel"' in self.description else lambda name: name
        theirs = self.places.theirs[1 : self.vocab_size].tolist()
        spelled = ("" if number in self._special else self._names.get(number, "") for number in theirs)
        return ("", *(spell(name).replace(" ", _SPACE) for name in spelled))

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        del num_threads  # its own threads are one for the whole process
        try:
            with _errors_named("read", texts[0] if len(texts) == 1 else None):
                for text in texts:
                    self._growth.check(text)
                found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except DataError:
            if len(texts) == 1:
                raise
            return [self.encode(text) for text in texts]  # which raises where the text is known
        ours, size = self.places.ours, self.vocab_size
        ids = [ours[np.array(each.ids, np.int64)] for each in found]
        return [row[(row > 0) & (row < size)].tolist() for row in ids]

    def decode(self, ids: Iterable[int]) -> str:
        theirs = self.places.theirs[np.array([number for number in ids if number], np.int64)]
        known = theirs[theirs != _NOBODY].tolist()
        with _errors_named("spell", f"ids {known[:20]}"):
            return self._tokenizer.decode(known, skip_special_tokens=True)

    def unknown(self, text: str) -> list[str]:
        return [
            character for character in dict.fromkeys(text) if not character.isspace() and not self.encode(character)
        ]

    def save(self, directory: Path | str) -> None:
        directory = as_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        saved = self._saved() | {"fingerprint": self.fingerprint}
        (directory / _FILE).write_text(json.dumps(saved, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def _saved(self) -> dict[str, Any]:
        rest = {"places": self.places.to_json(), "files": self.files, "special": self.special}
        return {"kind": self.kind} | rest | ({} if _FILE in self.files else {"description": self.description})

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "HuggingFaceTokenizer":
        """What `save` wrote, as JSON reads it."""
        places, files = IdMap.from_json(saved["places"]), saved["files"]
        description = json.dumps(files[_FILE], ensure_ascii=False) if _FILE in files else saved["description"]
        return cls(description, places, files, saved["special"])


def open_description(description: str) -> "tokenizers.Tokenizer":
    """The tokenizer of a `tokenizer.json`'s text.

    Raises:
      DataError: `tokenizers` is not installed.
      ValueError: it cannot be read.
    """
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise DataError(
            "this model's tokenizer is one of Hugging Face's, for which the package tokenizers is needed: "
            "pip install 'jax_speechlm[hf]'"
        ) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(description)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ValueError(f"{_FILE} cannot be read by Hugging Face's tokenizers: {str(error)[:300]}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def ids_around(tokenizer: "tokenizers.Tokenizer") -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before a text, and those that it puts behind one.

    Raises:
      ValueError: it does not give the text once.
    """
    import tokenizers

    if tokenizer.post_processor is None:
        return [], []
    text = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    text.post_processor = tokenizer.post_processor
    with _errors_named("enclose", None):
        found = text.encode("a")
    if (count := found.special_tokens_mask.count(0)) != 1:
        raise ValueError(f"the post_processor of {_FILE} gives a text {count} times")
    place = found.special_tokens_mask.index(0)
    return found.ids[:place], found.ids[place + 1 :]


@contextlib.contextmanager
def _errors_named(verb: str, what: str | None) -> Iterator[None]:
    """Errors of the library's, panics of its Rust code among them, as `DataError`."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        what = "a text" if what is None else repr(what[:60])
        raise DataError(
            f"the model's tokenizer ({_FILE}) cannot {verb} {what}: {str(error)[:300]}. Leave that out, or import the "
            "model with a tokenizer that can"
        ) from error


@functools.cache
def _byte_letters() -> dict[str, int]:
    """The letters that byte-level byte pairs write bytes with (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    others = [number for number in range(256) if number not in printable]
    return {chr(number): number for number in printable} | {chr(256 + i): number for i, number in enumerate(others)}


def _bytes_of(name: str) -> str:
    """What a byte-level piece spells; a part of a character stays as it is written."""
    letters = _byte_letters()
    try:
        return bytes(letters[letter] for letter in name).decode()
    except (KeyError, UnicodeDecodeError):
        return name
