"""FastConformer parameters, and the front end's settings, to and from Hugging Face's Parakeet (see `mapping`).

Their batch norm is a scale and an offset a channel in evaluation, into which running statistics and the bias of the
convolution before it fold. On the way back these are such that they fold into nothing, bit for bit.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.core.audio_format import SAMPLE_RATE
from jax_speechlm.frontend.logmel import HOP, WINDOW, LogMel
from jax_speechlm.interop.hf.class_settings import FEATURES, completed
from jax_speechlm.interop.hf.mapping import (
    SAME,
    TRANSPOSED,
    Layout,
    Row,
    StateDict,
    TensorSource,
    ffn_multiple,
    require_fixed,
    write,
)
from jax_speechlm.interop.hf.mapping import sources as sources_of
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn.functional import Params

_PREFIX = "encoder."  # of an encoder with a CTC head
_EPSILON = 1e-5  # that batch norm adds to a variance


def _heads(config: FastConformerConfig) -> tuple[int, int]:
    return config.num_heads, config.dim // config.num_heads


def _values(config: FastConformerConfig) -> tuple[int, int]:
    """Bins and channels of a frame that the convolutions give; theirs are channels and bins."""
    return config.input_dim // config.subsampling, config.channels


_INTO_HEADS = Layout(lambda x, c: x.reshape(c.dim, c.dim).T, lambda x, c: x.T.reshape(c.dim, *_heads(c)))
_HEADS_BIAS = Layout(lambda x, c: x.reshape(c.dim), lambda x, c: x.reshape(_heads(c)))
_OUT_OF_HEADS = Layout(lambda x, c: x.reshape(c.dim, c.dim).T, lambda x, c: x.T.reshape(*_heads(c), c.dim))
# Weights of convolutions there are [out, in, taps], those of two dimensions [out, in, time, bins].
_POINTWISE = Layout(lambda x, c: x.T[..., None], lambda x, c: x[..., 0].T)
_POINTWISE_2D = Layout(lambda x, c: x.T[..., None, None], lambda x, c: x[..., 0, 0].T)
_DEPTHWISE = Layout(lambda x, c: x.T[:, None, :], lambda x, c: x[:, 0, :].T)
_THREE_BY_THREE = Layout(lambda x, c: x.T.reshape(c.channels, 1, 3, 3), lambda x, c: x.reshape(c.channels, 9).T)
_GATED = Layout(
    lambda x, c: x.reshape(c.dim, 2 * c.dim).T[..., None], lambda x, c: x[..., 0].T.reshape(c.dim, 2, c.dim)
)
_GATED_BIAS = Layout(lambda x, c: x.reshape(2 * c.dim), lambda x, c: x.reshape(2, c.dim))
_FRAME = Layout(
    lambda x, c: x.transpose(2, 1, 0).reshape(c.dim, -1),
    lambda x, c: x.reshape(c.dim, *_values(c)[::-1]).transpose(2, 1, 0),
)


def _norm(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}.scale", f"{theirs}.weight", SAME), Row(f"{ours}.bias", f"{theirs}.bias", SAME)]


def _linear(ours: str, theirs: str, kernel: Layout = TRANSPOSED, bias: Layout | None = SAME) -> list[Row]:
    rows = [Row(f"{ours}.kernel", f"{theirs}.weight", kernel)]
    return rows if bias is None else [*rows, Row(f"{ours}.bias", f"{theirs}.bias", bias)]


def _separable(name: str, first: int) -> list[Row]:
    ours, theirs = f"subsampling.convolutions.{name}", "subsampling.layers"
    return [
        Row(f"{ours}.depthwise", f"{theirs}.{first}.weight", _THREE_BY_THREE),
        Row(f"{ours}.bias", f"{theirs}.{first}.bias", SAME),
        *_linear(f"{ours}.pointwise", f"{theirs}.{first + 1}", _POINTWISE_2D),
    ]


def _feed_forward(ours: str, theirs: str, bias: Layout | None) -> list[Row]:
    return [
        *_norm(f"layers.{ours}.norm", f"layers.{{}}.norm_{theirs}"),
        *_linear(f"layers.{ours}.expand", f"layers.{{}}.{theirs}.linear1", bias=bias),
        *_linear(f"layers.{ours}.contract", f"layers.{{}}.{theirs}.linear2", bias=bias),
    ]


def _encoder(config: FastConformerConfig) -> list[Row]:
    attention, convolution = "layers.{}.self_attn", "layers.{}.conv"
    bias, heads_bias, gated_bias = (SAME, _HEADS_BIAS, _GATED_BIAS) if config.bias else (None, None, None)
    return [
        *_linear("subsampling.convolutions.first", "subsampling.layers.0", _THREE_BY_THREE),
        *_separable("second", 2),
        *(_separable("third", 5) if config.subsampling == 8 else []),
        *_linear("subsampling.out", "subsampling.linear", _FRAME),
        *_feed_forward("ffn1", "feed_forward1", bias),
        *_norm("layers.attention_norm", "layers.{}.norm_self_att"),
        *_linear("layers.attention.query", f"{attention}.q_proj", _INTO_HEADS, heads_bias),
        *_linear("layers.attention.key", f"{attention}.k_proj", _INTO_HEADS, heads_bias),
        *_linear("layers.attention.value", f"{attention}.v_proj", _INTO_HEADS, heads_bias),
        *_linear("layers.attention.out", f"{attention}.o_proj", _OUT_OF_HEADS, bias),
        Row("layers.attention.position.kernel", f"{attention}.relative_k_proj.weight", _INTO_HEADS),
        Row("layers.attention.content_bias", f"{attention}.bias_u", SAME),
        Row("layers.attention.position_bias", f"{attention}.bias_v", SAME),
        *_norm("layers.convolution.norm", "layers.{}.norm_conv"),
        *_linear("layers.convolution.expand", f"{convolution}.pointwise_conv1", _GATED, gated_bias),
        Row("layers.convolution.depthwise", f"{convolution}.depthwise_conv.weight", _DEPTHWISE),
        Row("layers.convolution.scale", f"{convolution}.norm.weight", SAME),
        Row("layers.convolution.offset", f"{convolution}.norm.bias", SAME),
        *_linear("layers.convolution.contract", f"{convolution}.pointwise_conv2", _POINTWISE, bias),
        *_feed_forward("ffn2", "feed_forward2", bias),
        *_norm("layers.norm", "layers.{}.norm_out"),
    ]


_HEAD = _linear("head", "ctc_head", _POINTWISE)


def from_hugging_face(
    state_dict: StateDict, config: FastConformerConfig, blank_id: int = 0
) -> tuple[Params, Params | None]:
    """Parameters of our `FastConformer`, as arrays, from what `sources` takes.

    Args:
      blank_id: the blank's id there, their `pad_token_id`: here it is 0, and the ids below it move up by one.

    Returns:
      The encoder's parameters, layers stacked, and those of the CTC head (`Linear`: kernel [dim, vocab], bias), or None
      where the state dict has no head.
    """
    params = jax.tree.map(TensorSource.read, sources(state_dict, config))
    head = params.get("head")
    if head is not None and blank_id:
        blank_first = np.r_[blank_id, np.delete(np.arange(len(head["bias"])), blank_id)]
        head = {name: value[..., blank_first] for name, value in head.items()}
    return params["encoder"], head


def sources(state_dict: StateDict, config: FastConformerConfig) -> Params:
    """Where our `FastConformer` is read from a `ParakeetEncoder` or `...ForCTC`: `encoder`, and the latter's `head`.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays = {name.removeprefix(_PREFIX): value for name, value in folded(state_dict).items()}
    head = _HEAD if "ctc_head.weight" in arrays else []
    tree = sources_of(arrays, _encoder(config) + head, config, "Parakeet")
    return {"head": tree.pop("head"), "encoder": tree} if head else {"encoder": tree}


