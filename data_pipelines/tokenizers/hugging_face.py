"""Adapter of Hugging Face's `tokenizers` to the convention of `data_pipelines.tokenizers.base`.

In that convention, 0 is blank and padding, and the boundary and mask of a language model follow the tokenizer's ids; an
imported tokenizer may have them anywhere. `IdMap` maps its ids to local ids; the order of all others is kept.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_pipelines.core.errors import DataError, is_panic
from data_pipelines.core.files import short_digest
from data_pipelines.core.paths import as_path
from data_pipelines.tokenizers.normalizer_growth import GrowthLimit

if TYPE_CHECKING:
    import tokenizers

_FILE = "tokenizer.json"
_SPACE = "\u2581"
_NO_ID = -1
_OPTIONAL = {"other_ends": (), "has_prefix": True}


@dataclasses.dataclass(frozen=True)
class IdMap:
    """Map between the rows of an imported table and local ids.

    Local ids are: padding; all ids without another role, in their order; then, for a language model, boundary and mask.
    A role without an imported id takes a row that no imported token uses, the last first, or else -1.

    Attributes:
      num_rows: of the imported table of embeddings, or of the CTC head.
      padding: imported id of padding or of the CTC blank; None if it has no separate id.
      end: imported id of a text's end, the local boundary; None for CTC.
      mask: imported mask; None if it has no mask.
      begin: imported id of a text's begin, if it differs from `end`.
      spare: rows without a name, ascending.
      other_ends: further ids at which generation stops.
      has_prefix: whether the imported tokenizer puts `begin` (or `end`, if that is None) before a text. If not, prompts
        have no prefix either.
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
        used = [id_ for id_ in named.values() if id_ is not None]
        for name, id_ in named.items():
            if id_ is not None and not 0 <= id_ < self.num_rows:
                raise ValueError(f"the id {id_} of {name} is none of the {self.num_rows} rows of the table")
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
        """int32: imported id of every local id, -1 if it has none: of the tokenizer, then boundary and mask."""
        free = list(self.spare)
        padding = self.padding if self.padding is not None else free.pop() if free else _NO_ID
        last = []
        if self.end is not None:
            last = [self.end, self.mask if self.mask is not None else free.pop() if free else _NO_ID]
        others = [id_ for id_ in self.all if id_ not in (padding, *last)]
        return np.array([padding, *others, *last], np.int32)

    @property
    def tokenizer_size(self) -> int:
        """Number of local ids that belong to the tokenizer."""
        return len(self.theirs) - (0 if self.end is None else 2)

    @functools.cached_property
    def ours(self) -> np.ndarray:
        """int32 [num_rows]: local id of every imported id; the inverse of `theirs`."""
        local = np.full(self.num_rows, _NO_ID, np.int32)
        mapped = np.flatnonzero(self.theirs != _NO_ID)
        local[self.theirs[mapped]] = mapped
        return local

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON; new fields only if they are not the default: older fingerprints stay valid."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k not in _OPTIONAL or v != _OPTIONAL[k]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "IdMap":
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def rows(self, size: int) -> np.ndarray:
        """Returns int32 [size]: the imported row of every local id of a table of `size` rows; -1 if it has none."""
        return np.pad(self.theirs, (0, size - len(self.theirs)), constant_values=_NO_ID)


class Pair(NamedTuple):
    """Two texts as one row.

    Attributes:
      ids: local ids, special tokens included.
      types: of each token, 0 or, in models that were trained so, 1 for the second text with its end (BERT).
      offsets: of each token, the characters from and to (excluded) of its own text.
      second: the range of the second text's tokens.
    """

    ids: list[int]
    types: list[int]
    offsets: list[tuple[int, int]]
    second: tuple[int, int]


