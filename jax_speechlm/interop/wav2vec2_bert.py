"""Conformer parameters to and from Hugging Face's Wav2Vec2-BERT, as dicts of numpy arrays; torch is not needed.

One table names each parameter on both sides and how its array is laid out; both directions read it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.functional import Params

StateDict = Mapping[str, np.ndarray]

_PREFIX = "wav2vec2_bert."
_DEAD = "masked_spec_embed"  # the filler of Hugging Face's own SpecAugment: unused where that is off


class _Layout(NamedTuple):
    """How an array goes to Hugging Face's shape; the way back is to the shape on our side."""

    to_hf: Callable[[np.ndarray, ConformerConfig], np.ndarray]
    from_hf: Callable[[np.ndarray, ConformerConfig], np.ndarray]


def _heads(config: ConformerConfig) -> tuple[int, int]:
    return config.num_heads, config.dim // config.num_heads


_SAME = _Layout(lambda x, c: x, lambda x, c: x)
_TRANSPOSED = _Layout(lambda x, c: x.T, lambda x, c: x.T)
_INTO_HEADS = _Layout(lambda x, c: x.reshape(c.dim, c.dim).T, lambda x, c: x.T.reshape(c.dim, *_heads(c)))
_HEADS_BIAS = _Layout(lambda x, c: x.reshape(c.dim), lambda x, c: x.reshape(_heads(c)))
_OUT_OF_HEADS = _Layout(lambda x, c: x.reshape(c.dim, c.dim).T, lambda x, c: x.T.reshape(*_heads(c), c.dim))
# Convolution weights there are [out, in, taps].
_POINTWISE = _Layout(lambda x, c: x.T[..., None], lambda x, c: x[..., 0].T)
_GATED = _Layout(
    lambda x, c: x.reshape(c.dim, 2 * c.dim).T[..., None], lambda x, c: x[..., 0].T.reshape(c.dim, 2, c.dim)
)
_DEPTHWISE = _Layout(lambda x, c: x.T[:, None, :], lambda x, c: x[:, 0, :].T)

_INPUT = [
    ("input_norm.scale", "feature_projection.layer_norm.weight", _SAME),
    ("input_norm.bias", "feature_projection.layer_norm.bias", _SAME),
    ("input.kernel", "feature_projection.projection.weight", _TRANSPOSED),
    ("input.bias", "feature_projection.projection.bias", _SAME),
]
_HEAD = [("kernel", "lm_head.weight", _TRANSPOSED), ("bias", "lm_head.bias", _SAME)]


def _norm(ours: str, theirs: str) -> list[tuple[str, str, _Layout]]:
    return [(f"{ours}.scale", f"{theirs}.weight", _SAME), (f"{ours}.bias", f"{theirs}.bias", _SAME)]


def _linear(ours: str, theirs: str, kernel: _Layout, bias: _Layout) -> list[tuple[str, str, _Layout]]:
    return [(f"{ours}.kernel", f"{theirs}.weight", kernel), (f"{ours}.bias", f"{theirs}.bias", bias)]


def _feed_forward(name: str) -> list[tuple[str, str, _Layout]]:
    return [
        *_norm(f"{name}.norm", f"{name}_layer_norm"),
        *_linear(f"{name}.expand", f"{name}.intermediate_dense", _TRANSPOSED, _SAME),
        *_linear(f"{name}.contract", f"{name}.output_dense", _TRANSPOSED, _SAME),
    ]


_LAYER = [
    *_feed_forward("ffn1"),
    *_norm("attention_norm", "self_attn_layer_norm"),
    *_linear("attention.query", "self_attn.linear_q", _INTO_HEADS, _HEADS_BIAS),
    *_linear("attention.key", "self_attn.linear_k", _INTO_HEADS, _HEADS_BIAS),
    *_linear("attention.value", "self_attn.linear_v", _INTO_HEADS, _HEADS_BIAS),
    *_linear("attention.out", "self_attn.linear_out", _OUT_OF_HEADS, _SAME),
    ("attention.distance", "self_attn.distance_embedding.weight", _SAME),
    *_norm("convolution.norm_in", "conv_module.layer_norm"),
    ("convolution.expand.kernel", "conv_module.pointwise_conv1.weight", _GATED),
    ("convolution.depthwise", "conv_module.depthwise_conv.weight", _DEPTHWISE),
    *_norm("convolution.norm_mid", "conv_module.depthwise_layer_norm"),
    ("convolution.contract.kernel", "conv_module.pointwise_conv2.weight", _POINTWISE),
    *_feed_forward("ffn2"),
    *_norm("norm", "final_layer_norm"),
]


