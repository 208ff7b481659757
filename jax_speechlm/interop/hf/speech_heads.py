"""Heads of Hugging Face's speech encoders: CTC, classes of utterances and of frames, x-vectors (see `mapping`)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jax_speechlm.interop.hf import mapping
from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.interop.hf.mapping import Row, TensorSource, linear
from jax_speechlm.models.xvector import XVectorConfig
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.heads.base import HeadConfig

Head = Literal[
    "Model", "ForPreTraining", "ForCTC", "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector"
]
"""What follows the name of an encoder's family in the name of a class; "Model" is the encoder alone."""

HEADED: tuple[Head, ...] = ("ForSequenceClassification", "ForAudioFrameClassification", "ForXVector")
"""Heads for classes, frames or speakers."""
WHOLE: tuple[Head, ...] = (*HEADED, "ForPreTraining")
"""Heads whose exports keep all parameters."""

_MOST_CLASSES = 1 << 16  # of a head that the projection is multiplied into
_ROWS = {
    "Model": [],
    "ForCTC": linear("head", "lm_head"),
    "ForSequenceClassification": linear("projector", "projector") + linear("head", "classifier"),
    "ForAudioFrameClassification": linear("head", "classifier"),
}
_MIX = Row("mix", "layer_weights", mapping.SAME)
_TDNN = {"tdnn_dim": "channels", "tdnn_kernel": "kernels", "tdnn_dilation": "dilations"}


def rows(head: Head, num_layers: int = 0) -> list[Row]:
    """Returns the rows of a head, which has `num_layers` layers over time if it is an x-vector's."""
    if head != "ForXVector":
        return _ROWS[head]
    return [
        *linear("speaker.projector", "projector"),
        *(row for i in range(num_layers) for row in linear(f"speaker.tdnn.layer{i}", f"tdnn.{i}.kernel")),
        *linear("speaker.embedding", "feature_extractor"),
        *linear("speaker.output", "classifier"),
        Row("speaker.speakers", "objective.weight", mapping.SAME),
    ]


def sources(arrays: mapping.StateDict, encoder: Sequence[Row], config: Any, head: Head, kind: str) -> Params:
    """Finds the places of an encoder's and its head's parameters, as `mapping.sources`.

    A classifier's linear map before the mean is multiplied into its head, which gives the same logits.
    """
    num_layers = sum(name.startswith("tdnn.") and name.endswith(".kernel.weight") for name in arrays)
    mix = [_MIX] * (head in HEADED and _MIX.name in arrays)
    tree = mapping.sources(arrays, [*encoder, *mix, *rows(head, num_layers)], config, kind)
    return _with_projected_head(tree, config) if head == "ForSequenceClassification" else tree


def write(params: Params, config: Any, head: Head) -> dict[str, np.ndarray]:
    """Returns the state dict of a head.

    A classifier's linear map between encoder and mean, which ours does not have, is the identity.
    """
    identity = {"kernel": np.eye(config.dim, dtype=np.float32), "bias": np.zeros(config.dim, np.float32)}
    head_rows = [_MIX] * ("mix" in params) + rows(head, len(params["speaker"]["tdnn"]) if "speaker" in params else 0)
    return mapping.write(params | {"projector": identity}, head_rows, config)


def settings(config: Any, head: Head, objective: HeadConfig) -> dict[str, Any]:
    """Returns the settings of a head for classes, frames or speakers, in `config.json`."""
    values: dict[str, Any] = {"use_weighted_layer_sum": objective.weighted_layers}
    if head == "ForSequenceClassification":
        values["classifier_proj_size"] = config.dim
    if head == "ForXVector":
        values |= {name: list(getattr(objective.head, setting)) for name, setting in _TDNN.items()}
        values["xvector_output_dim"] = objective.head.dim
    return values | mapping.class_names(objective.classes)


def x_vector_config_from_hugging_face(values: Mapping[str, Any]) -> XVectorConfig:
    """Converts the settings of an x-vector's head in a `config.json`."""
    values = completed(values)
    sizes = {setting: tuple(values[name]) for name, setting in _TDNN.items()}
    return XVectorConfig(**sizes, dim=values["xvector_output_dim"])


def _with_projected_head(tree: Params, config: Any) -> Params:
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
    kept = {name: part for name, part in tree.items() if name not in shapes}
    return kept | {"head": {"kernel": TensorSource((kernel,)), "bias": TensorSource((bias,))}}
