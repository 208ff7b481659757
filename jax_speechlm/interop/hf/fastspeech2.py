"""Conversion of FastSpeech 2 parameters and settings to and from Hugging Face's `FastSpeech2ConformerModel`.

Their batch norms are a scale and an offset per channel in evaluation (see `batch_norm`). Of their forms the one with
normalisation before each module, macaron feed-forwards and a convolution module is known here, which is that of the
published models; at inference they have no mask in the decoder, so they compute the same for a batch of one text.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_speechlm.interop.hf import batch_norm, mapping
from jax_speechlm.interop.hf.mapping import CONVOLUTION, INTO_HEADS, SAME, Row, StateDict, linear, norm
from jax_speechlm.models.tts.fastspeech2 import ConformerShape, FastSpeech2Config, Layers, Postnet, Predictor
from jax_speechlm.nn.functional import Params

MODEL = "FastSpeech2ConformerModel"

_CONFORMERS = "encoder", "decoder"
_PREDICTORS = "duration", "pitch", "energy"
_POSTNET = "speech_decoder_postnet"


def _conformer(stack: str) -> list[Row]:
    layer = f"{stack}.conformer_layers.{{}}"
    attention, convolution = f"{layer}.self_attn", f"{layer}.conv_module"
    rows = [
        *_feed_forward("layers.ffn1", f"{layer}.ff_macaron_layer_norm", f"{layer}.feed_forward_macaron"),
        *norm("layers.attention_norm", f"{layer}.self_attn_layer_norm"),
        *mapping.attention(*(f"{attention}.linear_{name}" for name in ("q", "k", "v", "out"))),
        Row("layers.attention.position.kernel", f"{attention}.linear_pos.weight", INTO_HEADS),
        Row("layers.attention.content_bias", f"{attention}.pos_bias_u", SAME),
        Row("layers.attention.position_bias", f"{attention}.pos_bias_v", SAME),
        *norm("layers.convolution.norm", f"{layer}.conv_layer_norm"),
        *linear("layers.convolution.expand", f"{convolution}.pointwise_conv1", mapping.GATED, mapping.GATED_BIAS),
        Row("layers.convolution.depthwise", f"{convolution}.depthwise_conv.weight", mapping.DEPTHWISE),
        Row("layers.convolution.scale", f"{convolution}.norm.weight", SAME),
        Row("layers.convolution.offset", f"{convolution}.norm.bias", SAME),
        *linear("layers.convolution.contract", f"{convolution}.pointwise_conv2", mapping.POINTWISE),
        *_feed_forward("layers.ffn2", f"{layer}.ff_layer_norm", f"{layer}.feed_forward"),
        *norm("layers.norm", f"{layer}.final_layer_norm"),
    ]
    return mapping.below(stack, rows)


def _feed_forward(path: str, norm_name: str, name: str) -> list[Row]:
    maps = linear(f"{path}.expand", f"{name}.conv1", CONVOLUTION)
    return [*norm(f"{path}.norm", norm_name), *maps, *linear(f"{path}.contract", f"{name}.conv2", CONVOLUTION)]


def _other_rows(config: FastSpeech2Config, has_speakers: bool) -> list[Row]:
    """Returns the rows of all parameters outside of the two conformers."""
    rows = [Row("tokens", "encoder.embed.weight", SAME)]
    rows += [Row("speakers", "speaker_id_embedding.weight", SAME)] if has_speakers else []
    for name in _PREDICTORS:
        predictor = f"{name}_predictor"
        for layer in range(getattr(config, name).num_layers):
            theirs = f"{predictor}.conv_layers.{layer}"
            rows += linear(f"{name}.convolutions.layer{layer}", f"{theirs}.conv", CONVOLUTION)
            rows += norm(f"{name}.norms.layer{layer}", f"{theirs}.layer_norm")
        rows += linear(f"{name}.out", f"{predictor}.linear")
    for name in ("pitch", "energy"):
        rows += linear(f"{name}_embedding", f"{name}_embed.conv", mapping.POINTWISE)
    rows += linear("head", f"{_POSTNET}.feat_out")
    for layer in range(config.postnet.num_layers):
        ours, theirs = f"postnet.layers.layer{layer}", f"{_POSTNET}.layers.{layer}"
        rows += [
            Row(f"{ours}.convolution.kernel", f"{theirs}.conv.weight", CONVOLUTION),
            Row(f"{ours}.scale", f"{theirs}.batch_norm.weight", SAME),
            Row(f"{ours}.offset", f"{theirs}.batch_norm.bias", SAME),
        ]
    return rows


def _batch_norms(config: FastSpeech2Config) -> dict[str, tuple[str | None, int]]:
    """Returns the name of every batch norm with that of the bias before it, if there is one, and its channels."""
    norms: dict[str, tuple[str | None, int]] = {}
    for stack in _CONFORMERS:
        for layer in range(getattr(config, stack).num_layers):
            convolution = f"{stack}.conformer_layers.{layer}.conv_module"
            norms[f"{convolution}.norm"] = f"{convolution}.depthwise_conv.bias", config.dim
    for layer in range(config.postnet.num_layers):
        last = layer == config.postnet.num_layers - 1
        channels = config.num_mel_bins if last else config.postnet.channels
        norms[f"{_POSTNET}.layers.{layer}.batch_norm"] = None, channels
    return norms


def _parts(config: FastSpeech2Config, has_speakers: bool) -> dict[str, tuple[list[Row], Any]]:
    """Returns rows and config by the first part of the names of Hugging Face's arrays; "" for all others."""
    conformers: dict[str, tuple[list[Row], ConformerShape]] = {
        f"{stack}.conformer_layers.": (_conformer(stack), config.conformer(getattr(config, stack)))
        for stack in _CONFORMERS
    }
    return conformers | {"": (_other_rows(config, has_speakers), _Flat(config.dim))}


