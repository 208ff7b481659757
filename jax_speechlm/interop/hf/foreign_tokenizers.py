"""Tokenizers of Hugging Face's folders, with a map of their ids to ours that agrees with every file of the folder.

An id that is off by one spoils a model silently. So the special ids of `config.json` and of the tokenizer's own files
must agree, and every id has to be a row of the table.
"""

import dataclasses
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.tokenizers.base import CharTokenizer
from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer, IdMap, ids_around, open_description
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError, errors_of
from jax_speechlm.interop.hf.text_families import SAME_FAMILY
from jax_speechlm.interop.hf.tokenizer_files import description, replacement
from jax_speechlm.objectives.asr.whisper_tokens import TIMESTAMPS, WhisperTokens

_CONFIG, _DESCRIPTION, _VOCAB = "tokenizer_config.json", "tokenizer.json", "vocab.json"
_SPECIAL = "bos", "eos", "pad", "unk", "mask", "cls", "sep"
_MAP, _GENERATION = "special_tokens_map.json", "generation_config.json"
_KEPT = (_CONFIG, _DESCRIPTION, _VOCAB, _MAP, "added_tokens.json", _GENERATION, "chat_template.json")
_TEMPLATE, _TEMPLATES = "chat_template.jinja", "additional_chat_templates"
"""Files that an export writes again as they are: of JSON, and chat templates, which are text."""

_WHISPER = (
    "startoftranscript", "notimestamps", "transcribe", "translate", "startofprev", "nospeech", "nocaptions",
)  # fmt: skip
_MULTILINGUAL = 51_865  # fewest ids of a multilingual Whisper


def read_text_tokenizer(
    folder: Path, values: Mapping[str, Any], num_rows: int, *, causal: bool, mask: int | None = None
) -> Tokenizer:
    """Reads the tokenizer of a language model, with the map between its ids and ours.

    The prefix of a text is added by the tokenizer's post-processor, whatever `bos_token_id` of `config.json`
    is; for a model that is not causal it is `cls` if the post-processor adds nothing. A text ends with `eos`;
    generation also ends at the other ids that `config.json` or `generation_config.json` lists as `eos`.

    Args:
      values, num_rows: `config.json`, and the number of rows of the table of embeddings.
      causal: whether the model is causal; otherwise texts are enclosed in `cls` and `sep`.
      mask: an id that occurs in no text, to use as the mask instead of the tokenizer's.

    Raises:
      ExportError: a file is missing, or two of them do not agree about an id.
    """
    files = _files(folder)
    if _DESCRIPTION not in files:
        raise ExportError(
            f"{folder} has no {_DESCRIPTION}, which tokenizers are read from: open the folder with transformers' "
            "AutoTokenizer and write it with save_pretrained, which makes one"
        )
    names, before = _names_and_prefix(folder, files[_DESCRIPTION])
    added = files[_DESCRIPTION].get("added_tokens") or []
    ordinary = set(names.values()) - {token["id"] for token in added}
    ids = _Ids(folder, values, files, names, ordinary)
    end = ids.of("eos") if causal else ids.first("sep", "eos")
    begin = ids.of("bos") if causal else ids.first("cls", "bos")
    if end is None:
        raise ExportError(
            f"{folder}: nothing says which id ends a text{ids.why_not('eos')}. Name eos_token in {_CONFIG}, and "
            "eos_token_id in config.json"
        )
    if len(before) > 1:
        raise ExportError(
            f"{folder / _DESCRIPTION}: its post_processor puts {len(before)} tokens before a text; one at most has a "
            "place here"
        )
    if before:
        begin = before[0]
    elif causal and not ids.is_named("bos"):  # one that config.json alone names is a class's default
        begin = None
    begin = None if begin == end else begin
    mask = ids.of("mask") if mask is None else mask
    roles = {"end": end, "mask": mask, "begin": begin, "has_prefix": bool(before) or not causal}
    roles["other_ends"] = ids.other_ends(num_rows, {end, mask}) if causal else ()
    places = _places(folder, num_rows, names, ids.of("pad"), **roles)
    return _tokenizer(folder, files[_DESCRIPTION], places, files, values)


