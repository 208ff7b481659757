"""Conversion of Conformer parameters to and from Hugging Face's Wav2Vec2-BERT (see `mapping`)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.interop.hf.mapping import (
    DEPTHWISE,
    GATED,
    HEADS_BIAS,
    INTO_HEADS,
    OUT_OF_HEADS,
    POINTWISE,
    SAME,
    Row,
    StateDict,
    TensorSource,
    class_names,
    ffn_multiple,
    linear,
    norm,
    require_fixed,
    write,
)
from jax_speechlm.interop.hf.mapping import sources as sources_of
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.xvector import XVectorConfig
from jax_speechlm.nn.functional import Params

_PREFIX = "wav2vec2_bert."
_MOST_CLASSES = 1 << 16  # of a head that the projection is multiplied into
_DEAD = "masked_spec_embed"  # the filler of Hugging Face's own SpecAugment, which is off


def _feed_forward(name: str) -> list[Row]:
    return [
        *norm(f"layers.{name}.norm", f"encoder.layers.{{}}.{name}_layer_norm"),
        *linear(f"layers.{name}.expand", f"encoder.layers.{{}}.{name}.intermediate_dense"),
        *linear(f"layers.{name}.contract", f"encoder.layers.{{}}.{name}.output_dense"),
    ]


_ATTENTION, _CONVOLUTION = "encoder.layers.{}.self_attn", "encoder.layers.{}.conv_module"
_ENCODER = [
    *norm("input_norm", "feature_projection.layer_norm"),
    *linear("input", "feature_projection.projection"),
    *_feed_forward("ffn1"),
    *norm("layers.attention_norm", f"{_ATTENTION}_layer_norm"),
    *linear("layers.attention.query", f"{_ATTENTION}.linear_q", INTO_HEADS, HEADS_BIAS),
    *linear("layers.attention.key", f"{_ATTENTION}.linear_k", INTO_HEADS, HEADS_BIAS),
    *linear("layers.attention.value", f"{_ATTENTION}.linear_v", INTO_HEADS, HEADS_BIAS),
    *linear("layers.attention.out", f"{_ATTENTION}.linear_out", OUT_OF_HEADS),
    Row("layers.attention.distance", f"{_ATTENTION}.distance_embedding.weight", SAME),
    *norm("layers.convolution.norm_in", f"{_CONVOLUTION}.layer_norm"),
    Row("layers.convolution.expand.kernel", f"{_CONVOLUTION}.pointwise_conv1.weight", GATED),
    Row("layers.convolution.depthwise", f"{_CONVOLUTION}.depthwise_conv.weight", DEPTHWISE),
    *norm("layers.convolution.norm_mid", f"{_CONVOLUTION}.depthwise_layer_norm"),
    Row("layers.convolution.contract.kernel", f"{_CONVOLUTION}.pointwise_conv2.weight", POINTWISE),
    *_feed_forward("ffn2"),
    *norm("layers.norm", "encoder.layers.{}.final_layer_norm"),
]
_HEAD = linear("head", "lm_head")
_CLASSIFIER = [*linear("projector", "projector"), *linear("head", "classifier")]
_OF_FRAMES = linear("head", "classifier")


def _x_vector(num_layers: int) -> list[Row]:
    layers = (linear(f"speaker.tdnn.layer{i}", f"tdnn.{i}.kernel") for i in range(num_layers))
    return [
        *linear("speaker.projector", "projector"),
        *itertools.chain.from_iterable(layers),
        *linear("speaker.embedding", "feature_extractor"),
        *linear("speaker.output", "classifier"),
        Row("speaker.speakers", "objective.weight", SAME),
    ]


def from_hugging_face(state_dict: StateDict, config: ConformerConfig) -> tuple[Params, Params | None]:
    """Reads the parameters of our `Conformer`, as arrays, from the state dict that `sources` takes.

    Returns:
      Parameters of the encoder, layers stacked, and of the CTC head (`Linear`: kernel [dim, vocab], bias), or None
      if the state dict has no head.
    """
    params = jax.tree.map(TensorSource.read, sources(state_dict, config))
    return params["encoder"], params.get("head")


def sources(state_dict: StateDict, config: ConformerConfig) -> Params:
    """Finds the places of our `Conformer`'s parameters in a `Wav2Vec2BertModel` or `Wav2Vec2BertForCTC`.

    Returns:
      `encoder`, and `head` of the latter.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays = {name.removeprefix(_PREFIX): value for name, value in state_dict.items()}
    arrays.pop(_DEAD, None)
    head = _HEAD if "lm_head.weight" in arrays else []
    tree = sources_of(arrays, _ENCODER + head, config, "Wav2Vec2-BERT")
    return {"head": tree.pop("head"), "encoder": tree} if head else {"encoder": tree}