class HuggingFaceTokenizer:
    """A tokenizer of Hugging Face, from its `tokenizer.json`.

    That file decides how text is read, without NFKC here, and whether unknown characters are dropped or replaced.
    Special tokens in a text are read as text, and are left out of decoded text. Texts are read completely: truncation,
    padding and dropout in the file are ignored.

    Attributes:
      files: JSON files of its folder, by name, which are written again when a model is exported.
      special: settings of the folder's `config.json` that name ids, for the same purpose.
    """

    kind = "hugging_face"

    def __init__(self, description: str, places: IdMap, files: Mapping[str, Any], special: Mapping[str, Any]):
        """
        Args:
          description: the text of a `tokenizer.json`.

        Raises:
          DataError: `tokenizers` is not installed.
          ValueError: the description cannot be read, or names ids outside the table.
        """
        self.description, self.places = description, places
        self.files, self.special = dict(files), dict(special)
        self._tokenizer = open_description(description)
        self._growth = GrowthLimit(description)
        self._special = {id_ for id_, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._tokenizer.encode_special_tokens = True
        self._names = {id_: name for name, id_ in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        beyond = [name for id_, name in self._names.items() if id_ >= places.num_rows and id_ not in self._special]
        if beyond:
            raise ValueError(f"the tokenizer has {min(beyond)!r}, whose id is none of the table's {places.num_rows}")

    @property
    def vocab_size(self) -> int:
        return self.places.tokenizer_size

    @property
    def padding_name(self) -> str | None:
        """Name of the blank or padding among its tokens, or None."""
        return self._names.get(int(self.places.theirs[0]))

    @property
    def begin(self) -> int | None:
        """Local id that begins a text, if it is not the boundary."""
        return None if self.places.begin is None else int(self.places.ours[self.places.begin])

    @property
    def other_ends(self) -> tuple[int, ...]:
        """Local ids in addition to the boundary that end a text."""
        return tuple(int(self.places.ours[id_]) for id_ in self.places.other_ends)

    @property
    def has_prefix(self) -> bool:
        """Whether an id precedes a text or a prompt: `begin`, or the boundary if that is None."""
        return self.places.has_prefix

    @functools.cached_property
    def fingerprint(self) -> str:
        file = self.files.get(_FILE, {})
        # An earlier version applied these settings of the file; tokens that it stored count as another tokenizer's.
        once_applied = file.get("truncation"), file.get("padding"), (file.get("model") or {}).get("dropout")
        whole = {"whole": True} if any(once_applied) else {}
        return short_digest(json.dumps(self._saved() | whole, sort_keys=True).encode())

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        text_of = _bytes_to_text if '"ByteLevel"' in self.description else str
        imported = self.places.theirs[1 : self.vocab_size].tolist()
        names = ("" if id_ in self._special else self._names.get(id_, "") for id_ in imported)
        return ("", *(text_of(name).replace(" ", _SPACE) for name in names))

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        del num_threads  # the library has one pool of threads for the whole process
        try:
            with _errors_named("read", texts[0] if len(texts) == 1 else None):
                for text in texts:
                    self._growth.check(text)
                encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except DataError:
            if len(texts) == 1:
                raise
            return [self.encode(text) for text in texts]  # so that the error names the text
        ids = [self.places.ours[np.array(encoding.ids, np.int64)] for encoding in encodings]
        return [row[(row > 0) & (row < self.vocab_size)].tolist() for row in ids]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encodes a text; returns the ids, and of each the characters from and to (excluded) that it stands for."""
        self._growth.check(text)
        with _errors_named("read", text):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = self.places.ours[np.array(encoding.ids, np.int64)]
        known = np.flatnonzero((ids > 0) & (ids < self.vocab_size))
        return ids[known].tolist(), [encoding.offsets[index] for index in known]

    def encode_pair(self, first: str, second: str) -> Pair:
        """Encodes two texts as one row, with the special tokens that the tokenizer puts around and between them.

        Raises:
          DataError: it puts a special token into the second text, or cannot read them.
        """
        for text in (first, second):
            self._growth.check(text)
        with _errors_named("read", first):
            encoding = self._tokenizer.encode(first, second)
        inside = [index for index, part in enumerate(encoding.sequence_ids) if part == 1]
        begin, end = (inside[0], inside[-1] + 1) if inside else (len(encoding.ids), len(encoding.ids))
        if inside != list(range(begin, end)) or max(encoding.type_ids, default=0) > 1:
            raise DataError(f"the post_processor of the model's {_FILE} has another form for two texts than is known")
        ids = self.places.ours[np.array(encoding.ids, np.int64)].tolist()
        types = encoding.type_ids if self._has_token_types else [0] * len(ids)
        return Pair(ids, types, encoding.offsets, (begin, end))

    @property
    def _has_token_types(self) -> bool:
        """Whether transformers gives the model token types, as its class says where the files do not."""
        config = self.files.get("tokenizer_config.json", {})
        inputs = config.get("model_input_names")
        if isinstance(inputs, list):
            return "token_type_ids" in inputs
        return config.get("tokenizer_class", "BertTokenizer") in ("BertTokenizer", "BertTokenizerFast")

    def decode(self, ids: Iterable[int]) -> str:
        imported = self.places.theirs[np.array([id_ for id_ in ids if id_], np.int64)]
        known = imported[imported != _NO_ID].tolist()
        with _errors_named("decode", f"ids {known[:20]}"):
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
        """Makes a tokenizer from the JSON that `save` wrote."""
        places, files = IdMap.from_json(saved["places"]), saved["files"]
        description = json.dumps(files[_FILE], ensure_ascii=False) if _FILE in files else saved["description"]
        return cls(description, places, files, saved["special"])


def open_description(description: str) -> "tokenizers.Tokenizer":
    """Opens the tokenizer of a `tokenizer.json`'s text.

    Returns:
      The tokenizer, without truncation, padding and dropout.

    Raises:
      DataError: `tokenizers` is not installed.
      ValueError: the text cannot be read.
    """
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise DataError(
            "this model's tokenizer needs Hugging Face's package tokenizers: pip install 'jax_speechlm[hf]'"
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
    """Finds the ids that a tokenizer adds to a text.

    Returns:
      The ids before and after the text.

    Raises:
      ValueError: the encoded text does not contain the text exactly once.
    """
    import tokenizers

    if tokenizer.post_processor is None:
        return [], []
    text = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    text.post_processor = tokenizer.post_processor
    with _errors_named("enclose", None):
        encoding = text.encode("a")
    if (count := encoding.special_tokens_mask.count(0)) != 1:
        raise ValueError(f"the post_processor of {_FILE} repeats a text {count} times")
    position = encoding.special_tokens_mask.index(0)
    return encoding.ids[:position], encoding.ids[position + 1 :]


@contextlib.contextmanager
def _errors_named(verb: str, argument: str | None) -> Iterator[None]:
    """Converts errors of the library, including panics of its Rust code, to `DataError`."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        shown = "a text" if argument is None else repr(argument[:60])
        raise DataError(
            f"the model's tokenizer ({_FILE}) cannot {verb} {shown}: {str(error)[:300]}. Leave that out, or import the "
            "model with a tokenizer that can"
        ) from error


@functools.cache
def _byte_letters() -> dict[str, int]:
    """Returns the bytes of the letters by which byte-level BPE represents them (Radford et al. 2019,
    `bytes_to_unicode`).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes_to_text(name: str) -> str:
    """Returns the text of a byte-level piece; a part of a character is unchanged."""
    letters = _byte_letters()
    try:
        return bytes(letters[letter] for letter in name).decode()
    except (KeyError, UnicodeDecodeError):
        return name