def from_hugging_face(state_dict: StateDict, config: ConformerConfig) -> tuple[Params, Params | None]:
    """Parameters of our `Conformer` from a `Wav2Vec2BertModel` or `Wav2Vec2BertForCTC` state dict.

    Returns:
      The encoder's parameters, layers stacked, and those of the CTC head (`Linear`: kernel [dim, vocab], bias), or None
      where the state dict has no head.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    rest = {name.removeprefix(_PREFIX): np.asarray(value) for name, value in state_dict.items()}
    rest.pop(_DEAD, None)

    def take(name: str, layout: _Layout) -> np.ndarray:
        if name not in rest:
            raise ValueError(f"the state dict has no {name!r}: is it a Wav2Vec2-BERT of {config.num_layers} layers?")
        value = rest.pop(name)
        try:
            ours = layout.from_hf(value, config)
            matches = layout.to_hf(ours, config).shape == value.shape
        except (ValueError, IndexError):
            matches = False
        if not matches:
            raise ValueError(f"{name!r} has shape {value.shape}, which does not fit dim={config.dim} of the config")
        return ours

    encoder: Params = {}
    for ours, theirs, layout in _INPUT:
        _put(encoder, ours, take(theirs, layout))
    for ours, theirs, layout in _LAYER:
        layers = [take(f"encoder.layers.{i}.{theirs}", layout) for i in range(config.num_layers)]
        _put(encoder, f"layers.{ours}", np.stack(layers))
    head = {ours: take(theirs, layout) for ours, theirs, layout in _HEAD} if "lm_head.weight" in rest else None
    if rest:
        raise ValueError(f"the state dict holds arrays that the config has no place for, such as {min(rest)!r}")
    return encoder, head


def to_hugging_face(encoder: Params, config: ConformerConfig, head: Params | None = None) -> dict[str, np.ndarray]:
    """The float32 state dict of a `Wav2Vec2BertForCTC` if `head` is given, else of a `Wav2Vec2BertModel`."""
    prefix = "" if head is None else _PREFIX
    arrays = {prefix + _DEAD: np.zeros(config.dim, np.float32)}
    for ours, theirs, layout in _INPUT:
        arrays[prefix + theirs] = layout.to_hf(_get(encoder, ours), config)
    for ours, theirs, layout in _LAYER:
        for i, value in enumerate(_get(encoder, f"layers.{ours}")):
            arrays[f"{prefix}encoder.layers.{i}.{theirs}"] = layout.to_hf(value, config)
    for ours, theirs, layout in _HEAD if head is not None else ():
        arrays[theirs] = layout.to_hf(_get(head, ours), config)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}


# Settings of a Wav2Vec2BertConfig with a name of our own, and those that our one form fixes.
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
    """The `ConformerConfig` of a Wav2Vec2-BERT `config.json`.

    Raises:
      ValueError: the model has a form that ours has not, such as rotary positions or an adapter, or lacks a setting.
    """
    for name, only in _FIXED.items():
        if values.get(name, only) != only:
            raise ValueError(f"config.json: {name}={values[name]!r} has no counterpart here; only {only!r} has")
    missing = [name for name in (*_RENAMED, "intermediate_size") if name not in values]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}; write it with the model's save_pretrained")
    multiple, remainder = divmod(values["intermediate_size"], values["hidden_size"])
    if remainder:
        raise ValueError("config.json: intermediate_size must be a multiple of hidden_size")
    return ConformerConfig(ffn_multiple=multiple, **{ours: values[theirs] for theirs, ours in _RENAMED.items()})


def config_to_hugging_face(config: ConformerConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """The settings of a Wav2Vec2-BERT `config.json`; with `vocab_size`, of a `Wav2Vec2BertForCTC`."""
    renamed = {theirs: getattr(config, ours) for theirs, ours in _RENAMED.items()}
    rates = dict.fromkeys(("activation_dropout", "feat_proj_dropout", "conformer_conv_dropout"), config.dropout)
    only_here = {"intermediate_size": config.ffn_multiple * config.dim, "layerdrop": 0.0, "apply_spec_augment": False}
    head = {"architectures": ["Wav2Vec2BertModel"]}
    if vocab_size is not None:
        head = {"architectures": ["Wav2Vec2BertForCTC"], "vocab_size": vocab_size, "final_dropout": 0.0}
    return _FIXED | renamed | rates | only_here | head


def _get(tree: Params, path: str) -> np.ndarray:
    for name in path.split("."):
        tree = tree[name]
    return np.asarray(tree)


def _put(tree: Params, path: str, value: np.ndarray) -> None:
    *parents, last = path.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value
