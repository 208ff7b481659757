"""Heads on text encoders, to and from Hugging Face's classes: classes of texts and of tokens, ends of answers.

All begin with an encoder's hidden states. What follows differs by family, and is data here: BERT's classifier has the
bare model's pooler, RoBERTa and DistilBERT a linear map of their own, ModernBERT its masked LM's prediction head.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jax_speechlm.interop.hf import mapping, transformer
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf.mapping import Row, StateDict
from jax_speechlm.interop.hf.text_settings import family_of, is_bare
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.heads.classification import Classification


class _Names(NamedTuple):
    """Names of the arrays of a family's heads, and the activation of the linear map before the classes of texts."""

    text: str = "classifier"
    pooler: str | None = None
    activation: str | None = None
    token: str = "classifier"
    span: str = "qa_outputs"


_HEADS = {
    "bert": _Names(pooler="bert.pooler.dense", activation="tanh"),
    "roberta": _Names(text="classifier.out_proj", pooler="classifier.dense", activation="tanh"),
    "distilbert": _Names(pooler="pre_classifier", activation="relu"),
    "modernbert": _Names(span="classifier"),
}
_VOCABULARY_MAP = "decoder.weight", "decoder.bias"


def bare_sources(state_dict: StateDict, config: TransformerConfig) -> Params:
    """Finds the parameters of a bare encoder: `transformer`, and `pooler` where the file has one. Raises ValueError."""
    family = family_of(config)
    arrays = families.normalized(state_dict, family, is_bare=True)
    pooler = {name: arrays.pop(name) for row in families.POOLER if (name := row.name) in arrays}
    found = {"transformer": transformer.sources_of_class(arrays, config, bare=True)}
    return found | (mapping.sources(pooler, families.POOLER, config, "pooler") if pooler else {})


def bare_arrays(params: Params, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Returns the state dict of a bare encoder."""
    arrays = transformer.to_hugging_face(params["transformer"], config)
    return arrays | (mapping.write(params, families.POOLER, config) if "pooler" in params else {})


def head_sources(state_dict: StateDict, config: TransformerConfig, architecture: str) -> Params:
    """Finds the parameters of a class with a head: `transformer`, `head`, and `pooler` where it has one."""
    family, rows = family_of(config), _rows(config, architecture)
    arrays = families.normalized(state_dict, family, is_bare=False)
    head = {row.name: arrays.pop(row.name) for row in rows if row.name in arrays}
    arrays = families.without_pooler(arrays, family)
    if not is_bare(config):  # ModernBERT's prediction head without its vocabulary map, whose place zeros take
        for name in _VOCABULARY_MAP:
            if name in arrays:
                raise ValueError(f"the state dict holds {name!r}, which a model of classes does not have")
        _, embedding, _ = families.rows(config, family, is_bare=False)
        table = np.asarray(arrays.get(embedding, np.zeros(())))
        if table.ndim != 2 or table.shape != (len(table), config.dim):
            raise ValueError(f"{embedding!r} is missing, or has another shape than [ids, {config.dim}]")
        arrays["decoder.bias"] = np.zeros(len(table), table.dtype)
        if not config.tied:
            arrays["decoder.weight"] = np.zeros_like(table)
    encoder = transformer.sources_of_class(arrays, config, bare=False)
    return {"transformer": encoder} | mapping.sources(head, rows, config, architecture)


def head_arrays(params: Params, config: TransformerConfig, architecture: str) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a class with a head, which has no vocabulary map."""
    arrays = transformer.to_hugging_face(params["transformer"], config, bare=False)
    if not is_bare(config):
        arrays = {name: value for name, value in arrays.items() if name not in _VOCABULARY_MAP}
    return arrays | mapping.write(params, _rows(config, architecture), config)


def without_vocabulary_map(params: Params) -> Params:
    """Returns a classifier's transformer as it is after an import: what the classes do not have is zeros."""
    if "prediction" not in params:
        return params
    bias = np.zeros_like(params["prediction"]["bias"])
    untied = {"untied": np.zeros_like(params["untied"])} if "untied" in params else {}
    return params | {"prediction": params["prediction"] | {"bias": bias}} | untied


def classification_of(values: Mapping[str, Any], config: TransformerConfig, classes: tuple[str, ...]) -> Classification:
    """Returns the objective of a class for sequence classification, given its completed `config.json`."""
    names = _HEADS[family_of(config)]
    if names.pooler is None:
        return Classification(classes=classes, pooling=values["classifier_pooling"])
    return Classification(classes=classes, pooling="cls", pooler=names.activation)


def classifier_settings(config: TransformerConfig, objective: Classification) -> dict[str, Any]:
    """Returns the settings in which the `config.json` of a class for sequence classification differs."""
    architecture = class_of(families.CLASSIFIERS, config)
    names = _HEADS[family_of(config)]
    way, wanted = (objective.pooling, objective.pooler), ("cls", names.activation)
    if names.pooler is not None and way != wanted:
        raise ValueError(
            f"{architecture} has objective.pooling={wanted[0]} and objective.pooler={wanted[1]} only; this model has "
            f"{way[0]} and {way[1]}: train with the former to export it"
        )
    if names.pooler is None and objective.pooler is not None:
        raise ValueError(f"{architecture} has no objective.pooler; this model has {objective.pooler}")
    return {"architectures": [architecture]} | ({"classifier_pooling": way[0]} if names.pooler is None else {})


def class_of(classes: Mapping[str, str], config: TransformerConfig) -> str:
    """Returns the class of a transformer with a head; a ValueError where what follows it is not as in any class."""
    family = family_of(config)
    if family not in _HEADS or is_bare(config) == (family == "modernbert"):
        raise ValueError(
            f"no class classifies by what follows this transformer, which has the form of "
            f"{families.LANGUAGE_MODELS[family]}. Export the language model that it was started from"
        )
    return classes[family]


def _rows(config: TransformerConfig, architecture: str) -> list[Row]:
    names = _HEADS[family_of(config)]
    if architecture in families.CLASSIFIERS.values():
        pooler = [] if names.pooler is None else mapping.linear("pooler", names.pooler)
        return [*pooler, *mapping.linear("head", names.text)]
    return mapping.linear("head", names.token if architecture in families.TAGGERS.values() else names.span)
