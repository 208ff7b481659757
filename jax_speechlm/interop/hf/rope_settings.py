"""Scaled rotary positions: `models.rope` to and from the `rope_parameters` of transformers' classes."""

import math
from collections.abc import Mapping
from typing import Any

from jax_speechlm.models.rope import Dynamic, Linear, Llama3, Yarn

_KNOWN = "default", "linear", "dynamic", "llama3", "yarn"
_ORIGINAL = "original_max_position_embeddings"


def rope_type(rope: Mapping[str, Any]) -> Any:
    """Returns the kind of rotary positions, which earlier versions call "type"."""
    return rope.get("rope_type", rope.get("type", "default"))


def scaling_from_hugging_face(
    rope: Mapping[str, Any], values: Mapping[str, Any]
) -> Linear | Dynamic | Llama3 | Yarn | None:
    """Converts `rope_parameters` or, of earlier versions, `rope_scaling`; `values` is the whole `config.json`.

    Raises:
      ValueError: their kind has no counterpart here, or a setting is not possible.
    """
    kind = rope_type(rope)
    if kind not in _KNOWN:
        raise ValueError(f"config.json: rope_type={kind!r} has no counterpart here; {', '.join(_KNOWN)} have")
    if rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1)) not in (None, 1):
        raise ValueError("config.json: partial_rotary_factor has no counterpart here: all values of a head are rotated")
    if kind == "default":
        return None
    most = values["max_position_embeddings"]
    original, factor = values.get(_ORIGINAL) or rope.get(_ORIGINAL) or most, rope.get("factor")
    if kind == "linear":
        return Linear(factor=factor)
    if kind == "dynamic":
        return Dynamic(factor=factor, original=most)
    if kind == "llama3":
        low, high = rope.get("low_freq_factor"), rope.get("high_freq_factor")
        return Llama3(factor=factor, low=low, high=high, original=original)
    if factor is None and isinstance(original, int):
        factor = most / original
    settings = {"fast": rope.get("beta_fast") or 32, "slow": rope.get("beta_slow") or 1}
    settings |= {"attention_factor": 1.0, "truncate": rope.get("truncate", True)}
    yarn = Yarn(factor=factor, original=original, **settings)
    return yarn.replace(attention_factor=_attention_factor(rope, yarn.factor))


def scaling_to_hugging_face(scaling: Linear | Dynamic | Llama3 | Yarn | None, theta: float) -> dict[str, Any]:
    """Returns the settings of a `config.json` for rotary positions."""
    rope: dict[str, Any] = {"rope_type": "default" if scaling is None else scaling.kind, "rope_theta": theta}
    if scaling is None:
        return {"rope_parameters": rope}
    rope |= {"factor": scaling.factor}
    if isinstance(scaling, Dynamic):  # whose original length is the model's
        return {"rope_parameters": rope, "max_position_embeddings": scaling.original}
    if isinstance(scaling, Llama3):
        rope |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high, _ORIGINAL: scaling.original}
    if isinstance(scaling, Yarn):
        rope |= {"beta_fast": scaling.fast, "beta_slow": scaling.slow, _ORIGINAL: scaling.original}
        rope |= {"attention_factor": scaling.attention_factor, "truncate": scaling.truncate}
    return {"rope_parameters": rope}


def _attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    """Returns what YaRN multiplies cosines and sines with: given, or by the logarithm of the factor."""
    if (given := rope.get("attention_factor")) is not None:
        return given

    def magnitude(scale: Any) -> float:
        if type(scale) not in (int, float):
            raise ValueError(f"config.json: mscale={str(scale)[:40]!r} is not possible: it is damaged; copy it anew")
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return magnitude(rope["mscale"]) / magnitude(rope["mscale_all_dim"])
    return magnitude(1)