def read_whisper_tokenizer(
    folder: Path, values: Mapping[str, Any], num_rows: int
) -> tuple[HuggingFaceTokenizer, WhisperTokens]:
    """Reads the tokenizer of a Whisper, and its special ids in our numbering; arguments and errors as of
    `read_text_tokenizer`.

    Ids without a name keep their places, as older files name no times. Without a `generation_config.json` nothing is
    suppressed, and the vocabulary's size says whether it is multilingual, as in OpenAI's code.
    """
    files = _files(folder)
    if _DESCRIPTION not in files:
        raise ExportError(
            f"{folder} has no {_DESCRIPTION}, which tokenizers are read from: open the folder with transformers' "
            "AutoTokenizer and write it with save_pretrained, which makes one"
        )
    names, _ = _names_and_prefix(folder, files[_DESCRIPTION])
    added = files[_DESCRIPTION].get("added_tokens") or []
    ids = _Ids(folder, values, files, names, set(names.values()) - {token["id"] for token in added})
    end = ids.of("eos")
    places = {token: names.get(f"<|{token}|>") for token in _WHISPER}
    places["nospeech"] = places["nospeech"] or places.pop("nocaptions")
    start, no_timestamps = places["startoftranscript"], places["notimestamps"]
    if None in (end, start, no_timestamps):
        raise ExportError(
            f"{folder / _DESCRIPTION} has not the tokens <|startoftranscript|> and <|notimestamps|>, or no eos: it is "
            "of another model than Whisper; copy it anew"
        )
    if values.get("decoder_start_token_id", start) != start:
        raise ExportError(
            f"{folder}: decoder_start_token_id of config.json is {values['decoder_start_token_id']}, and "
            f"<|startoftranscript|> of {_DESCRIPTION} is {start}: one of them is of another model"
        )
    if no_timestamps + TIMESTAMPS >= num_rows:
        raise ExportError(f"{folder}: the model's table of {num_rows} rows has no room for times after {no_timestamps}")
    if _GENERATION not in files:
        print(
            f"{folder} has no {_GENERATION}: no id is suppressed, and a vocabulary of {num_rows} "
            f"{'is multilingual' if num_rows >= _MULTILINGUAL else 'is English'}",
            file=sys.stderr,
        )
    generation = {"is_multilingual": num_rows >= _MULTILINGUAL} | dict(values) | files.get(_GENERATION, {})
    pad = ids.of("pad")
    with errors_of(folder):
        map_ = IdMap(num_rows, None if pad in (end, start) else pad, end=end, begin=start)
    tokenizer = _tokenizer(folder, files[_DESCRIPTION], map_, files, values)

    def local(name: str) -> int | None:
        return None if places[name] is None else int(map_.ours[places[name]])

    def listed(setting: str) -> tuple[int, ...]:
        listed = _listed(generation.get(setting))
        if not all(type(id_) is int and -1 <= id_ < num_rows for id_ in listed):
            raise ExportError(f"{folder / _GENERATION}: {setting} has ids that the model has not; copy it anew")
        return tuple(int(map_.ours[id_]) for id_ in listed if id_ >= 0)

    languages = ()
    if generation["is_multilingual"] is not False:
        last = places["translate"] or places["transcribe"] or start
        inside = {name: id_ for name, id_ in names.items() if start < id_ < last}
        languages = tuple((name.strip("<|>"), int(map_.ours[id_])) for name, id_ in inside.items())
    return tokenizer, WhisperTokens(
        start=local("startoftranscript"),
        no_timestamps=local("notimestamps"),
        languages=languages,
        transcribe=local("transcribe") if languages else None,
        translate=local("translate") if languages else None,
        previous=local("startofprev"),
        no_speech=local("nospeech"),
        suppressed=listed("suppress_tokens"),
        suppressed_first=listed("begin_suppress_tokens"),
    )


def read_ctc_tokenizer(folder: Path, values: Mapping[str, Any], num_rows: int, blank_name: str = "pad") -> Tokenizer:
    """Reads the tokenizer of a recognizer; arguments and errors as of `read_text_tokenizer`.

    Args:
      blank_name: name of the blank among the special tokens: "pad" under CTC.

    Returns:
      A `CharTokenizer` if its ids are characters with the blank at 0, else the tokenizer with a map of ids.
    """
    files = _files(folder)
    config = files.get(_CONFIG, {})
    if _DESCRIPTION in files:
        tokenizer_json = files[_DESCRIPTION]
        names, _ = _names_and_prefix(folder, files[_DESCRIPTION])
    elif _VOCAB in files:
        if config.get("do_lower_case"):
            raise ExportError(f"{folder / _CONFIG}: do_lower_case=true has no counterpart here, where case is kept")
        names = _vocabulary(folder, files)
        tokenizer_json = _characters(names, config)
    else:
        raise ExportError(f"{folder} has neither {_DESCRIPTION} nor {_VOCAB}: no tokenizer gives its ids a text")
    # No file need list the blank as added, but no letter is one, as a class's default would have it.
    ids = _Ids(folder, values, files, names, {id_ for name, id_ in names.items() if len(name) == 1})
    blank = ids.of(blank_name)
    if blank is None:
        raise ExportError(
            f"{folder / 'config.json'} has no {blank_name}_token_id, which is the blank{ids.why_not(blank_name)}: name "
            f"it there, and {blank_name}_token in {_CONFIG}"
        )
    if _DESCRIPTION not in files and blank == 0 and (alphabet := _alphabet(names, config, num_rows)):
        return CharTokenizer(alphabet)
    places = _places(folder, num_rows, names, blank)
    return _tokenizer(folder, tokenizer_json, places, files, values)


