"""Conversion of Conformer parameters to and from Hugging Face's Wav2Vec2-BERT (see `mapping`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_speechlm.interop.hf import mapping, speech_heads
from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.interop.hf.mapping import Row, StateDict, linear, norm
from jax_speechlm.interop.hf.speech_heads import Head
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.heads.base import HeadConfig

_FAMILY = "Wav2Vec2Bert"
MODEL, CTC = f"{_FAMILY}Model", f"{_FAMILY}ForCTC"
ARCHITECTURES: dict[str, Head] = {
    MODEL: "Model",
    CTC: "ForCTC",
    **{f"{_FAMILY}{head}": head for head in speech_heads.HEADED},
}
"""The classes that are converted, and their heads."""

_PREFIX = "wav2vec2_bert."  # of an encoder with a head
_DEAD = "masked_spec_embed"  # the filler of Hugging Face's own SpecAugment, which is off

_LAYER = "encoder.layers.{}."
_ATTENTION, _CONVOLUTION, _FFN = f"{_LAYER}self_attn", f"{_LAYER}conv_module", f"{_LAYER}ffn"
_ENCODER = mapping.below(
    "encoder",
    [
        *norm("input_norm", "feature_projection.layer_norm"),
        *linear("input", "feature_projection.projection"),
        *mapping.feed_forward(
            "layers.ffn1", f"{_FFN}1_layer_norm", f"{_FFN}1.intermediate_dense", f"{_FFN}1.output_dense"
        ),
        *norm("layers.attention_norm", f"{_ATTENTION}_layer_norm"),
        *mapping.attention(*(f"{_ATTENTION}.linear_{name}" for name in ("q", "k", "v", "out"))),
        Row("layers.attention.distance", f"{_ATTENTION}.distance_embedding.weight", mapping.SAME),
        *norm("layers.convolution.norm_in", f"{_CONVOLUTION}.layer_norm"),
        Row("layers.convolution.expand.kernel", f"{_CONVOLUTION}.pointwise_conv1.weight", mapping.GATED),
        Row("layers.convolution.depthwise", f"{_CONVOLUTION}.depthwise_conv.weight", mapping.DEPTHWISE),
        *norm("layers.convolution.norm_mid", f"{_CONVOLUTION}.depthwise_layer_norm"),
        Row("layers.convolution.contract.kernel", f"{_CONVOLUTION}.pointwise_conv2.weight", mapping.POINTWISE),
        *mapping.feed_forward(
            "layers.ffn2", f"{_FFN}2_layer_norm", f"{_FFN}2.intermediate_dense", f"{_FFN}2.output_dense"
        ),
        *norm("layers.norm", f"{_LAYER}final_layer_norm"),
    ],
)


def sources(state_dict: StateDict, config: ConformerConfig, architecture: str | None = None) -> Params:
    """Finds the places of our parameters, `encoder` and perhaps `head` or `speaker`, in a class's state dict.

    Args:
      architecture: by default the class with a CTC head if that is there, else the one without a head.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays = {name.removeprefix(_PREFIX): value for name, value in state_dict.items()}
    arrays.pop(_DEAD, None)
    architecture = architecture or (CTC if "lm_head.weight" in arrays else MODEL)
    return speech_heads.sources(arrays, _ENCODER, config, ARCHITECTURES[architecture], architecture)


def to_hugging_face(params: Params, config: ConformerConfig, head: Head | None = None) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a class of Hugging Face's, by default with a CTC head if there is a `head`."""
    head = head or ("ForCTC" if "head" in params else "Model")
    arrays = {_DEAD: np.zeros(config.dim, np.float32)} | mapping.write(params, _ENCODER, config)
    if head == "Model":
        return arrays
    return {_PREFIX + name: value for name, value in arrays.items()} | speech_heads.write(params, config, head)


# Settings of a Wav2Vec2BertConfig with a name of our own, and settings that are constant in our form.
_RENAMED = {
    "feature_projection_input_dim": "input_dim",
    "hidden_size": "dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "conv_depthwise_kernel_size": "kernel_size",
    "left_max_position_embeddings": "left_max",
    "right_max_position_embeddings": "right_max",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
_FIXED = {
    "model_type": "wav2vec2-bert",
    "position_embeddings_type": "relative_key",
    "hidden_act": "swish",
    "layer_norm_eps": 1e-5,
    "add_adapter": False,
    "use_intermediate_ffn_before_adapter": False,
}


def config_from_hugging_face(values: Mapping[str, Any]) -> ConformerConfig:
    """Converts a `config.json`; raises ValueError for forms that ours does not have, such as rotary positions."""
    values = completed(values)
    mapping.require_fixed(values, _FIXED | {"hidden_act": "silu"})  # the same function
    renamed = {setting: values[name] for name, setting in _RENAMED.items()}
    return ConformerConfig(ffn_multiple=mapping.ffn_multiple(values), **renamed)


def config_to_hugging_face(config: ConformerConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """Returns the settings of a Wav2Vec2-BERT `config.json`; with `vocab_size`, of a `Wav2Vec2BertForCTC`."""
    renamed = {name: getattr(config, setting) for name, setting in _RENAMED.items()}
    rates = dict.fromkeys(("activation_dropout", "feat_proj_dropout", "conformer_conv_dropout"), config.dropout)
    only_here = {"intermediate_size": config.ffn_dim, "layerdrop": 0.0, "apply_spec_augment": False}
    head = {"architectures": [MODEL]}
    if vocab_size is not None:
        head = {"architectures": [CTC], "vocab_size": vocab_size, "final_dropout": 0.0}
    return _FIXED | renamed | rates | only_here | head


def headed_config_to_hugging_face(config: ConformerConfig, head: Head, objective: HeadConfig) -> dict[str, Any]:
    """Returns the settings of the `config.json` of a model with a head for classes, frames or speakers."""
    values = config_to_hugging_face(config) | {"architectures": [f"{_FAMILY}{head}"]}
    return values | speech_heads.settings(config, head, objective)