class _Flat:
    """The config of parameters that are not stacked by layer."""

    def __init__(self, dim: int):
        self.num_layers, self.dim = 0, dim


def sources(state_dict: StateDict, config: FastSpeech2Config) -> Params:
    """Finds the places of our parameters in a `FastSpeech2ConformerModel`.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    for name, (bias, _) in _batch_norms(config).items():
        if f"{name}.running_var" not in arrays:
            raise ValueError(f"the state dict has no {name}.running_var: is it a FastSpeech2ConformerModel?")
        batch_norm.fold(arrays, name, bias)
    tree: Params = {}
    for prefix, (rows, part_config) in _parts(config, "speaker_id_embedding.weight" in arrays).items():
        taken = {name: arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}
        part = mapping.sources(taken, rows, part_config, "FastSpeech2Conformer")
        for group, values in part.items():
            tree[group] = values
    return tree


def folded(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Folds each batch norm, and the bias of the convolution before it, into a scale and an offset, float32."""
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    for each in [name.removesuffix(".running_var") for name in arrays if name.endswith(".running_var")]:
        convolution, has_bias = each.removesuffix(".norm"), each.endswith(".conv_module.norm")
        batch_norm.fold(arrays, each, f"{convolution}.depthwise_conv.bias" if has_bias else None)
    return arrays


def to_hugging_face(params: Params, config: FastSpeech2Config) -> dict[str, np.ndarray]:
    """Returns the state dict of a `FastSpeech2ConformerModel`; `sources` returns the same parameters from it.

    float32, except batch norm's count of batches, int64.
    """
    arrays: dict[str, np.ndarray] = {}
    for rows, part_config in _parts(config, params.get("speakers") is not None).values():
        arrays |= mapping.write(params, rows, part_config)
    for name, (bias, channels) in _batch_norms(config).items():
        arrays |= batch_norm.fixed_statistics(name, channels)
        if bias is not None:
            arrays[bias] = np.zeros(channels, np.float32)
    return arrays


