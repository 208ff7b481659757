"""Conversion of encoders of samples to and from Hugging Face's wav2vec 2.0, HuBERT, WavLM and data2vec (see `mapping`).

A model's family is what its form has a class for: WavLM's bias, data2vec's positions, or else `config.family`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import mapping, speech_heads
from jax_speechlm.interop.hf.class_settings import FEATURES, completed
from jax_speechlm.interop.hf.mapping import CONVOLUTION, SAME, Layout, Row, StateDict, linear, norm
from jax_speechlm.interop.hf.speech_heads import Head
from jax_speechlm.models.wav2vec2 import RelativeBias, Wav2Vec2EncoderConfig
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.heads.base import HeadConfig
from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2

FAMILIES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM", "data2vec-audio": "Data2VecAudio"}
"""First part of the names of classes, by `model_type`."""

_HEADS: dict[str, tuple[Head, ...]] = {
    "wav2vec2": (*get_args(Head),),
    "hubert": ("Model", "ForCTC", "ForSequenceClassification"),
    "wavlm": ("Model", "ForCTC", "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector"),
    "data2vec-audio": ("Model", "ForCTC", "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector"),
}
ARCHITECTURES = {f"{FAMILIES[family]}{head}": head for family, heads in _HEADS.items() for head in heads}
"""The classes that are converted, and their heads."""

_FILLER = "masked_spec_embed"  # of masked frames; but for pretraining, Hugging Face's own SpecAugment, which is off
_PREFIX = re.compile(r"^(wav2vec2|hubert|wavlm|data2vec_audio)\.")  # of an encoder with a head
_WEIGHT_NORM = "encoder.pos_conv_embed.conv"
OLD_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""Names of the parts of a weight norm in files of earlier versions, and today's."""

# Kernels of grouped convolutions, theirs [out, in of a group, taps], and what is broadcast against others.
_GROUPED = Layout(
    lambda x, c: x.transpose(1, 3, 2, 0).reshape(c.dim, -1, c.position_kernel),
    lambda x, c: x.reshape(c.position_groups, -1, *x.shape[1:]).transpose(3, 0, 2, 1),
)
_TAPS = Layout(lambda x, c: x[None, None], lambda x, c: x[0, 0])
_HEAD_SCALE = Layout(lambda x, c: x[None, :, None, None], lambda x, c: x[0, :, 0, 0])
_GATES = Layout(lambda x, c: x.reshape(len(x), -1).T, lambda x, c: x.T.reshape(x.shape[1], 2, -1))
_GATES_BIAS = Layout(lambda x, c: x.reshape(-1), lambda x, c: x.reshape(2, -1))


def _encoder(config: Wav2Vec2EncoderConfig) -> list[Row]:
    layer = "encoder.layers.{}"
    attention = f"{layer}.attention"
    rows = [
        *(row for number in range(len(config.channels)) for row in _convolution(config, number)),
        *(norm("input_norm", "feature_projection.layer_norm") if config.input_norm else []),
        *linear("input", "feature_projection.projection"),
        *_positions(config),
        *norm("norm", "encoder.layer_norm"),
        *mapping.attention(*(f"{attention}.{name}_proj" for name in ("q", "k", "v", "out"))),
        *norm("layers.attention_norm", f"{layer}.layer_norm"),
        *linear("layers.ffn.expand", f"{layer}.feed_forward.intermediate_dense"),
        *linear("layers.ffn.contract", f"{layer}.feed_forward.output_dense"),
        *norm("layers.ffn_norm", f"{layer}.final_layer_norm"),
    ]
    if config.relative is not None:
        rows += [
            Row("layers.attention.gate_scale", f"{attention}.gru_rel_pos_const", _HEAD_SCALE),
            *linear("layers.attention.gate", f"{attention}.gru_rel_pos_linear", _GATES, _GATES_BIAS),
            Row("distance", "encoder.layers.0.attention.rel_attn_embed.weight", SAME),
        ]
    return mapping.below("encoder", rows)


