"""Transformer parameters to and from Hugging Face's text models (see `mapping`, `text_families`).

Which family a model is of follows from its config (`text_settings.family_of`). Dropout rates are left out: Hugging
Face's act in other places than ours.
"""

from collections.abc import Mapping

import numpy as np

from jax_speechlm.interop.hf import mapping
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf.mapping import StateDict
from jax_speechlm.interop.hf.text_settings import (
    architecture_of,
    config_from_hugging_face,
    config_to_hugging_face,
    family_of,
    is_bare,
)
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn.functional import Params

__all__ = ["config_from_hugging_face", "config_to_hugging_face"]

_FUSED = {"Wqkv.weight": (3, 0), "Wi.weight": (2, 0), "c_attn.weight": (3, 1), "c_attn.bias": (3, 0)}
"""By the end of a name: the number of our arrays that are concatenated in it, and along which axis."""


def sources(state_dict: StateDict, config: TransformerConfig) -> Params:
    """Finds the places of our `Transformer`'s parameters in the state dict of one of Hugging Face's.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies, or no class has this form.
    """
    family = family_of(config)
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    arrays = families.normalized(arrays, family, is_bare(config))
    return sources_of_class(families.without_pooler(arrays, family), config, is_bare(config))


def sources_of_class(arrays: dict[str, np.ndarray], config: TransformerConfig, bare: bool) -> Params:
    """Finds the same parameters in normalized arrays of the bare model, or of a class with a head without those of the
    head's own.
    """
    family = family_of(config)
    rows, embedding, head = families.rows(config, family, bare)
    if config.tied and head in arrays:  # the two are one array, saved under either name or both
        table = arrays.pop(head)
        if not np.array_equal(arrays.setdefault(embedding, table), table):
            raise ValueError(
                f"{head!r} is not {embedding!r}, but config.json ties them: set tie_word_embeddings to false"
            )
    return mapping.sources(_split(arrays), rows, config, architecture_of(config))


def to_hugging_face(params: Params, config: TransformerConfig, *, bare: bool | None = None) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of the class of Hugging Face's that has this form; a ValueError if none has.

    Args:
      bare: whether its names are those of the bare model; None reads that from `config`.
    """
    family, bare = family_of(config), is_bare(config) if bare is None else bare
    rows, embedding, head = families.rows(config, family, bare)
    arrays = _join(mapping.write(params, rows, config))
    if config.head == "transform" and (twice := families.second_bias(family)):
        arrays[twice[1]] = arrays[twice[0]]
    if config.tied and not is_bare(config):
        arrays[head] = arrays[embedding]
    return arrays


def tied_names(config: TransformerConfig) -> set[str]:
    """Returns names of arrays that are other arrays of the tied model once more; a file holds them once."""
    return families.tied_names(family_of(config)) if config.tied else set()


def _split(arrays: StateDict) -> dict[str, np.ndarray]:
    """Splits fused arrays, into "name/part"."""
    parts: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        num, axis = _fused(name)
        fits = num > 1 and value.ndim > axis and value.shape[axis] % num == 0
        parts |= {f"{name}/{i}": part for i, part in enumerate(np.split(value, num, axis))} if fits else {name: value}
    return parts


def _join(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays: dict[str, list[np.ndarray]] = {}
    for name, value in parts.items():
        arrays.setdefault(name.partition("/")[0], []).append(value)
    return {
        name: np.concatenate(values, _fused(name)[1]) if len(values) > 1 else values[0]
        for name, values in arrays.items()
    }


def _fused(name: str) -> tuple[int, int]:
    return next((how for end, how in _FUSED.items() if name.endswith(end)), (1, 0))