def to_hugging_face(encoder: Params, config: ConformerConfig, head: Params | None = None) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a `Wav2Vec2BertForCTC` if `head` is given, else of a `Wav2Vec2BertModel`."""
    arrays = {_DEAD: np.zeros(config.dim, np.float32)} | write(encoder, _ENCODER, config)
    if head is None:
        return arrays
    return {_PREFIX + name: value for name, value in arrays.items()} | write({"head": head}, _HEAD, config)


def classifier_to_hugging_face(encoder: Params, config: ConformerConfig, head: Params) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a `Wav2Vec2BertForSequenceClassification`.

    Its linear map between encoder and mean, which ours does not have, is the identity.
    """
    projector = {"kernel": np.eye(config.dim, dtype=np.float32), "bias": np.zeros(config.dim, np.float32)}
    return _beside_encoder(encoder, {"projector": projector, "head": head}, _CLASSIFIER, config)


def classifier_from_hugging_face(state_dict: StateDict, config: ConformerConfig) -> tuple[Params, Params]:
    """Reads the encoder and head of our `UtteranceClassifier`; arguments and errors as in `classifier_sources`."""
    params = jax.tree.map(TensorSource.read, classifier_sources(state_dict, config))
    return params["encoder"], params["head"]


def classifier_sources(state_dict: StateDict, config: ConformerConfig) -> Params:
    """Finds the places of our `UtteranceClassifier`'s parameters in a `Wav2Vec2BertForSequenceClassification`.

    The linear map before the mean is multiplied into the head, which gives the same logits.

    Returns:
      `encoder` and `head`.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    tree = _sources_beside_encoder(state_dict, ("projector", "head"), _CLASSIFIER, config)
    shapes = {name: tree[name]["kernel"].shape for name in ("projector", "head")}
    inner = shapes["projector"][-1]
    if shapes["projector"] != (config.dim, inner) or shapes["head"] != (inner, shapes["head"][-1]) or not inner:
        raise ValueError(f"'projector.weight' and 'classifier.weight' do not fit dim={config.dim} and each other")
    if shapes["head"][-1] > _MOST_CLASSES:
        raise ValueError(
            f"'classifier.weight' is of {shapes['head'][-1]:,} classes; at most {_MOST_CLASSES:,} are read"
        )
    projector, head = jax.tree.map(TensorSource.read, (tree.pop("projector"), tree.pop("head")))
    bias = projector["bias"] @ head["kernel"] + head["bias"]
    return tree | {
        "head": {"kernel": TensorSource((projector["kernel"] @ head["kernel"],)), "bias": TensorSource((bias,))}
    }


def frames_to_hugging_face(encoder: Params, config: ConformerConfig, head: Params) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a `Wav2Vec2BertForAudioFrameClassification`."""
    return _beside_encoder(encoder, {"head": head}, _OF_FRAMES, config)


def frames_sources(state_dict: StateDict, config: ConformerConfig) -> Params:
    """Finds the places of our `FrameClassifier`, `encoder` and `head`, in that class. Errors as in `sources`."""
    return _sources_beside_encoder(state_dict, ("head",), _OF_FRAMES, config)