def _convolution(config: Wav2Vec2EncoderConfig, number: int) -> list[Row]:
    path, name = f"convolutions.layer{number}", f"feature_extractor.conv_layers.{number}"
    bias = SAME if config.convolution_bias else None
    has_norm = config.convolution_norm == "layer" or number == 0
    rows = linear(f"{path}.convolution", f"{name}.conv", CONVOLUTION, bias)
    return rows + (norm(f"{path}.norm", f"{name}.layer_norm") if has_norm else [])


def _positions(config: Wav2Vec2EncoderConfig) -> list[Row]:
    if config.position_layers is not None:
        name = "encoder.pos_conv_embed.layers.{}.conv"
        layers = range(config.position_layers)
        return [
            row for i in layers for row in linear(f"positions.layers.layer{i}", name.replace("{}", str(i)), _GROUPED)
        ]
    path = "positions.layers.layer0"
    return [
        Row(f"{path}.scale", f"{_WEIGHT_NORM}.{OLD_NAMES['weight_g']}", _TAPS),
        Row(f"{path}.kernel", f"{_WEIGHT_NORM}.{OLD_NAMES['weight_v']}", _GROUPED),
        Row(f"{path}.bias", f"{_WEIGHT_NORM}.bias", SAME),
    ]


def renamed(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Returns a state dict with today's names of the weight norm, which files of earlier versions have not."""
    return {_renamed(name): value for name, value in state_dict.items()}


def _renamed(name: str) -> str:
    before, _, last = name.rpartition(".")
    return f"{before}.{OLD_NAMES[last]}" if last in OLD_NAMES and before.endswith(_WEIGHT_NORM) else name


def sources(state_dict: StateDict, config: Wav2Vec2EncoderConfig, architecture: str) -> Params:
    """Finds the places of our parameters, `encoder` and those of the head, in a class's state dict.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays = {_PREFIX.sub("", name): value for name, value in renamed(state_dict).items()}
    head, rows = ARCHITECTURES[architecture], _encoder(config)
    if head == "ForPreTraining":
        return mapping.sources(arrays, [*rows, _MASK, *_contrast(*_groups(arrays))], config, architecture)
    arrays.pop(_FILLER, None)
    return speech_heads.sources(arrays, rows, config, head, architecture)


def to_hugging_face(params: Params, config: Wav2Vec2EncoderConfig, head: Head | None = None) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a class of Hugging Face's, by default with a CTC head if there is a `head`."""
    head = head or ("ForCTC" if "head" in params else "Model")
    rows = _encoder(config) + [_MASK] * (head == "ForPreTraining")
    arrays = mapping.write(params, rows, config)
    if head == "Model":
        return arrays
    prefix = _family(config).replace("-", "_")
    arrays = {f"{prefix}.{name}": value for name, value in arrays.items()}
    if head == "ForPreTraining":
        groups, codes, _ = params["contrast"]["quantizer"]["codebook"].shape
        return arrays | mapping.write(params, _contrast(groups, codes), config)
    return arrays | speech_heads.write(params, config, head)


_MASK = Row("contrast.mask", _FILLER, SAME)


def _contrast(groups: int, codes: int) -> list[Row]:
    """Returns the rows of the contrastive task, with `groups` codebooks of `codes` entries."""
    choices = Layout(
        lambda x, c: x.reshape(len(x), groups * codes).T, lambda x, c: x.T.reshape(x.shape[1], groups, codes)
    )
    bias = Layout(lambda x, c: x.reshape(groups * codes), lambda x, c: x.reshape(groups, codes))
    codebook = Layout(
        lambda x, c: x.reshape(1, groups * codes, x.shape[2]), lambda x, c: x.reshape(groups, codes, x.shape[2])
    )
    return [
        *linear("contrast.quantizer.logits", "quantizer.weight_proj", choices, bias),
        Row("contrast.quantizer.codebook", "quantizer.codevectors", codebook),
        *linear("contrast.context", "project_hid"),
        *linear("contrast.target", "project_q"),
    ]


def _groups(arrays: StateDict) -> tuple[int, int]:
    """Returns the number of codebooks, and of the entries of each, from the shapes of a quantizer's arrays."""
    codebook, target = (arrays.get(name) for name in ("quantizer.codevectors", "project_q.weight"))
    if codebook is None or target is None:
        raise ValueError("the state dict has no quantizer.codevectors and project_q.weight, which pretraining needs")
    if codebook.ndim != 3 or target.ndim != 2 or not codebook.shape[2] or target.shape[1] % codebook.shape[2]:
        raise ValueError(f"'quantizer.codevectors' {codebook.shape} does not fit 'project_q.weight' {target.shape}")
    groups = target.shape[1] // codebook.shape[2]
    if not groups or codebook.shape[1] % groups:
        raise ValueError(f"'quantizer.codevectors' {codebook.shape} is not of {groups} groups of codes")
    return groups, codebook.shape[1] // groups


# Settings with a name of our own, and settings that are constant in our form.
_RENAMED = {
    "hidden_size": "dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_dim",
    "hidden_dropout": "dropout",
    "conv_dim": "channels",
    "conv_kernel": "kernels",
    "conv_stride": "strides",
    "conv_bias": "convolution_bias",
    "num_conv_pos_embedding_groups": "position_groups",
}
_COMMON = {
    "feat_extract_norm": "convolution_norm",
    "do_stable_layer_norm": "pre_norm",
    "num_conv_pos_embeddings": "position_kernel",
}
_OF_FAMILY = {
    "wav2vec2": _COMMON,
    "hubert": _COMMON | {"feat_proj_layer_norm": "input_norm"},
    "wavlm": _COMMON,
    "data2vec-audio": {"conv_pos_kernel_size": "position_kernel", "num_conv_pos_embeddings": "position_layers"},
}
_RELATIVE = {"num_buckets": "buckets", "max_bucket_distance": "longest"}
_FIXED = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5}
_ONE_FORM = {"add_adapter": False, "adapter_attn_dim": None, "conv_pos_batch_norm": False}
"""Settings that some of the families have, and which only these values have a counterpart of."""