def to_hugging_face(encoder: Params, config: FastConformerConfig, head: Params | None = None) -> dict[str, np.ndarray]:
    """The state dict of a `ParakeetForCTC` whose blank is 0 if `head` is given, else of a `ParakeetEncoder`.

    float32, but for batch norm's count of batches, int64. `from_hugging_face` gives back the same parameters.
    """
    arrays = write(encoder, _encoder(config), config)
    for layer in range(config.num_layers):
        _unfold_batch_norm(arrays, f"layers.{layer}.conv", config)
    if head is None:
        return arrays
    return {_PREFIX + name: value for name, value in arrays.items()} | write({"head": head}, _HEAD, config)


def folded(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The same with a scale and an offset, float32, for each batch norm and the bias of the convolution before it."""
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
    """Adds what folds into a scale and an offset without changing a bit of them."""
    zeros = np.zeros(config.dim, np.float32)
    # With epsilon it is 1 but for float32's rounding, too little to round any scale to another.
    variance = np.full(config.dim, 1 - _EPSILON, np.float32)
    arrays |= {f"{conv}.norm.running_mean": zeros, f"{conv}.norm.running_var": variance}
    arrays[f"{conv}.norm.num_batches_tracked"] = np.zeros((), np.int64)
    if config.bias:
        arrays[f"{conv}.depthwise_conv.bias"] = zeros


# Settings of a ParakeetEncoderConfig with a name of our own, and those that our one form fixes.
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
    """The `FastConformerConfig` of the `config.json` of a `ParakeetForCTC` or `ParakeetEncoder`.

    Raises:
      ValueError: the model has a form that ours has not.
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
    """The settings of a `ParakeetEncoder`'s `config.json`; with `vocab_size`, of a `ParakeetForCTC`'s with blank 0."""
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
    "sampling_rate": SAMPLE_RATE,
    "hop_length": HOP,
    "win_length": WINDOW,
    "n_fft": 512,
    "preemphasis": 0.97,
    "padding_value": 0.0,
}


def features_from_hugging_face(values: Mapping[str, Any]) -> LogMel:
    """The front end of a `ParakeetFeatureExtractor`'s `preprocessor_config.json`.

    Raises:
      ValueError: it computes what ours does not.
    """
    values = FEATURES[EXTRACTOR] | dict(values)
    require_fixed(values, _FEATURES)
    return LogMel(variant="nemo", num_mel_bins=values["feature_size"], stack=1)


def features_to_hugging_face(mel: LogMel) -> dict[str, Any]:
    """The settings of the `ParakeetFeatureExtractor` that computes the same.

    Raises:
      ValueError: there is none.
    """
    if mel != LogMel(variant="nemo", num_mel_bins=mel.num_mel_bins, stack=1):
        raise ValueError(
            f"ParakeetFeatureExtractor does not compute log-mel of variant {mel.variant}, stack {mel.stack}, normalize "
            f"{mel.normalize}: export a run that was trained with variant nemo, stack 1 and normalize"
        )
    return _FEATURES | {"feature_size": mel.num_mel_bins, "padding_side": "right", "return_attention_mask": True}