def x_vector_to_hugging_face(encoder: Params, config: ConformerConfig, speaker: Params) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a `Wav2Vec2BertForXVector`."""
    return _beside_encoder(encoder, {"speaker": speaker}, _x_vector(len(speaker["tdnn"])), config)


def x_vector_sources(state_dict: StateDict, config: ConformerConfig) -> Params:
    """Finds the places of our `SpeakerModel`, `encoder` and `speaker`, in that class. Errors as in `sources`."""
    num_layers = sum(name.startswith("tdnn.") and name.endswith(".kernel.weight") for name in state_dict)
    return _sources_beside_encoder(state_dict, ("speaker",), _x_vector(num_layers), config)


def _beside_encoder(
    encoder: Params, heads: Params, rows: Sequence[Row], config: ConformerConfig
) -> dict[str, np.ndarray]:
    arrays = {_PREFIX + name: value for name, value in to_hugging_face(encoder, config).items()}
    return arrays | write(heads, rows, config)


def _sources_beside_encoder(
    state_dict: StateDict, groups: Sequence[str], rows: Sequence[Row], config: ConformerConfig
) -> Params:
    arrays = {name.removeprefix(_PREFIX): value for name, value in state_dict.items()}
    arrays.pop(_DEAD, None)
    tree = sources_of(arrays, [*_ENCODER, *rows], config, "Wav2Vec2-BERT with such a head")
    heads = {name: tree.pop(name) for name in groups if name in tree}
    return {"encoder": tree} | heads


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
    """Converts a Wav2Vec2-BERT `config.json`.

    Raises:
      ValueError: the model has a form that ours does not have, such as rotary positions or an adapter.
    """
    values = completed(values)
    require_fixed(values, _FIXED | {"hidden_act": "silu"})  # the same function
    return ConformerConfig(
        ffn_multiple=ffn_multiple(values), **{ours: values[theirs] for theirs, ours in _RENAMED.items()}
    )


def headed_config_from_hugging_face(values: Mapping[str, Any]) -> ConformerConfig:
    """Converts the `config.json` of a model with a head for classes, frames or speakers on the last layer alone."""
    require_fixed(values, {"use_weighted_layer_sum": False})
    return config_from_hugging_face(values)


def config_to_hugging_face(config: ConformerConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """Returns the settings of a Wav2Vec2-BERT `config.json`; with `vocab_size`, of a `Wav2Vec2BertForCTC`."""
    renamed = {theirs: getattr(config, ours) for theirs, ours in _RENAMED.items()}
    rates = dict.fromkeys(("activation_dropout", "feat_proj_dropout", "conformer_conv_dropout"), config.dropout)
    only_here = {"intermediate_size": config.ffn_dim, "layerdrop": 0.0, "apply_spec_augment": False}
    head = {"architectures": ["Wav2Vec2BertModel"]}
    if vocab_size is not None:
        head = {"architectures": ["Wav2Vec2BertForCTC"], "vocab_size": vocab_size, "final_dropout": 0.0}
    return _FIXED | renamed | rates | only_here | head


def classifier_config_to_hugging_face(config: ConformerConfig, classes: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of the `config.json` of a `Wav2Vec2BertForSequenceClassification`."""
    return _headed_config(config, classes, "SequenceClassification", classifier_proj_size=config.dim)


def frames_config_to_hugging_face(config: ConformerConfig, classes: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of the `config.json` of a `Wav2Vec2BertForAudioFrameClassification`."""
    return _headed_config(config, classes, "AudioFrameClassification")


def x_vector_config_to_hugging_face(
    config: ConformerConfig, speakers: Sequence[str], head: XVectorConfig
) -> dict[str, Any]:
    """Returns the settings of the `config.json` of a `Wav2Vec2BertForXVector`."""
    sizes = {theirs: list(getattr(head, ours)) for theirs, ours in _TDNN.items()}
    return _headed_config(config, speakers, "XVector", **sizes, xvector_output_dim=head.dim)


def x_vector_config_from_hugging_face(values: Mapping[str, Any]) -> XVectorConfig:
    """Converts the settings of the head in the `config.json` of a `Wav2Vec2BertForXVector`.

    Raises:
      ValueError: the layers have different numbers of a setting.
    """
    values = completed(values)
    sizes = {ours: tuple(values[theirs]) for theirs, ours in _TDNN.items()}
    return XVectorConfig(**sizes, dim=values["xvector_output_dim"])


def _headed_config(config: ConformerConfig, classes: Sequence[str], head: str, **settings: Any) -> dict[str, Any]:
    form = {"architectures": [f"Wav2Vec2BertFor{head}"], "use_weighted_layer_sum": False}
    return config_to_hugging_face(config) | form | settings | class_names(classes)
