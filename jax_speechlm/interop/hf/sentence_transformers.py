"""Folders of sentence-transformers: the modules that follow a text encoder, which say how a text becomes a vector."""

from pathlib import Path
from typing import Any, get_args

from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.objectives.heads.pooling import Pooling
from jax_speechlm.objectives.text_encoder import TextEncoding

MODULES, _POOLING, _LENGTH = "modules.json", "1_Pooling", "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_PACKAGE = "sentence_transformers.models."  # earlier names of its modules, which later versions know too
_OF_OLD = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Settings of earlier versions, a switch for each way, and the value of `pooling_mode` that took their place."""


def read_modules(folder: Path) -> tuple[TextEncoding, int | None]:
    """Reads how a folder's encoder makes vectors of texts.

    Returns:
      The settings, those of the mean without modules, and the most tokens of a text, if the folder says so.

    Raises:
      ExportError: the modules compute something that has no counterpart here.
    """
    if not (folder / MODULES).exists():
        return TextEncoding(), None
    modules = folders.read_json(folder, MODULES)
    if not isinstance(modules, list) or not all(
        isinstance(each, dict) and isinstance(each.get("type"), str) and isinstance(each.get("path"), str)
        for each in modules
    ):
        raise ExportError(f"{folder / MODULES} is no list of modules with type and path: it is damaged; copy it anew")
    names = [each["type"].rpartition(".")[2] for each in modules]
    if names[1:] not in (["Pooling"], ["Pooling", "Normalize"]) or names[0] != "Transformer" or modules[0]["path"]:
        raise ExportError(
            f"{folder / MODULES} has the modules {', '.join(names)}: a Transformer in the folder itself, Pooling and "
            "perhaps Normalize have counterparts here"
        )
    _refuse_prompts(folder)
    pooling = _read_pooling(folder, modules[1]["path"])
    return TextEncoding(pooling=pooling, normalize=len(names) > 2), _read_length(folder)


def module_files(objective: TextEncoding, dim: int, max_tokens: int) -> dict[str, Any]:
    """Returns the files by which sentence-transformers computes what `embed` does, by name."""
    names = ["Transformer", "Pooling", *(["Normalize"] if objective.normalize else [])]
    paths = ["", _POOLING, "2_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": _PACKAGE + name}
        for index, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    pooling = {name: way == objective.pooling for name, way in list(_OF_OLD.items())[:4]}
    return {
        MODULES: modules,
        f"{_POOLING}/config.json": {"word_embedding_dimension": dim} | pooling,
        _LENGTH: {"max_seq_length": max_tokens, "do_lower_case": False},
    }


def _read_pooling(folder: Path, path: str) -> Pooling:
    file = f"{path}/config.json" if path else "config.json"
    values = folders.read_json(folder, file)
    if not isinstance(values, dict):
        raise ExportError(f"{folder / file} is no JSON object: it is damaged; copy it anew")
    ways = values.get("pooling_mode") or [way for name, way in _OF_OLD.items() if values.get(name)]
    ways = ways if isinstance(ways, list) else [ways]
    if len(ways) != 1 or ways[0] not in get_args(Pooling):
        raise ExportError(
            f"{folder / file}: pooling by {', '.join(map(str, ways)) or 'nothing'} has no counterpart here; "
            f"{' and '.join(get_args(Pooling))} have"
        )
    return ways[0]


def _read_length(folder: Path) -> int | None:
    if not (folder / _LENGTH).exists():
        return None
    values = folders.read_json(folder, _LENGTH)
    length = values.get("max_seq_length") if isinstance(values, dict) else 0
    if length is not None and (type(length) is not int or length < 3):
        raise ExportError(f"{folder / _LENGTH}: max_seq_length={str(length)[:80]} is not possible: copy it anew")
    if isinstance(values, dict) and values.get("do_lower_case"):
        raise ExportError(
            f"{folder / _LENGTH}: do_lower_case=true has no counterpart here: case is the tokenizer's to change"
        )
    return length


def _refuse_prompts(folder: Path) -> None:
    values = folders.read_json(folder, _PROMPTS) if (folder / _PROMPTS).exists() else {}
    if isinstance(values, dict) and values.get("default_prompt_name") is not None:
        raise ExportError(
            f"{folder / _PROMPTS}: default_prompt_name={str(values['default_prompt_name'])[:80]!r} puts a text before "
            "each text, which has no counterpart here: set it to null, and put the prompt before the texts yourself"
        )