def _family(config: Wav2Vec2EncoderConfig) -> str:
    if config.relative is not None:
        return "wavlm"
    return config.family if config.position_layers is None else "data2vec-audio"


def architecture(config: Wav2Vec2EncoderConfig, head: Head) -> str:
    """Returns the class of a model with a head. Raises `ExportError` if transformers has none."""
    family = _family(config)
    if head not in _HEADS[family]:
        raise ExportError(f"transformers has no {FAMILIES[family]}{head}: of this family it has {_HEADS[family]}")
    return f"{FAMILIES[family]}{head}"


def config_from_hugging_face(values: Mapping[str, Any]) -> Wav2Vec2EncoderConfig:
    """Converts a `config.json`; raises ValueError for forms that ours does not have, such as adapters."""
    values = completed(values)
    family = values.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"config.json: model_type={family!r} is none of {', '.join(FAMILIES)}")
    mapping.require_fixed(values, _FIXED | {name: only for name, only in _ONE_FORM.items() if name in values})
    settings = {setting: values[name] for name, setting in (_RENAMED | _OF_FAMILY[family]).items()}
    if family == "data2vec-audio":
        settings["convolution_norm"] = "layer"
    if family == "wavlm":
        settings["relative"] = RelativeBias(**{setting: values[name] for name, setting in _RELATIVE.items()})
    if family == "hubert":
        settings["family"] = family
    return Wav2Vec2EncoderConfig(**settings)


