"""Limits of the settings of a `config.json`, checked before any of them is used or anything is allocated."""

import math
from pathlib import Path
from typing import Any

from jax_speechlm.interop.folders import ExportError

_COUNTS = {
    "hidden_size": 1 << 17,
    "num_hidden_layers": 4096,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 1 << 14,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 23,
    "max_position_embeddings": 1 << 24,
    "type_vocab_size": 1 << 10,
    "feature_projection_input_dim": 1 << 14,
    "conv_depthwise_kernel_size": 1024,
    "left_max_position_embeddings": 1 << 16,
    "right_max_position_embeddings": 1 << 16,
    "local_attention": 1 << 24,
    "sliding_window": 1 << 24,
    "global_attn_every_n_layers": 4096,
    "max_window_layers": 4096,
    "xvector_output_dim": 1 << 16,
    "num_labels": 1 << 16,
    "num_mel_bins": 1 << 14,
    "conv_kernel_size": 1024,
    "subsampling_factor": 64,
    "subsampling_conv_channels": 1 << 14,
}
"""The most that each count is of any model; all but those of `_MAY_BE_NONE` and `_FROM_ZERO` are at least 1."""

_FROM_ZERO = ("left_max_position_embeddings", "right_max_position_embeddings", "max_window_layers")
_MAY_BE_NONE = ("num_key_value_heads", "head_dim", "sliding_window", "vocab_size", "num_labels")
_RATES = ("hidden_dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout")
_SIZES = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "rope_theta", "global_rope_theta", "local_rope_theta")
_SWITCHES = ("tie_word_embeddings", "use_sliding_window")
_PER_LAYER = ("tdnn_dim", "tdnn_kernel", "tdnn_dilation")  # of an x-vector's layers over time
_PARTS = ("audio_config", "text_config", "encoder_config")  # settings that are settings of a model themselves


def checked_settings(file: Path, values: Any) -> dict[str, Any]:
    """Checks the settings of a `config.json`.

    Returns:
      The same settings.

    Raises:
      ExportError: one is not possible; the message names the file and the setting.
    """
    if not isinstance(values, dict):
        raise ExportError(f"{file} is no JSON object: it is not the config.json of a model")
    _refuse_foreign(file, values)
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise ExportError(f"{file} does not name one class in architectures: write it with the model's save_pretrained")
    _require_possible(file, values)
    for name in _PARTS:
        if isinstance(values.get(name), dict):
            part = file / name  # as messages name it
            _refuse_foreign(part, values[name])
            _require_possible(part, values[name])
    return values


def _refuse_foreign(file: Path, values: dict[str, Any]) -> None:
    """Raises ExportError for code that comes with a model, and for types of arrays that are not read."""
    if values.get("auto_map"):
        raise ExportError(
            f"{file}: auto_map names code that comes with the model. Such code is never run here, and without it the "
            "model is another; only models of transformers' own classes are read"
        )
    if values.get("quantization_config"):
        raise ExportError(f"{file}: quantization_config: quantised models are not read; save the one it was made from")
    for name in ("attn_implementation", "_attn_implementation"):
        if values.get(name) not in (None, "eager", "sdpa", "flash_attention_2"):
            raise ExportError(f"{file}: {name} names {str(values[name])[:80]!r}, code from elsewhere: remove it")


def _require_possible(file: Path, values: dict[str, Any]) -> None:
    model_type = values.get("model_type", "")
    _require(file, "model_type", model_type, isinstance(model_type, str))
    for name, most in _COUNTS.items():
        least = 0 if name in _FROM_ZERO else 1
        if name in values and not (values[name] is None and name in _MAY_BE_NONE):
            _require(file, name, values[name], type(values[name]) is int and least <= values[name] <= most)
    for name in (*_RATES, *_SIZES):
        if (value := values.get(name)) is not None:
            is_number = type(value) in (int, float) and math.isfinite(value)
            _require(file, name, value, is_number and (0 <= value < 1 if name in _RATES else 0 < value < 1e12))
    for name in _SWITCHES:
        _require(file, name, values.get(name), values.get(name) in (None, False, True))
    layers = values.get("num_hidden_layers")
    if (types := values.get("layer_types")) is not None:
        of_layers = isinstance(types, list) and len(types) == layers and all(isinstance(name, str) for name in types)
        _require(file, "layer_types", types, of_layers)
    for name in _PER_LAYER:
        if name in values:
            sizes = values[name]
            is_list = isinstance(sizes, list | tuple) and 0 < len(sizes) <= 64
            _require(file, name, sizes, is_list and all(type(size) is int and 0 < size <= 1 << 16 for size in sizes))
    for setting in ("rope_parameters", "rope_scaling"):
        if (rope := values.get(setting)) is None:
            continue
        _require(file, setting, rope, isinstance(rope, dict))
        for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
            theta = part.get("rope_theta", 1.0)
            _require(file, "rope_theta", theta, type(theta) in (int, float) and 0 < theta < 1e12)
        for name in ("full_attention", "sliding_attention"):
            _require(file, name, rope.get(name), isinstance(rope.get(name), dict | None))
    for name, value in values.items():
        if name.endswith("_token_id"):
            parts = value if isinstance(value, list) else [] if value is None else [value]
            _require(file, name, value, all(type(part) is int and 0 <= part < 1 << 23 for part in parts))


def _require(file: Path, name: str, value: Any, is_possible: bool) -> None:
    if not is_possible:
        raise ExportError(f"{file}: {name}={str(value)[:80]} is not possible: it is damaged; copy the model anew")
