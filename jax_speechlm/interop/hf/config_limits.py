"""Limits of the settings of a `config.json`, checked before any of them is used or anything is allocated."""

from pathlib import Path
from typing import Any

from jax_speechlm.interop.folders import ExportError

_COUNTS = {
    "hidden_size": 1 << 17, "num_hidden_layers": 4096, "num_attention_heads": 4096, "num_key_value_heads": 4096,
    "head_dim": 1 << 14, "intermediate_size": 1 << 20, "vocab_size": 1 << 23, "max_position_embeddings": 1 << 24,
    "type_vocab_size": 1 << 10, "feature_projection_input_dim": 1 << 14, "conv_depthwise_kernel_size": 1024,
    "left_max_position_embeddings": 1 << 16, "right_max_position_embeddings": 1 << 16, "local_attention": 1 << 24,
    "sliding_window": 1 << 24, "global_attn_every_n_layers": 4096, "max_window_layers": 4096,
    "xvector_output_dim": 1 << 16, "num_labels": 1 << 16, "num_mel_bins": 1 << 14, "conv_kernel_size": 1024,
    "subsampling_factor": 64, "subsampling_conv_channels": 1 << 14, "model_in_dim": 1 << 14, "sampling_rate": 1 << 20,
    "upsample_initial_channel": 1 << 14, "num_filters": 1 << 12, "num_residual_layers": 64, "dilation_growth_rate": 64,
    "compress": 1 << 12, "kernel_size": 1024, "last_kernel_size": 1024, "residual_kernel_size": 1024,
    "num_lstm_layers": 64, "codebook_size": (1 << 16) - 1, "codebook_dim": 1 << 16, "decoder_hidden_size": 1 << 16,
    "decoder_intermediate_size": 1 << 20, "decoder_num_layers": 4096, "adanorm_num_embeddings": 1 << 16,
    "decoder_attention_num_groups": 1 << 16, "d_model": 1 << 16, "encoder_layers": 4096, "decoder_layers": 4096,
    "encoder_attention_heads": 4096, "decoder_attention_heads": 4096, "encoder_ffn_dim": 1 << 20,
    "decoder_ffn_dim": 1 << 20, "max_source_positions": 1 << 20, "max_target_positions": 1 << 20, "dim": 1 << 17,
    "n_layers": 4096, "n_heads": 4096, "hidden_dim": 1 << 20, "n_positions": 1 << 24, "n_embd": 1 << 17,
    "n_layer": 4096, "n_head": 4096, "n_inner": 1 << 20,
    "num_conv_pos_embeddings": 1 << 12, "num_conv_pos_embedding_groups": 1 << 12, "conv_pos_kernel_size": 1 << 12,
    "num_codevectors_per_group": 1 << 16, "num_codevector_groups": 16, "num_negatives": 1 << 16,
    "codevector_dim": 1 << 16, "proj_codevector_dim": 1 << 16, "mask_time_length": 1 << 16,
    "num_buckets": 1 << 16, "max_bucket_distance": 1 << 24,
    "num_decoder_layers": 64, "default_num_lookahead_tokens": 1 << 16,
}  # fmt: skip
"""The most that each count is of any model; all but those of `_MAY_BE_NONE` and `_FROM_ZERO` are at least 1."""

_FROM_ZERO = (
    "left_max_position_embeddings",
    "right_max_position_embeddings",
    "max_window_layers",
    "default_num_lookahead_tokens",
)
_MAY_BE_NONE = ("num_key_value_heads", "head_dim", "sliding_window", "vocab_size", "num_labels", "n_inner")
_RATES = (
    "hidden_dropout",
    "attention_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "mask_time_prob",
)
_SIZES = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_SIZES += ("rope_theta", "global_rope_theta", "local_rope_theta")
_SWITCHES = (
    "tie_word_embeddings", "use_sliding_window", "normalize_before", "scale_embedding", "conv_bias",
    "do_stable_layer_norm", "feat_proj_layer_norm", "use_weighted_layer_sum",
)  # fmt: skip
_PER_LAYER = ("tdnn_dim", "tdnn_kernel", "tdnn_dilation", "conv_dim")  # of layers over time
_PER_STAGE = (
    "upsample_rates",
    "upsample_kernel_sizes",
    "resblock_kernel_sizes",
    "upsampling_ratios",
    "conv_kernel",
    "conv_stride",
)
_PARTS = ("audio_config", "text_config", "encoder_config")  # settings that are settings of a model themselves


def checked_settings(file: Path, values: Any) -> dict[str, Any]:
    """Returns the settings of a `config.json`; an `ExportError` names the file and a setting that is not possible."""
    if not isinstance(values, dict):
        raise ExportError(f"{file} is no JSON object: it is not the config.json of a model")
    _require_possible(file, values)
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise ExportError(f"{file} does not name one class in architectures: write it with the model's save_pretrained")
    for name in _PARTS:
        if isinstance(values.get(name), dict):
            _require_possible(file / name, values[name])  # as messages name it
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
    _refuse_foreign(file, values)
    for name, value in values.items():
        if name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            for part in (value, *(part for part in value.values() if isinstance(part, dict))):
                _require(file, "rope_theta", part.get("rope_theta", 1.0) or 0)  # None has no meaning in a part
            for kind in ("full_attention", "sliding_attention"):
                _require(file, kind, value.get(kind))
        _require(file, name, value, values.get("num_hidden_layers"))


def _require(file: Path, name: str, value: Any, num_layers: Any = None) -> None:
    if not _is_possible(name, value, num_layers):
        raise ExportError(f"{file}: {name}={str(value)[:80]} is not possible: it is damaged; copy the model anew")


def _is_possible(name: str, value: Any, num_layers: Any) -> bool:
    if name == "model_type":
        return isinstance(value, str)
    if name in _PER_LAYER:
        return _is_list(value, 1 << 16)
    if name in _PER_STAGE:
        return _is_list(value, 4096)
    if name == "resblock_dilation_sizes":
        is_list = isinstance(value, list | tuple) and 0 < len(value) <= 64
        return is_list and all(_is_list(each, 4096) for each in value)
    if name == "leaky_relu_slope":
        return type(value) in (int, float) and 0 <= value < 1
    if value is None:
        return name not in _COUNTS or name in _MAY_BE_NONE
    if name in _COUNTS:
        least = 0 if name in _FROM_ZERO else 1
        return type(value) is int and least <= value <= _COUNTS[name]
    if name in _RATES or name in _SIZES:
        is_number = type(value) in (int, float)
        return is_number and (0 <= value < 1 if name in _RATES else 0 < value < 1e12)
    if name in _SWITCHES:
        return value in (False, True)
    if name == "layer_types":
        return isinstance(value, list) and len(value) == num_layers and all(isinstance(kind, str) for kind in value)
    if name in ("rope_parameters", "rope_scaling", "full_attention", "sliding_attention"):
        return isinstance(value, dict)
    if name.endswith("_token_id"):
        ids = value if isinstance(value, list) else [value]
        return all(type(token) is int and 0 <= token < 1 << 23 for token in ids)
    return True


def _is_list(value: Any, most: int) -> bool:
    """Returns whether a value is a list of a few counts from 1 to `most`."""
    is_list = isinstance(value, list | tuple) and 0 < len(value) <= 64
    return is_list and all(type(size) is int and 0 < size <= most for size in value)