# Settings of a FastSpeech2ConformerConfig by ours: of each conformer, of the predictors, of the postnet.
_LAYERS = {
    "num_layers": "layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "linear_units",
    "kernel_size": "kernel_size",
    "dropout": "dropout_rate",
    "attention_dropout": "attention_dropout_rate",
}
_PREDICTOR = {"num_layers": "layers", "channels": "channels", "kernel_size": "kernel_size"}
_POSTNET_SETTINGS = {"num_layers": "layers", "channels": "units", "kernel_size": "kernel", "dropout": "dropout"}
_FIXED = {
    "model_type": "fastspeech2_conformer",
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "encoder_concat_after": False,
    "decoder_concat_after": False,
    "reduction_factor": 1,
    "use_macaron_style_in_conformer": True,
    "use_cnn_in_conformer": True,
    "convolution_bias": True,
    "pitch_embed_kernel_size": 1,
    "energy_embed_kernel_size": 1,
    "num_languages": None,
    "speaker_embed_dim": None,
}
_DEFAULTS = {
    "hidden_size": 384, "num_mel_bins": 80, "positionwise_conv_kernel_size": 3, "vocab_size": 78, "num_speakers": None,
    "speaking_speed": 1.0,
    "encoder_layers": 4, "encoder_num_attention_heads": 2, "encoder_linear_units": 1536, "encoder_kernel_size": 7,
    "encoder_dropout_rate": 0.2, "encoder_attention_dropout_rate": 0.2, "encoder_normalize_before": False,
    "decoder_layers": 4, "decoder_num_attention_heads": 2, "decoder_linear_units": 1536, "decoder_kernel_size": 31,
    "decoder_dropout_rate": 0.2, "decoder_attention_dropout_rate": 0.2, "decoder_normalize_before": False,
    "duration_predictor_layers": 2, "duration_predictor_channels": 256, "duration_predictor_kernel_size": 3,
    "duration_predictor_dropout_rate": 0.2,
    "pitch_predictor_layers": 5, "pitch_predictor_channels": 256, "pitch_predictor_kernel_size": 5,
    "pitch_predictor_dropout": 0.5,
    "energy_predictor_layers": 2, "energy_predictor_channels": 256, "energy_predictor_kernel_size": 3,
    "energy_predictor_dropout": 0.5,
    "speech_decoder_postnet_layers": 5, "speech_decoder_postnet_units": 256, "speech_decoder_postnet_kernel": 5,
    "speech_decoder_postnet_dropout": 0.5,
}  # fmt: skip


def _dropout_of(predictor: str) -> str:
    return "duration_predictor_dropout_rate" if predictor == "duration" else f"{predictor}_predictor_dropout"


def config_from_hugging_face(values: Mapping[str, Any]) -> FastSpeech2Config:
    """Converts the `config.json` of a `FastSpeech2ConformerModel`; raises ValueError for other forms."""
    values = _DEFAULTS | dict(values)
    mapping.require_fixed(values, _FIXED)
    taps = values["positionwise_conv_kernel_size"]
    settings: dict[str, Any] = {
        stack: Layers(ffn_kernel_size=taps, **{ours: values[f"{stack}_{theirs}"] for ours, theirs in _LAYERS.items()})
        for stack in _CONFORMERS
    }
    for name in _PREDICTORS:
        sizes = {ours: values[f"{name}_predictor_{theirs}"] for ours, theirs in _PREDICTOR.items()}
        settings[name] = Predictor(dropout=values[_dropout_of(name)], **sizes)
    postnet = {ours: values[f"{_POSTNET}_{theirs}"] for ours, theirs in _POSTNET_SETTINGS.items()}
    return FastSpeech2Config(
        num_mel_bins=values["num_mel_bins"], dim=values["hidden_size"], postnet=Postnet(**postnet), **settings
    )


def config_to_hugging_face(config: FastSpeech2Config, vocab_size: int, num_speakers: int = 1) -> dict[str, Any]:
    """Returns the `config.json` of a `FastSpeech2ConformerModel`.

    Raises:
      ValueError: it reads a language model, or the two conformers have feed-forwards of different kernels; neither has
        a place there.
    """
    if config.text_lm is not None:
        raise ValueError(
            "FastSpeech2ConformerModel reads tokens alone, and this model a language model too: train one with "
            "model.text_lm=None to export it"
        )
    taps = {getattr(config, stack).ffn_kernel_size for stack in _CONFORMERS}
    if len(taps) > 1:
        raise ValueError(
            f"FastSpeech2ConformerModel has one kernel for the feed-forwards of both conformers, not {sorted(taps)}: "
            "train with model.encoder.ffn_kernel_size equal to model.decoder.ffn_kernel_size"
        )
    values = _FIXED | {
        "architectures": [MODEL],
        "vocab_size": vocab_size,
        "num_speakers": num_speakers if num_speakers > 1 else None,
        "num_mel_bins": config.num_mel_bins,
        "hidden_size": config.dim,
        "positionwise_conv_kernel_size": taps.pop(),
        "speaking_speed": 1.0,
    }
    for stack in _CONFORMERS:
        layers = getattr(config, stack)
        values |= {f"{stack}_{theirs}": getattr(layers, ours) for ours, theirs in _LAYERS.items()}
        values[f"{stack}_positional_dropout_rate"] = layers.dropout
    for name in _PREDICTORS:
        predictor = getattr(config, name)
        values |= {f"{name}_predictor_{theirs}": getattr(predictor, ours) for ours, theirs in _PREDICTOR.items()}
        values[_dropout_of(name)] = predictor.dropout
    return values | {
        f"{_POSTNET}_{theirs}": getattr(config.postnet, ours) for ours, theirs in _POSTNET_SETTINGS.items()
    }
