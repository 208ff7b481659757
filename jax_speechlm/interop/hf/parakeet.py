"""Conversion of FastConformer parameters and front-end settings to and from Hugging Face's Parakeet (see `mapping`).

Their batch norm is a scale and an offset per channel in evaluation, into which running statistics and the bias of the
convolution before it are folded. On export these have values that change no bit when they are folded again.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.interop.hf.class_settings import FEATURES, completed
from jax_speechlm.interop.hf.mapping import (
    DEPTHWISE,
    GATED,
    HEADS_BIAS,
    INTO_HEADS,
    OUT_OF_HEADS,
    POINTWISE,
    SAME,
    Layout,
    Row,
    StateDict,
    TensorSource,
    ffn_multiple,
    linear,
    norm,
    require_fixed,
    write,
)
from jax_speechlm.interop.hf.mapping import sources as sources_of
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn.functional import Params

_PREFIX = "encoder."  # of an encoder with a CTC head
_EPSILON = 1e-5  # that batch norm adds to a variance


def _values(config: FastConformerConfig) -> tuple[int, int]:
    """Returns the numbers of bins and of channels of a subsampled frame; theirs are in the order channels, bins."""
    return config.input_dim // config.subsampling, config.channels


# Weights of convolutions there are [out, in, taps], in two dimensions [out, in, time, bins].
_POINTWISE_2D = Layout(lambda x, c: x.T[..., None, None], lambda x, c: x[..., 0, 0].T)
_THREE_BY_THREE = Layout(lambda x, c: x.T.reshape(c.channels, 1, 3, 3), lambda x, c: x.reshape(c.channels, 9).T)
_GATED_BIAS = Layout(lambda x, c: x.reshape(2 * c.dim), lambda x, c: x.reshape(2, c.dim))
_FRAME = Layout(
    lambda x, c: x.transpose(2, 1, 0).reshape(c.dim, -1),
    lambda x, c: x.reshape(c.dim, *_values(c)[::-1]).transpose(2, 1, 0),
)


def _separable(name: str, first: int) -> list[Row]:
    ours, theirs = f"subsampling.convolutions.{name}", "subsampling.layers"
    return [
        Row(f"{ours}.depthwise", f"{theirs}.{first}.weight", _THREE_BY_THREE),
        Row(f"{ours}.bias", f"{theirs}.{first}.bias", SAME),
        *linear(f"{ours}.pointwise", f"{theirs}.{first + 1}", _POINTWISE_2D),
    ]


def _feed_forward(ours: str, theirs: str, bias: Layout | None) -> list[Row]:
    return [
        *norm(f"layers.{ours}.norm", f"layers.{{}}.norm_{theirs}"),
        *linear(f"layers.{ours}.expand", f"layers.{{}}.{theirs}.linear1", bias=bias),
        *linear(f"layers.{ours}.contract", f"layers.{{}}.{theirs}.linear2", bias=bias),
    ]


def _encoder(config: FastConformerConfig) -> list[Row]:
    attention, convolution = "layers.{}.self_attn", "layers.{}.conv"
    bias, heads_bias, gated_bias = (SAME, HEADS_BIAS, _GATED_BIAS) if config.bias else (None, None, None)
    return [
        *linear("subsampling.convolutions.first", "subsampling.layers.0", _THREE_BY_THREE),
        *_separable("second", 2),
        *(_separable("third", 5) if config.subsampling == 8 else []),
        *linear("subsampling.out", "subsampling.linear", _FRAME),
        *_feed_forward("ffn1", "feed_forward1", bias),
        *norm("layers.attention_norm", "layers.{}.norm_self_att"),
        *linear("layers.attention.query", f"{attention}.q_proj", INTO_HEADS, heads_bias),
        *linear("layers.attention.key", f"{attention}.k_proj", INTO_HEADS, heads_bias),
        *linear("layers.attention.value", f"{attention}.v_proj", INTO_HEADS, heads_bias),
        *linear("layers.attention.out", f"{attention}.o_proj", OUT_OF_HEADS, bias),
        Row("layers.attention.position.kernel", f"{attention}.relative_k_proj.weight", INTO_HEADS),
        Row("layers.attention.content_bias", f"{attention}.bias_u", SAME),
        Row("layers.attention.position_bias", f"{attention}.bias_v", SAME),
        *norm("layers.convolution.norm", "layers.{}.norm_conv"),
        *linear("layers.convolution.expand", f"{convolution}.pointwise_conv1", GATED, gated_bias),
        Row("layers.convolution.depthwise", f"{convolution}.depthwise_conv.weight", DEPTHWISE),
        Row("layers.convolution.scale", f"{convolution}.norm.weight", SAME),
        Row("layers.convolution.offset", f"{convolution}.norm.bias", SAME),
        *linear("layers.convolution.contract", f"{convolution}.pointwise_conv2", POINTWISE, bias),
        *_feed_forward("ffn2", "feed_forward2", bias),
        *norm("layers.norm", "layers.{}.norm_out"),
    ]


_HEAD = linear("head", "ctc_head", POINTWISE)


def from_hugging_face(
    state_dict: StateDict, config: FastConformerConfig, blank_id: int = 0
) -> tuple[Params, Params | None]:
    """Reads the parameters of our `FastConformer`, as arrays, from the state dict that `sources` takes.

    Args:
      blank_id: their id of the blank, `pad_token_id`; ours is 0, and the ids below theirs move up by one.

    Returns:
      Parameters of the encoder, layers stacked, and of the CTC head (`Linear`: kernel [dim, vocab], bias), or None
      if the state dict has no head.
    """
    params = jax.tree.map(TensorSource.read, sources(state_dict, config))
    head = params.get("head")
    if head is not None and blank_id:
        blank_first = np.r_[blank_id, np.delete(np.arange(len(head["bias"])), blank_id)]
        head = {name: value[..., blank_first] for name, value in head.items()}
    return params["encoder"], head


def sources(state_dict: StateDict, config: FastConformerConfig) -> Params:
    """Finds the places of our `FastConformer`'s parameters in a `ParakeetEncoder` or `ParakeetForCTC`.

    Returns:
      `encoder`, and `head` of the latter.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays = {name.removeprefix(_PREFIX): value for name, value in folded(state_dict).items()}
    head = _HEAD if "ctc_head.weight" in arrays else []
    tree = sources_of(arrays, _encoder(config) + head, config, "Parakeet")
    return {"head": tree.pop("head"), "encoder": tree} if head else {"encoder": tree}


