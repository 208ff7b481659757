"""Tokenizers of Hugging Face's folders as ours: whose id is whose, said once and held against every file that says it.

An id that is off by one spoils a model without a sound. So what `config.json` says of a special id and what the
tokenizer's own files say must agree, and every id has to be a row of the table.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.hugging_face_tokenizer import HuggingFaceTokenizer, Places, open_description
from data_pipelines.tokenizers import CharTokenizer, Tokenizer
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError

_CONFIG, _DESCRIPTION, _VOCAB = "tokenizer_config.json", "tokenizer.json", "vocab.json"
_SPECIAL = "bos", "eos", "pad", "unk", "mask", "cls", "sep"
_KEPT = (
    _CONFIG, _DESCRIPTION, _VOCAB, "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "chat_template.json",
)  # fmt: skip
_TEMPLATE, _TEMPLATES = "chat_template.jinja", "additional_chat_templates"
"""Files that an export writes again as they are: of JSON, and chat templates, which are text."""


def read_text_tokenizer(
    folder: Path, values: Mapping[str, Any], num_rows: int, *, causal: bool, mask: int | None = None
) -> Tokenizer:
    """The tokenizer of a language model.

    Args:
      values: `config.json`.
      num_rows: of the table of embeddings.
      causal: whether the model is; of one that is not, texts stand between `cls` and `sep`.
      mask: an id that no text holds, where another than the tokenizer's mask is to be that.

    Raises:
      ExportError: a file is missing, or two of them do not agree about an id.
    """
    files = _files(folder)
    if _DESCRIPTION not in files:
        raise ExportError(
            f"{folder} has no {_DESCRIPTION}, which tokenizers are read from: open the folder with transformers' "
            "AutoTokenizer and write it with save_pretrained, which makes one"
        )
    names = _names(folder, files[_DESCRIPTION])
    ids = _Ids(folder, values, files.get(_CONFIG, {}), names)
    end = ids.of("eos") if causal else ids.first("sep", "eos")
    begin = ids.of("bos") if causal else ids.first("cls", "bos")
    if end is None:
        raise ExportError(
            f"{folder / 'config.json'} has no eos_token_id: nothing says which id ends a text. Name it there"
        )
    padding, begin = ids.of("pad"), None if begin == end else begin
    mask = ids.of("mask") if mask is None else mask
    places = _places(folder, num_rows, names, padding=padding, end=end, mask=mask, begin=begin)
    return _tokenizer(folder, json.dumps(files[_DESCRIPTION], ensure_ascii=False), places, files, values)


def read_ctc_tokenizer(folder: Path, values: Mapping[str, Any], num_rows: int) -> Tokenizer:
    """The tokenizer of a recognizer: of characters where that is what it is, with the blank at 0; else Hugging Face's.

    Args:
      values: `config.json`.
      num_rows: of the CTC head.

    Raises:
      ExportError: a file is missing, no blank is named, or two files do not agree about an id.
    """
    files = _files(folder)
    config = files.get(_CONFIG, {})
    if _DESCRIPTION in files:
        description, names = json.dumps(files[_DESCRIPTION], ensure_ascii=False), _names(folder, files[_DESCRIPTION])
    elif _VOCAB in files:
        if config.get("do_lower_case"):
            raise ExportError(f"{folder / _CONFIG}: do_lower_case=true has no counterpart here, where case is kept")
        names = _vocabulary(folder, files)
        description = json.dumps(_characters(names, config), ensure_ascii=False)
    else:
        raise ExportError(f"{folder} has neither {_DESCRIPTION} nor {_VOCAB}: nothing says what its ids spell")
    blank = _Ids(folder, values, config, names).of("pad")
    if blank is None:
        raise ExportError(f"{folder / 'config.json'} has no pad_token_id, which is the CTC blank: name it there")
    if _DESCRIPTION not in files and blank == 0 and (alphabet := _alphabet(names, config, num_rows)):
        return CharTokenizer(alphabet)
    places = _places(folder, num_rows, names, padding=blank)
    return _tokenizer(folder, description, places, files, values)


def _files(folder: Path) -> dict[str, Any]:
    files = {name: folders.read_json(folder, name) for name in _KEPT if (folder / name).exists()}
    templates = [_TEMPLATE, *(f"{_TEMPLATES}/{file.name}" for file in sorted((folder / _TEMPLATES).glob("*.jinja")))]
    texts = {name: folders.read_file(folder, name) for name in templates if (folder / name).exists()}
    for name, value in files.items():
        if not isinstance(value, dict):
            raise ExportError(f"{folder / name} is no JSON object: it is damaged; copy it anew")
    if files.get(_CONFIG, {}).get("auto_map"):
        raise ExportError(f"{folder / _CONFIG}: auto_map names code of the folder's own, which is never run here")
    _require_possible(folder, files.get(_CONFIG, {}))
    return files | texts


def _require_possible(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ExportError where a setting of `tokenizer_config.json` is of a type that it cannot have."""
    texts = "word_delimiter_token", "replace_word_delimiter_char"
    bad = [name for name in texts if not isinstance(config.get(name), str | None)]
    bad += [f"{name}_token" for name in _SPECIAL if not isinstance(_content(config, name), str | None)]
    added = config.get("added_tokens_decoder") or {}
    if not isinstance(added, dict) or not all(
        number.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)
        for number, token in added.items()
    ):
        bad.append("added_tokens_decoder")
    if bad:
        raise ExportError(f"{folder / _CONFIG}: {bad[0]} is not possible: it is damaged; copy it anew")


