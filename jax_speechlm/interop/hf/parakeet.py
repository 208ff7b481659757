"""Conversion of FastConformer parameters and front-end settings to and from Hugging Face's Parakeet (see `mapping`).

Their batch norm is a scale and an offset per channel in evaluation, into which running statistics and the bias of the
convolution before it are folded. On export these have values that change no bit when they are folded again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.interop.hf import batch_norm, mapping
from jax_speechlm.interop.hf.class_settings import FEATURES, completed
from jax_speechlm.interop.hf.mapping import INTO_HEADS, SAME, Layout, Row, StateDict, linear, norm
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn.functional import Params

_PREFIX = "encoder."  # of an encoder with a CTC head


# Weights of convolutions there are [out, in, taps], in two dimensions [out, in, time, bins].
_POINTWISE_2D = Layout(lambda x, c: x.T[..., None, None], lambda x, c: x[..., 0, 0].T)
_THREE_BY_THREE = Layout(lambda x, c: x.T.reshape(c.channels, 1, 3, 3), lambda x, c: x.reshape(c.channels, 9).T)
_FRAME = Layout(  # a subsampled frame's values: ours [bins, channels], theirs in the order channels, bins
    lambda x, c: x.transpose(2, 1, 0).reshape(c.dim, -1),
    lambda x, c: x.reshape(c.dim, c.channels, c.num_bins).transpose(2, 1, 0),
)


def _separable(name: str, depthwise: str, pointwise: str) -> list[Row]:
    path = f"subsampling.convolutions.{name}"
    return [
        Row(f"{path}.depthwise", f"{depthwise}.weight", _THREE_BY_THREE),
        Row(f"{path}.bias", f"{depthwise}.bias", SAME),
        *linear(f"{path}.pointwise", pointwise, _POINTWISE_2D),
    ]


def encoder_rows(config: FastConformerConfig, first: str, separable: list[tuple[str, str]]) -> list[Row]:
    """Returns the rows that FastConformers have in common: all but the norm of the convolution modules.

    Args:
      first: name of the first subsampling convolution.
      separable: names of the depthwise and the pointwise part of the second and the third.
    """
    layer, attention, convolution = "layers.{}.", "layers.{}.self_attn", "layers.{}.conv"
    has_bias, ffn = config.bias, f"{layer}feed_forward"
    bias, gated_bias = (SAME, mapping.GATED_BIAS) if has_bias else (None, None)
    return [
        *linear("subsampling.convolutions.first", first, _THREE_BY_THREE),
        *_separable("second", *separable[0]),
        *(_separable("third", *separable[1]) if config.subsampling == 8 else []),
        *linear("subsampling.out", "subsampling.linear", _FRAME),
        *mapping.feed_forward(
            "layers.ffn1", f"{layer}norm_feed_forward1", f"{ffn}1.linear1", f"{ffn}1.linear2", has_bias
        ),
        *norm("layers.attention_norm", f"{layer}norm_self_att"),
        *mapping.attention(*(f"{attention}.{name}_proj" for name in "qkvo"), has_bias),
        Row("layers.attention.position.kernel", f"{attention}.relative_k_proj.weight", INTO_HEADS),
        Row("layers.attention.content_bias", f"{attention}.bias_u", SAME),
        Row("layers.attention.position_bias", f"{attention}.bias_v", SAME),
        *norm(f"layers.convolution.{'norm_in' if config.causal else 'norm'}", f"{layer}norm_conv"),
        *linear("layers.convolution.expand", f"{convolution}.pointwise_conv1", mapping.GATED, gated_bias),
        Row("layers.convolution.depthwise", f"{convolution}.depthwise_conv.weight", mapping.DEPTHWISE),
        *linear("layers.convolution.contract", f"{convolution}.pointwise_conv2", mapping.POINTWISE, bias),
        *mapping.feed_forward(
            "layers.ffn2", f"{layer}norm_feed_forward2", f"{ffn}2.linear1", f"{ffn}2.linear2", has_bias
        ),
        *norm("layers.norm", f"{layer}norm_out"),
    ]


def _encoder(config: FastConformerConfig) -> list[Row]:
    layers, norm_name = "subsampling.layers", "layers.{}.conv.norm"
    separable = [(f"{layers}.{first}", f"{layers}.{first + 1}") for first in (2, 5)]
    rows = [
        *encoder_rows(config, f"{layers}.0", separable),
        Row("layers.convolution.scale", f"{norm_name}.weight", SAME),
        Row("layers.convolution.offset", f"{norm_name}.bias", SAME),
    ]
    return mapping.below("encoder", rows)


_HEAD = linear("head", "ctc_head", mapping.POINTWISE)


def sources(state_dict: StateDict, config: FastConformerConfig) -> Params:
    """Finds the places of our parameters, `encoder` and perhaps `head`, in a `ParakeetEncoder` or `ParakeetForCTC`.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays = {name.removeprefix(_PREFIX): value for name, value in folded(state_dict).items()}
    head = _HEAD if "ctc_head.weight" in arrays else []
    return mapping.sources(arrays, _encoder(config) + head, config, "Parakeet")