def config_to_hugging_face(config: Wav2Vec2EncoderConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """Returns the settings of the encoder's `config.json`; with `vocab_size`, of that with a CTC head."""
    family = _family(config)
    if family == "data2vec-audio" and (config.pre_norm or config.convolution_norm != "layer"):
        raise ExportError(f"{FAMILIES[family]} has norms of every convolution, and after layers: model.pre_norm False")
    if not config.input_norm and family != "hubert":
        raise ExportError(f"{FAMILIES[family]} normalises the input of its projection: set model.input_norm")
    names = _RENAMED | _OF_FAMILY[family]
    values = {name: _as_list(getattr(config, setting)) for name, setting in names.items()}
    if config.relative is not None:
        values |= {name: getattr(config.relative, setting) for name, setting in _RELATIVE.items()}
    rates = {"activation_dropout": config.dropout, "attention_dropout": 0.0, "feat_proj_dropout": 0.0}
    # Without masks the class has no filler of masked frames.
    only_here = {"layerdrop": 0.0, "apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    head = {"architectures": [architecture(config, "Model")]}
    if vocab_size is not None:
        head = {"architectures": [architecture(config, "ForCTC")], "vocab_size": vocab_size, "final_dropout": 0.0}
    return {"model_type": family} | _FIXED | values | rates | only_here | head


def headed_config_to_hugging_face(config: Wav2Vec2EncoderConfig, head: Head, objective: HeadConfig) -> dict[str, Any]:
    """Returns the settings of the `config.json` of a model with a head for classes, frames or speakers."""
    values = config_to_hugging_face(config) | {"architectures": [architecture(config, head)]}
    return values | speech_heads.settings(config, head, objective)


_CONTRAST = {
    "num_codevector_groups": "groups",
    "num_codevectors_per_group": "codes",
    "codevector_dim": "code_dim",
    "proj_codevector_dim": "code_dim",
    "num_negatives": "negatives",
    "contrastive_logits_temperature": "temperature",
    "diversity_loss_weight": "diversity_weight",
}


def contrast_from_hugging_face(values: Mapping[str, Any]) -> Wav2Vec2:
    """Converts the settings of pretraining in a `config.json`, for its continuation.

    The Gumbel softmax keeps the temperature that such models were trained down to, which no file has.
    """
    values = completed(values)
    if values["proj_codevector_dim"] != values["codevector_dim"]:
        raise ValueError(
            f"config.json: proj_codevector_dim={values['proj_codevector_dim']} differs from codevector_dim="
            f"{values['codevector_dim']}, and here contexts and targets have one width"
        )
    settings = {setting: values[name] for name, setting in _CONTRAST.items()}
    lowest = Wav2Vec2().gumbel_temperature[1]
    frame = math.prod(values["conv_stride"]) / DEFAULT_SAMPLE_RATE
    masks = {"mask_ratio": -math.expm1(-values["mask_time_prob"]), "mask_span": values["mask_time_length"] * frame}
    return Wav2Vec2(**settings, **masks, gumbel_temperature=(lowest, lowest))


def pretraining_config_to_hugging_face(config: Wav2Vec2EncoderConfig, objective: Wav2Vec2) -> dict[str, Any]:
    """Returns the settings of the `config.json` of a `Wav2Vec2ForPreTraining`."""
    values = config_to_hugging_face(config) | {"architectures": [architecture(config, "ForPreTraining")]}
    values |= {name: getattr(objective, setting) for name, setting in _CONTRAST.items()}
    span = round(objective.mask_span * DEFAULT_SAMPLE_RATE / config.subsampling)
    # Spans of which so many frames are the first cover the objective's share of them.
    masks = {"mask_time_prob": -math.log1p(-objective.mask_ratio), "mask_time_length": max(span, 1)}
    return values | masks | {"apply_spec_augment": True}  # without it the class ignores the masks that it is given


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


EXTRACTOR = "Wav2Vec2FeatureExtractor"
_FEATURES = {
    "feature_extractor_type": EXTRACTOR,
    "feature_size": 1,
    "sampling_rate": DEFAULT_SAMPLE_RATE,
    "padding_value": 0.0,
}


def features_from_hugging_face(values: Mapping[str, Any]) -> Waveform:
    """Converts a `Wav2Vec2FeatureExtractor`'s `preprocessor_config.json`; raises ValueError for other features."""
    values = FEATURES[EXTRACTOR] | dict(values)
    mapping.require_fixed(values, _FEATURES)
    return Waveform(normalize=values["do_normalize"])


def features_to_hugging_face(mel: Any, config: Wav2Vec2EncoderConfig) -> dict[str, Any]:
    """Returns the settings of the `Wav2Vec2FeatureExtractor` that computes the same features.

    A norm over time sees padding whatever the mask says, so models with one take no mask.
    """
    if not isinstance(mel, Waveform):
        raise ExportError(f"{EXTRACTOR} computes samples, and frontend.mel has variant {mel.variant!r}")
    has_mask = config.convolution_norm == "layer"
    return _FEATURES | {"do_normalize": mel.normalize, "padding_side": "right", "return_attention_mask": has_mask}