def _files(folder: Path) -> dict[str, Any]:
    files = {name: folders.read_json(folder, name) for name in _KEPT if (folder / name).exists()}
    templates = [_TEMPLATE, *(f"{_TEMPLATES}/{file.name}" for file in sorted((folder / _TEMPLATES).glob("*.jinja")))]
    texts = {name: folders.read_file(folder, name) for name in templates if (folder / name).exists()}
    for name, value in files.items():
        if not isinstance(value, dict):
            raise ExportError(f"{folder / name} is no JSON object: it is damaged; copy it anew")
    if files.get(_CONFIG, {}).get("auto_map"):
        raise ExportError(f"{folder / _CONFIG}: auto_map names code of the folder's own, which is never run here")
    _require_possible(folder / _CONFIG, files.get(_CONFIG, {}))
    _require_possible(folder / _MAP, files.get(_MAP, {}))
    if not all(type(id_) is int for id_ in _listed(files.get(_GENERATION, {}).get("eos_token_id"))):
        raise ExportError(f"{folder / _GENERATION}: eos_token_id is not possible: it is damaged; copy it anew")
    return files | texts


def _listed(value: Any) -> list[Any]:
    """Returns an id, several, or None as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _require_possible(file: Path, config: Mapping[str, Any]) -> None:
    """Raises ExportError where a setting of `tokenizer_config.json` has a type that it cannot have."""
    texts = "word_delimiter_token", "replace_word_delimiter_char"
    bad = [name for name in texts if not isinstance(config.get(name), str | None)]
    bad += [f"{name}_token" for name in _SPECIAL if not isinstance(_content(config, name), str | None)]
    added = config.get("added_tokens_decoder") or {}
    if not isinstance(added, dict) or not all(
        id_.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)
        for id_, token in added.items()
    ):
        bad.append("added_tokens_decoder")
    if bad:
        raise ExportError(f"{file}: {bad[0]} is not possible: it is damaged; copy it anew")


def _content(config: Mapping[str, Any], name: str) -> Any:
    """Returns the text of a special token such as "bos"; the file has the text or a description."""
    token = config.get(f"{name}_token")
    return token.get("content") if isinstance(token, dict) else token


def _names_and_prefix(folder: Path, tokenizer_json: dict[str, Any]) -> tuple[dict[str, int], list[int]]:
    """Returns the ids by token of a `tokenizer.json`, and the ids that it puts before a text."""
    with errors_of(folder):
        tokenizer = open_description(json.dumps(tokenizer_json, ensure_ascii=False))
        return tokenizer.get_vocab(with_added_tokens=True), ids_around(tokenizer)[0]


@dataclasses.dataclass(frozen=True)
class _Ids:
    """Special ids from the files of the folder: `config.json`, and `files` by name.

    If no file of the tokenizer names a token, the id of `config.json` is used unless it is an `ordinary` token's, which
    is a part of texts: a class's default is written there too, and is an arbitrary id in another vocabulary. `names`
    are the tokenizer's ids by token.
    """

    folder: Path
    values: Mapping[str, Any]
    files: Mapping[str, Any]
    names: Mapping[str, int]
    ordinary: Collection[int]

    def _token(self, name: str) -> str | None:
        config = self.files.get(_CONFIG, {})
        return _content(config if f"{name}_token" in config else self.files.get(_MAP, {}), name)

    def _in_config(self, name: str) -> list[int]:
        return _listed(self.values.get(f"{name}_token_id"))

    def is_named(self, name: str) -> bool:
        """Returns whether a file of the tokenizer names the token."""
        return self._token(name) is not None

    def of(self, name: str) -> int | None:
        """Returns the id of "bos", "eos", "pad", ...; None if no file names it."""
        token, in_config = self._token(name), self._in_config(name)
        if token is None:
            return next((id_ for id_ in in_config if id_ not in self.ordinary), None)
        if token not in self.names:
            raise ExportError(f"{self.folder / _CONFIG} names {name}_token {token!r}, which the tokenizer has not")
        if in_config and self.names[token] not in in_config:
            raise ExportError(
                f"{self.folder}: {name}_token_id of config.json is {in_config}, and {_CONFIG} names {token!r}, which "
                f"is {self.names[token]}. One of them is wrong, and the model would be too: find out which, and mend "
                "it there"
            )
        return self.names[token]

    def why_not(self, name: str) -> str:
        """Returns the reason why `of` gave None, to append to a message."""
        in_config = self._in_config(name)
        tokens = ", ".join(repr(token) for token, id_ in self.names.items() if id_ in in_config)
        return f" ({name}_token_id of config.json is {in_config}: {tokens}, ordinary tokens)" if tokens else ""

    def other_ends(self, num_rows: int, known: Collection[int | None]) -> tuple[int, ...]:
        """Returns the ids at which generation ends, except the known ones.

        An ordinary token is one only if `generation_config.json` lists it and does not just repeat `config.json`.
        """
        stops, in_config = _listed(self.files.get(_GENERATION, {}).get("eos_token_id")), self._in_config("eos")
        ends = [id_ for id_ in in_config if id_ not in self.ordinary]
        ends += [id_ for id_ in stops if id_ not in self.ordinary or id_ not in in_config]
        return tuple(sorted({id_ for id_ in ends if 0 <= id_ < num_rows} - set(known)))

    def first(self, *names: str) -> int | None:
        return next((id_ for name in names if (id_ := self.of(name)) is not None), None)


def _places(folder: Path, num_rows: int, names: Mapping[str, int], padding: int | None, **roles: Any) -> IdMap:
    """Returns the map of ids, without padding where that has another of the roles: nothing has its meaning there."""
    if len(set(names.values())) != len(names):
        raise ExportError(f"{folder}: two tokens of the tokenizer have one id: it is damaged; copy it anew")
    used = {*(roles.get(name) for name in ("end", "mask", "begin")), *roles.get("other_ends", ())}
    padding = None if padding in used else padding
    spare = tuple(sorted(set(range(num_rows)) - set(names.values()) - used - {padding}))
    with errors_of(folder):
        return IdMap(num_rows, padding, spare=spare, **roles)


def _tokenizer(
    folder: Path, tokenizer_json: dict[str, Any], places: IdMap, files: Mapping[str, Any], values: Mapping[str, Any]
) -> HuggingFaceTokenizer:
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    special |= {name: value for name, value in values.items() if name.endswith("_token_id")}
    if values.get("model_type") in SAME_FAMILY:  # which the model's form does not distinguish from another
        special["model_type"] = values["model_type"]
    with errors_of(folder):
        return HuggingFaceTokenizer(json.dumps(tokenizer_json, ensure_ascii=False), places, files, special)


def _vocabulary(folder: Path, files: Mapping[str, Any]) -> dict[str, int]:
    """Returns the ids by token, from `vocab.json` and the files that add tokens to it."""
    names = dict(files[_VOCAB]) | files.get("added_tokens.json", {})
    added = files.get(_CONFIG, {}).get("added_tokens_decoder") or {}
    names |= {token["content"]: int(id_) for id_, token in added.items()}
    if not names or not all(name and type(id_) is int and id_ >= 0 for name, id_ in names.items()):
        raise ExportError(f"{folder / _VOCAB} does not give each token an id: it is damaged; copy it anew")
    return names


def _special_names(names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
    tokens = {_content(config, name) for name in ("pad", "bos", "eos", "unk")}
    added = (config.get("added_tokens_decoder") or {}).values()
    tokens |= {token["content"] for token in added if token.get("special")}
    # transformers 5 counts the space between words among them; it is text
    return tokens.intersection(names) - {config.get("word_delimiter_token", "|")}


def _alphabet(names: Mapping[str, int], config: Mapping[str, Any], num_rows: int) -> str | None:
    """Returns the characters of ids 1, 2, ...; None if there are other tokens."""
    delimiter, space = config.get("word_delimiter_token", "|"), config.get("replace_word_delimiter_char") or " "
    letters = {id_: space if name == delimiter else name for name, id_ in names.items() if id_}
    if letters.keys() != set(range(1, num_rows)) or any(len(letter) != 1 for letter in letters.values()):
        return None
    return "".join(letters[id_] for id_ in sorted(letters)) if len(set(letters.values())) == len(letters) else None


def _characters(names: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a `Wav2Vec2CTCTokenizer` as a `tokenizer.json`: one id per character, unknown ones left out."""
    delimiter = config.get("word_delimiter_token", "|")
    normalizers, decoders = [], [{"type": "Fuse"}]
    if delimiter in names:
        normalizers = [replacement(" ", delimiter)]
        decoders = [replacement(delimiter, " "), *decoders]
    added = {name: (names[name], True) for name in _special_names(names, config)}
    return description(
        added, normalizers, decoders, {"type": "BPE", "unk_token": None, "vocab": dict(names), "merges": []}
    )