def to_hugging_face(encoder: Params, config: FastConformerConfig, head: Params | None = None) -> dict[str, np.ndarray]:
    """Returns the state dict of a `ParakeetForCTC` whose blank is 0 if `head` is given, else of a `ParakeetEncoder`.

    float32, except batch norm's count of batches, int64. `from_hugging_face` returns the same parameters from it.
    """
    arrays = write(encoder, _encoder(config), config)
    for layer in range(config.num_layers):
        _unfold_batch_norm(arrays, f"layers.{layer}.conv", config)
    if head is None:
        return arrays
    return {_PREFIX + name: value for name, value in arrays.items()} | write({"head": head}, _HEAD, config)


def folded(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Folds each batch norm, and the bias of the convolution before it, into a scale and an offset, float32.

    Raises:
      ValueError: a batch norm lacks an array, or its arrays differ in shape.
    """
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    for name in [name for name in arrays if name.endswith(".conv.norm.running_var")]:
        conv = name.removesuffix(".norm.running_var")
        variance = arrays.pop(name).astype(np.float64)
        mean = arrays.pop(f"{conv}.norm.running_mean", None)
        weight, bias = (arrays.get(f"{conv}.norm.{part}") for part in ("weight", "bias"))
        before = arrays.pop(f"{conv}.depthwise_conv.bias", np.zeros_like(variance))
        if any(array is None or array.shape != variance.shape for array in (mean, weight, bias, before)):
            raise ValueError(
                f"{conv}.norm lacks weight, bias or running_mean, or they or {conv}.depthwise_conv.bias differ in shape"
            )
        arrays.pop(f"{conv}.norm.num_batches_tracked", None)
        scale = weight / np.sqrt(variance + _EPSILON)
        offset = bias + (before - mean.astype(np.float64)) * scale
        arrays[f"{conv}.norm.weight"] = scale.astype(np.float32)
        arrays[f"{conv}.norm.bias"] = offset.astype(np.float32)
    return arrays


def _unfold_batch_norm(arrays: dict[str, np.ndarray], conv: str, config: FastConformerConfig) -> None:
    """Adds arrays that `folded` folds into a scale and an offset without changing a bit of them."""
    zeros = np.zeros(config.dim, np.float32)
    # With epsilon it is 1 but for float32's rounding, too little to round any scale to another.
    variance = np.full(config.dim, 1 - _EPSILON, np.float32)
    arrays |= {f"{conv}.norm.running_mean": zeros, f"{conv}.norm.running_var": variance}
    arrays[f"{conv}.norm.num_batches_tracked"] = np.zeros((), np.int64)
    if config.bias:
        arrays[f"{conv}.depthwise_conv.bias"] = zeros


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
_FIXED = {
    "model_type": "parakeet_encoder",
    "hidden_act": "silu",
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
}


def config_from_hugging_face(values: Mapping[str, Any]) -> FastConformerConfig:
    """Converts the `config.json` of a `ParakeetForCTC` or `ParakeetEncoder`.

    Raises:
      ValueError: the model has a form that ours does not have.
    """
    values = completed(values)
    if "encoder_config" in values:
        require_fixed(values, {"model_type": "parakeet_ctc"})
        values = values["encoder_config"]
        if not isinstance(values, dict):
            raise ValueError("config.json: encoder_config must be the settings of an encoder")
    require_fixed(values, _FIXED | {"convolution_bias": values.get("attention_bias")})
    return FastConformerConfig(
        ffn_multiple=ffn_multiple(values), **{ours: values[theirs] for theirs, ours in _RENAMED.items()}
    )


def config_to_hugging_face(config: FastConformerConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """Returns the `config.json` of a `ParakeetEncoder`; with `vocab_size`, of a `ParakeetForCTC` with blank 0."""
    renamed = {theirs: getattr(config, ours) for theirs, ours in _RENAMED.items()}
    only_here = {
        "convolution_bias": config.bias,
        "intermediate_size": config.ffn_dim,
        "activation_dropout": config.dropout,
        "dropout_positions": 0.0,
        "layerdrop": 0.0,
    }
    encoder = _FIXED | renamed | only_here
    if vocab_size is None:
        return encoder | {"architectures": ["ParakeetEncoder"]}
    head = {"architectures": ["ParakeetForCTC"], "model_type": "parakeet_ctc", "vocab_size": vocab_size}
    return head | {"pad_token_id": 0, "encoder_config": encoder}


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
    """Converts a `ParakeetFeatureExtractor`'s `preprocessor_config.json`.

    Raises:
      ValueError: it computes other features than ours.
    """
    values = FEATURES[EXTRACTOR] | dict(values)
    require_fixed(values, _FEATURES)
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
