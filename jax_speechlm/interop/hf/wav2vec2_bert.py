"""Conversion of Conformer parameters to and from Hugging Face's Wav2Vec2-BERT (see `mapping`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_speechlm.interop.hf import mapping
from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.interop.hf.mapping import Row, StateDict, TensorSource, linear, norm
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.xvector import XVectorConfig
from jax_speechlm.nn.functional import Params

MODEL, CTC = "Wav2Vec2BertModel", "Wav2Vec2BertForCTC"
CLASSIFIER, FRAMES = "Wav2Vec2BertForSequenceClassification", "Wav2Vec2BertForAudioFrameClassification"
X_VECTOR = "Wav2Vec2BertForXVector"
HEADED = CLASSIFIER, FRAMES, X_VECTOR
"""Classes with a head for classes, frames or speakers, whose exports keep all parameters."""

_PREFIX = "wav2vec2_bert."  # of an encoder with a head
_MOST_CLASSES = 1 << 16  # of a head that the projection is multiplied into
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
_HEADS = {
    MODEL: [],
    CTC: linear("head", "lm_head"),
    CLASSIFIER: linear("projector", "projector") + linear("head", "classifier"),
    FRAMES: linear("head", "classifier"),
}


def sources(state_dict: StateDict, config: ConformerConfig, architecture: str | None = None) -> Params:
    """Finds the places of our parameters, `encoder` and perhaps `head` or `speaker`, in a class's state dict.

    A classifier's linear map before the mean is multiplied into its head, which gives the same logits.

    Args:
      architecture: by default the class with a CTC head if that is there, else the one without a head.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays = {name.removeprefix(_PREFIX): value for name, value in state_dict.items()}
    arrays.pop(_DEAD, None)
    architecture = architecture or (CTC if "lm_head.weight" in arrays else MODEL)
    num_layers = sum(name.startswith("tdnn.") and name.endswith(".kernel.weight") for name in arrays)
    tree = mapping.sources(arrays, _ENCODER + _head(architecture, num_layers), config, architecture)
    return _with_projected_head(tree, config) if architecture == CLASSIFIER else tree


def to_hugging_face(params: Params, config: ConformerConfig, architecture: str | None = None) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a class of Hugging Face's, by default with a CTC head if there is a `head`.

    A classifier's linear map between encoder and mean, which ours does not have, is the identity.
    """
    architecture = architecture or (CTC if "head" in params else MODEL)
    arrays = {_DEAD: np.zeros(config.dim, np.float32)} | mapping.write(params, _ENCODER, config)
    if architecture == MODEL:
        return arrays
    identity = {"kernel": np.eye(config.dim, dtype=np.float32), "bias": np.zeros(config.dim, np.float32)}
    rows = _head(architecture, len(params["speaker"]["tdnn"]) if "speaker" in params else 0)
    heads = mapping.write(params | {"projector": identity}, rows, config)
    return {_PREFIX + name: value for name, value in arrays.items()} | heads


def _head(architecture: str, num_layers: int) -> list[Row]:
    """Returns the rows of a class's head, which has `num_layers` layers over time if it is an x-vector's."""
    if architecture != X_VECTOR:
        return _HEADS[architecture]
    return [
        *linear("speaker.projector", "projector"),
        *(row for i in range(num_layers) for row in linear(f"speaker.tdnn.layer{i}", f"tdnn.{i}.kernel")),
        *linear("speaker.embedding", "feature_extractor"),
        *linear("speaker.output", "classifier"),
        Row("speaker.speakers", "objective.weight", mapping.SAME),
    ]


def _with_projected_head(tree: Params, config: ConformerConfig) -> Params:
    """Returns a classifier's sources with the projector multiplied into the head."""
    shapes = {name: tree[name]["kernel"].shape for name in ("projector", "head")}
    inner = shapes["projector"][-1]
    if shapes["projector"] != (config.dim, inner) or shapes["head"] != (inner, shapes["head"][-1]) or not inner:
        raise ValueError(f"'projector.weight' and 'classifier.weight' do not fit dim={config.dim} and each other")
    if shapes["head"][-1] > _MOST_CLASSES:
        raise ValueError(
            f"'classifier.weight' is of {shapes['head'][-1]:,} classes; at most {_MOST_CLASSES:,} are read"
        )
    projector, head = mapping.read(tree["projector"]), mapping.read(tree["head"])
    kernel, bias = projector["kernel"] @ head["kernel"], projector["bias"] @ head["kernel"] + head["bias"]
    return {"encoder": tree["encoder"], "head": {"kernel": TensorSource((kernel,)), "bias": TensorSource((bias,))}}


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
_TDNN = {"tdnn_dim": "channels", "tdnn_kernel": "kernels", "tdnn_dilation": "dilations"}
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


def headed_config_from_hugging_face(values: Mapping[str, Any]) -> ConformerConfig:
    """Converts the `config.json` of a model with a head for classes, frames or speakers on the last layer alone."""
    mapping.require_fixed(values, {"use_weighted_layer_sum": False})
    return config_from_hugging_face(values)


def config_to_hugging_face(config: ConformerConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """Returns the settings of a Wav2Vec2-BERT `config.json`; with `vocab_size`, of a `Wav2Vec2BertForCTC`."""
    renamed = {name: getattr(config, setting) for name, setting in _RENAMED.items()}
    rates = dict.fromkeys(("activation_dropout", "feat_proj_dropout", "conformer_conv_dropout"), config.dropout)
    only_here = {"intermediate_size": config.ffn_dim, "layerdrop": 0.0, "apply_spec_augment": False}
    head = {"architectures": [MODEL]}
    if vocab_size is not None:
        head = {"architectures": [CTC], "vocab_size": vocab_size, "final_dropout": 0.0}
    return _FIXED | renamed | rates | only_here | head


def headed_config_to_hugging_face(
    config: ConformerConfig, architecture: str, classes: Sequence[str], x_vector: XVectorConfig | None = None
) -> dict[str, Any]:
    """Returns the settings of the `config.json` of a model with a head for classes, frames or speakers."""
    settings: dict[str, Any] = {"architectures": [architecture], "use_weighted_layer_sum": False}
    if architecture == CLASSIFIER:
        settings["classifier_proj_size"] = config.dim
    if x_vector is not None:
        settings |= {name: list(getattr(x_vector, setting)) for name, setting in _TDNN.items()}
        settings["xvector_output_dim"] = x_vector.dim
    return config_to_hugging_face(config) | settings | mapping.class_names(classes)


def x_vector_config_from_hugging_face(values: Mapping[str, Any]) -> XVectorConfig:
    """Converts the settings of the head in the `config.json` of a `Wav2Vec2BertForXVector`."""
    values = completed(values)
    sizes = {setting: tuple(values[name]) for name, setting in _TDNN.items()}
    return XVectorConfig(**sizes, dim=values["xvector_output_dim"])