def to_hugging_face(params: Params, config: FastConformerConfig) -> dict[str, np.ndarray]:
    """Returns the state dict of a `ParakeetForCTC` whose blank is 0 if there is a `head`, else of a `ParakeetEncoder`.

    float32, except batch norm's count of batches, int64. `sources` returns the same parameters from it.
    """
    arrays, zeros = mapping.write(params, _encoder(config), config), np.zeros(config.dim, np.float32)
    # Batch norms and biases that are folded into a scale and an offset without changing a bit of them.
    for conv in (f"layers.{layer}.conv" for layer in range(config.num_layers)):
        arrays |= batch_norm.fixed_statistics(f"{conv}.norm", config.dim)
        if config.bias:
            arrays[f"{conv}.depthwise_conv.bias"] = zeros
    if "head" not in params:
        return arrays
    return {_PREFIX + name: value for name, value in arrays.items()} | mapping.write(params, _HEAD, config)


def folded(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Folds each batch norm, and the bias of the convolution before it, into a scale and an offset, float32."""
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    for name in [name for name in arrays if name.endswith(".conv.norm.running_var")]:
        conv = name.removesuffix(".norm.running_var")
        batch_norm.fold(arrays, f"{conv}.norm", f"{conv}.depthwise_conv.bias")
    return arrays


# Settings of a ParakeetEncoderConfig with a name of our own, and settings that are constant in our form.
_RENAMED = {
    "num_mel_bins": "input_dim",
    "hidden_size": "dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "conv_kernel_size": "kernel_size",
    "subsampling_factor": "subsampling",
    "subsampling_conv_channels": "channels",
    "scale_input": "scale_input",
    "attention_bias": "bias",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
_CONVOLUTIONS = {"hidden_act": "silu", "subsampling_conv_kernel_size": 3, "subsampling_conv_stride": 2}
_FIXED = {"model_type": "parakeet_encoder"} | _CONVOLUTIONS


def config_from_hugging_face(values: Mapping[str, Any]) -> FastConformerConfig:
    """Converts the `config.json` of a `ParakeetForCTC` or `ParakeetEncoder`; raises ValueError for other forms."""
    values = completed(values)
    if "encoder_config" in values:
        mapping.require_fixed(values, {"model_type": "parakeet_ctc"})
        values = values["encoder_config"]
        if not isinstance(values, dict):
            raise ValueError("config.json: encoder_config must be the settings of an encoder")
    mapping.require_fixed(values, _FIXED)
    return FastConformerConfig(**settings_from_hugging_face(values))


def settings_from_hugging_face(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the settings that FastConformers have in common; raises ValueError for other forms."""
    mapping.require_fixed(values, _CONVOLUTIONS | {"convolution_bias": values.get("attention_bias")})
    renamed = {setting: values[name] for name, setting in _RENAMED.items()}
    return {"ffn_multiple": mapping.ffn_multiple(values)} | renamed


def config_to_hugging_face(config: FastConformerConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """Returns the `config.json` of a `ParakeetEncoder`; with `vocab_size`, of a `ParakeetForCTC` with blank 0."""
    if config.causal:
        raise ValueError("model.causal has no counterpart in Parakeet, whose convolutions look ahead")
    encoder = _FIXED | settings_to_hugging_face(config)
    if vocab_size is None:
        return encoder | {"architectures": ["ParakeetEncoder"]}
    head = {"architectures": ["ParakeetForCTC"], "model_type": "parakeet_ctc", "vocab_size": vocab_size}
    return head | {"pad_token_id": 0, "encoder_config": encoder}


def settings_to_hugging_face(config: FastConformerConfig) -> dict[str, Any]:
    """Returns the settings that FastConformers have in common."""
    renamed = {name: getattr(config, setting) for name, setting in _RENAMED.items()}
    return (
        _CONVOLUTIONS
        | renamed
        | {
            "convolution_bias": config.bias,
            "intermediate_size": config.ffn_dim,
            "activation_dropout": config.dropout,
            "dropout_positions": 0.0,
            "layerdrop": 0.0,
        }
    )


EXTRACTOR = "ParakeetFeatureExtractor"
_FEATURES = {
    "feature_extractor_type": EXTRACTOR,
    "sampling_rate": DEFAULT_SAMPLE_RATE,
    "hop_length": 160,
    "win_length": 400,
    "n_fft": 512,
    "preemphasis": 0.97,
    "padding_value": 0.0,
}


def features_from_hugging_face(values: Mapping[str, Any]) -> LogMel:
    """Converts a `ParakeetFeatureExtractor`'s `preprocessor_config.json`; raises ValueError for other features."""
    values = FEATURES[EXTRACTOR] | dict(values)
    mapping.require_fixed(values, _FEATURES)
    return LogMel(variant="nemo", num_mel_bins=values["feature_size"], stack=1)


def features_to_hugging_face(mel: LogMel) -> dict[str, Any]:
    """Returns the settings of the `ParakeetFeatureExtractor` that computes the same features.

    Raises:
      ValueError: it cannot compute them.
    """
    if mel != LogMel(variant="nemo", num_mel_bins=mel.num_mel_bins, stack=1):
        raise ValueError(
            f"ParakeetFeatureExtractor does not compute log-mel of variant {mel.variant}, stack {mel.stack}, normalize "
            f"{mel.normalize} at {mel.sample_rate} Hz: export a run that was trained with variant nemo, stack 1 and "
            "normalize"
        )
    return _FEATURES | {"feature_size": mel.num_mel_bins, "padding_side": "right", "return_attention_mask": True}