def _content(config: Mapping[str, Any], name: str) -> Any:
    """What a special token, "bos" say, is called; the file has its name or a description."""
    token = config.get(f"{name}_token")
    return token.get("content") if isinstance(token, dict) else token


def _names(folder: Path, description: dict[str, Any]) -> dict[str, int]:
    try:
        return open_description(json.dumps(description, ensure_ascii=False)).get_vocab(with_added_tokens=True)
    except ValueError as error:
        raise ExportError(f"{folder}: {error}") from error


class _Ids:
    """Special ids, by what two files say of each."""

    def __init__(self, folder: Path, values: Mapping[str, Any], config: Mapping[str, Any], names: Mapping[str, int]):
        self._folder, self._values, self._config, self._names = folder, values, config, names

    def of(self, name: str) -> int | None:
        """The id of "bos", "eos", "pad", ...; None where neither file names it."""
        token = _content(self._config, name)
        said = self._values.get(f"{name}_token_id")
        said = said if isinstance(said, list) else [] if said is None else [said]
        if token is None:
            return said[0] if said else None
        if token not in self._names:
            raise ExportError(f"{self._folder / _CONFIG} names {name}_token {token!r}, which the tokenizer has not")
        number = self._names[token]
        if said and number not in said:
            raise ExportError(
                f"{self._folder}: {name}_token_id of config.json is {said}, and {_CONFIG} names {token!r}, which is "
                f"{number}. One of them is wrong, and the model would be too: find out which, and mend it there"
            )
        return number

    def first(self, *names: str) -> int | None:
        return next((number for name in names if (number := self.of(name)) is not None), None)


def _places(
    folder: Path,
    num_rows: int,
    names: Mapping[str, int],
    *,
    padding: int | None,
    end: int | None = None,
    mask: int | None = None,
    begin: int | None = None,
) -> Places:
    if len(set(names.values())) != len(names):
        raise ExportError(f"{folder}: two tokens of the tokenizer have one id: it is damaged; copy it anew")
    if padding in (end, mask, begin):  # nothing has padding for its meaning there: it is masked
        padding = None
    used = {padding, end, mask, begin}
    spare = tuple(sorted(set(range(num_rows)) - set(names.values()) - used))
    try:
        return Places(num_rows, padding, end, mask, begin, spare)
    except ValueError as error:
        raise ExportError(f"{folder}: {error}") from error


def _tokenizer(
    folder: Path, description: str, places: Places, files: Mapping[str, Any], values: Mapping[str, Any]
) -> HuggingFaceTokenizer:
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    special |= {name: value for name, value in values.items() if name.endswith("_token_id")}
    try:
        return HuggingFaceTokenizer(description, places, files, special)
    except ValueError as error:
        raise ExportError(f"{folder}: {error}") from error


def _vocabulary(folder: Path, files: Mapping[str, Any]) -> dict[str, int]:
    """What `vocab.json` and the files beside it call the ids."""
    names = dict(files[_VOCAB]) | files.get("added_tokens.json", {})
    added = files.get(_CONFIG, {}).get("added_tokens_decoder") or {}
    names |= {token["content"]: int(number) for number, token in added.items()}
    if not names or not all(name and type(number) is int and number >= 0 for name, number in names.items()):
        raise ExportError(f"{folder / _VOCAB} does not give each token an id: it is damaged; copy it anew")
    return names


def _special_names(names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
    tokens = {_content(config, name) for name in ("pad", "bos", "eos", "unk")}
    added = (config.get("added_tokens_decoder") or {}).values()
    tokens |= {token["content"] for token in added if token.get("special")}
    # transformers 5 counts the space between words among them; it is text
    return tokens.intersection(names) - {config.get("word_delimiter_token", "|")}


def _alphabet(names: Mapping[str, int], config: Mapping[str, Any], num_rows: int) -> str | None:
    """The characters of ids 1, 2, ..., if that is all there is."""
    spelled = {number: _spelled(name, config) for name, number in names.items() if number}
    alphabet = [spelled.get(number, "") for number in range(1, num_rows)]
    if len(spelled) != len(alphabet) or any(len(letter) != 1 for letter in alphabet):
        return None
    return "".join(alphabet) if len(set(alphabet)) == len(alphabet) else None


def _spelled(name: str, config: Mapping[str, Any]) -> str:
    delimiter = config.get("word_delimiter_token", "|")
    return (config.get("replace_word_delimiter_char") or " ") if name == delimiter else name


def _characters(names: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Any]:
    """A `Wav2Vec2CTCTokenizer` as a `tokenizer.json`: one character after the other, unknown ones left out."""
    delimiter = config.get("word_delimiter_token", "|")
    there, back = [], [{"type": "Fuse"}]
    if delimiter in names:
        there = [{"type": "Replace", "pattern": {"String": " "}, "content": delimiter}]
        back = [{"type": "Replace", "pattern": {"String": delimiter}, "content": " "}, *back]
    special = sorted(_special_names(names, config), key=names.__getitem__)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": names[name], "content": name, **flags, "special": True} for name in special],
        "normalizer": {"type": "Sequence", "normalizers": there},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {"type": "BPE", "unk_token": None, "vocab": dict(names), "merges": []},
    }
