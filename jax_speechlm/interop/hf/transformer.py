"""Transformer parameters to and from Hugging Face's Llama, Qwen3, ModernBERT, BERT and RoBERTa (see `mapping`).

Which of them a model is follows from its config: causal without or with norms on queries and keys; or looking both
ways, with rotary positions or learnt ones. Dropout rates are left out: Hugging Face's act in other places than ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_speechlm.interop.hf import mapping
from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.interop.hf.mapping import HEADS_BIAS, INTO_HEADS, OUT_OF_HEADS, SAME, TRANSPOSED, Row, StateDict
from jax_speechlm.models.transformer_config import FORMS, LearnedPositions, TransformerConfig
from jax_speechlm.nn.functional import Params

_ROWS = (  # our name, the layout, the names in Llama and Qwen3 and in ModernBERT
    ("embedding", SAME, "embed_tokens", "embeddings.tok_embeddings.weight"),
    ("layers.attention_norm.scale", SAME, "layers.{}.input_layernorm", "layers.{}.attn_norm.weight"),
    ("layers.attention.query.kernel", INTO_HEADS, "layers.{}.self_attn.q_proj", "layers.{}.attn.Wqkv.weight/0"),
    ("layers.attention.key.kernel", INTO_HEADS, "layers.{}.self_attn.k_proj", "layers.{}.attn.Wqkv.weight/1"),
    ("layers.attention.value.kernel", INTO_HEADS, "layers.{}.self_attn.v_proj", "layers.{}.attn.Wqkv.weight/2"),
    ("layers.attention.out.kernel", OUT_OF_HEADS, "layers.{}.self_attn.o_proj", "layers.{}.attn.Wo.weight"),
    ("layers.ffn_norm.scale", SAME, "layers.{}.post_attention_layernorm", "layers.{}.mlp_norm.weight"),
    ("layers.ffn.gate.kernel", TRANSPOSED, "layers.{}.mlp.gate_proj", "layers.{}.mlp.Wi.weight/0"),
    ("layers.ffn.up.kernel", TRANSPOSED, "layers.{}.mlp.up_proj", "layers.{}.mlp.Wi.weight/1"),
    ("layers.ffn.down.kernel", TRANSPOSED, "layers.{}.mlp.down_proj", "layers.{}.mlp.Wo.weight"),
    ("norm.scale", SAME, "norm", "final_norm.weight"),
)
_CAUSAL = [Row(path, f"model.{causal}.weight", layout) for path, layout, causal, _ in _ROWS]
_QUERY_KEY_NORM = [
    Row("layers.attention.query_norm.scale", "model.layers.{}.self_attn.q_norm.weight", SAME),
    Row("layers.attention.key_norm.scale", "model.layers.{}.self_attn.k_norm.weight", SAME),
]
_BOTH_WAYS = [Row(path, f"model.{both_ways}", layout) for path, layout, _, both_ways in _ROWS] + [
    Row("prediction.linear.kernel", "head.dense.weight", TRANSPOSED),
    Row("prediction.norm.scale", "head.norm.weight", SAME),
    Row("prediction.bias", "decoder.bias", SAME),
]
_HEAD = {"bert": "cls.predictions.", "roberta": "lm_head."}
"""Prefixes of the arrays of the head, by `model_type`."""

_PREDICTION = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm"),
}
# Parts of a pretrained model that its masked LM has no use for, and buffers that older versions saved.
_UNUSED = "{}.pooler.", "cls.seq_relationship.", "{}.embeddings.position_ids", "{}.embeddings.token_type_ids"
_OLD = {".gamma": ".weight", ".beta": ".bias"}  # as the first releases called them
_CLASSIFIER = mapping.linear("head", "classifier")
_VOCABULARY_MAP = "decoder.weight", "decoder.bias"
_FUSED = {"Wqkv.weight": 3, "Wi.weight": 2}  # name -> number of our arrays that are concatenated in it

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "modernbert": "ModernBertForMaskedLM",
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
}
CLASSIFIER = "ModernBertForSequenceClassification"
TIED = {"lm_head.weight", "decoder.weight"}
TIED |= {f"{prefix}decoder.{part}" for prefix in _HEAD.values() for part in ("weight", "bias")}
"""Names of arrays that are other arrays of a tied model once more; a file holds them once."""


def sources(state_dict: StateDict, config: TransformerConfig) -> Params:
    """Finds the places of our `Transformer`'s parameters in the state dict of one of Hugging Face's.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies, or no class has this form.
    """
    model_type = _model_type(config)
    rows, head = _rows(config, model_type)
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    embedding = rows[0].name
    if model_type in _HEAD:
        arrays = without_unused(arrays)
    if config.tied and head in arrays:  # the two are one array, saved under either name or both
        table = arrays.pop(head)
        if not np.array_equal(arrays.setdefault(embedding, table), table):
            raise ValueError(
                f"{head!r} is not {embedding!r}, but config.json ties them: set tie_word_embeddings to false"
            )
    if model_type == "modernbert":
        arrays = _split(arrays)
    return mapping.sources(arrays, rows, config, ARCHITECTURES[model_type])


def to_hugging_face(params: Params, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of the class of Hugging Face's that has this form; a ValueError if none has."""
    model_type = _model_type(config)
    rows, head = _rows(config, model_type)
    arrays = mapping.write(params, rows, config)
    if model_type == "modernbert":
        arrays = _join(arrays)
    elif model_type in _HEAD:
        arrays[f"{_HEAD[model_type]}decoder.bias"] = arrays[f"{_HEAD[model_type]}bias"]
    if config.tied:
        arrays[head] = arrays[rows[0].name]
    return arrays


def classifier_to_hugging_face(params: Params, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a `ModernBertForSequenceClassification`, which has no vocabulary map."""
    arrays = to_hugging_face(params["transformer"], config)
    arrays = {name: value for name, value in arrays.items() if name not in _VOCABULARY_MAP}
    return arrays | mapping.write(params, _CLASSIFIER, config)


def without_vocabulary_map(params: Params) -> Params:
    """Returns a text classifier's transformer as it is after an import of that class: unused parameters are zeros."""
    bias = np.zeros_like(params["prediction"]["bias"])
    untied = {"untied": np.zeros_like(params["untied"])} if "untied" in params else {}
    return params | {"prediction": params["prediction"] | {"bias": bias}} | untied


def classifier_sources(state_dict: StateDict, config: TransformerConfig) -> Params:
    """Finds our parameters, `transformer` and `head`, in a `ModernBertForSequenceClassification`.

    Ours has a vocabulary map, which it does not use; apart from a tied embedding its parameters are zeros. Raises
    ValueError as `sources` does.
    """
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    head = {row.name: arrays.pop(row.name) for row in _CLASSIFIER if row.name in arrays}
    table = arrays.get(_BOTH_WAYS[0].name, np.zeros((0, 0), np.float32))
    if table.ndim != 2 or table.shape != (len(table), config.dim):
        raise ValueError(f"{_BOTH_WAYS[0].name!r} is missing, or has another shape than [ids, {config.dim}]")
    arrays["decoder.bias"] = np.zeros(len(table), table.dtype)
    if not config.tied:
        arrays["decoder.weight"] = np.zeros_like(table)
    return {"transformer": sources(arrays, config)} | mapping.sources(head, _CLASSIFIER, config, CLASSIFIER)


def classifier_config_to_hugging_face(config: TransformerConfig) -> dict[str, Any]:
    """Returns the settings in which the `config.json` of a `ModernBertForSequenceClassification` differs."""
    if (model_type := _model_type(config)) != "modernbert":
        raise ValueError(
            f"it classifies texts by the mean of its hidden states, as only {CLASSIFIER} does; this transformer "
            f"has the form of {ARCHITECTURES[model_type]}. Export the language model that it was started from"
        )
    return {"architectures": [CLASSIFIER], "classifier_pooling": "mean"}


def _rows(config: TransformerConfig, model_type: str) -> tuple[list[Row], str]:
    """Returns the table, and the name of the vocabulary map, which only an untied model has a row for."""
    if model_type in _HEAD:
        rows, head = _learnt_rows(model_type, config.num_layers), f"{_HEAD[model_type]}decoder.weight"
    elif model_type == "modernbert":
        # Our first layer's attention norm is theirs on the embeddings.
        norms = [f"model.layers.{i}.attn_norm.weight" for i in range(1, config.num_layers)]
        first_norm = Row(_BOTH_WAYS[1].path, ["model.embeddings.norm.weight", *norms], SAME)
        rows, head = [_BOTH_WAYS[0], first_norm, *_BOTH_WAYS[2:]], "decoder.weight"
    else:
        rows, head = _CAUSAL + (_QUERY_KEY_NORM if model_type == "qwen3" else []), "lm_head.weight"
    return rows if config.tied else [*rows, Row("untied", head, SAME)], head


def _learnt_rows(model_type: str, num_layers: int) -> list[Row]:
    """Returns the table of "bert" or "roberta", whose positions are learnt, the embedding first.

    Their norms follow attention and feed-forward, and the embeddings; ours precede these, on the same residual stream.
    So our first attention norm is their norm of the embeddings, our other attention norms are the final norms of the
    layers before, and our last norm is the final norm of their last layer.
    """
    layer, (dense, prediction_norm) = f"{model_type}.encoder.layer.{{}}.", _PREDICTION[model_type]
    norms = [f"{model_type}.embeddings.LayerNorm"]
    norms += [f"{layer.format(i)}output.LayerNorm" for i in range(num_layers)]
    return [
        Row("embedding", f"{model_type}.embeddings.word_embeddings.weight", SAME),
        Row("position", f"{model_type}.embeddings.position_embeddings.weight", SAME),
        Row("token_type", f"{model_type}.embeddings.token_type_embeddings.weight", SAME),
        Row("prediction.bias", f"{_HEAD[model_type]}bias", SAME),
        *mapping.linear("layers.attention.query", f"{layer}attention.self.query", INTO_HEADS, HEADS_BIAS),
        *mapping.linear("layers.attention.key", f"{layer}attention.self.key", INTO_HEADS, HEADS_BIAS),
        *mapping.linear("layers.attention.value", f"{layer}attention.self.value", INTO_HEADS, HEADS_BIAS),
        *mapping.linear("layers.attention.out", f"{layer}attention.output.dense", OUT_OF_HEADS),
        *mapping.linear("layers.ffn.up", f"{layer}intermediate.dense"),
        *mapping.linear("layers.ffn.down", f"{layer}output.dense"),
        *mapping.linear("prediction.linear", dense),
        Row("layers.attention_norm.scale", [f"{name}.weight" for name in norms[:-1]], SAME),
        Row("layers.attention_norm.bias", [f"{name}.bias" for name in norms[:-1]], SAME),
        *mapping.norm("layers.ffn_norm", f"{layer}attention.output.LayerNorm"),
        *mapping.norm("norm", norms[-1]),
        *mapping.norm("prediction.norm", prediction_norm),
    ]


def without_unused(arrays: StateDict) -> dict[str, np.ndarray]:
    """Returns a saved model's arrays under today's names, without the arrays that a masked LM does not use."""
    renamed = {}
    unused = tuple(prefix.format(model_type) for prefix in _UNUSED for model_type in _HEAD)
    for name, value in arrays.items():
        for old, new in _OLD.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if not name.startswith(unused):
            renamed[name] = value
    for prefix in _HEAD.values():
        again = renamed.pop(f"{prefix}decoder.bias", None)
        if again is not None and not np.array_equal(renamed.setdefault(f"{prefix}bias", again), again):
            raise ValueError(f"{prefix}bias is not {prefix}decoder.bias: they are one array in the model")
    return renamed


def _split(arrays: StateDict) -> dict[str, np.ndarray]:
    """Splits fused arrays, into "name/part"."""
    parts: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        num = next((num for fused, num in _FUSED.items() if name.endswith(fused)), 1)
        fits = num > 1 and value.ndim and len(value) % num == 0
        parts |= {f"{name}/{i}": part for i, part in enumerate(np.split(value, num))} if fits else {name: value}
    return parts


def _join(parts: StateDict) -> dict[str, np.ndarray]:
    arrays: dict[str, list[np.ndarray]] = {}
    for name, value in parts.items():
        arrays.setdefault(name.partition("/")[0], []).append(value)
    return {name: np.concatenate(values) if len(values) > 1 else values[0] for name, values in arrays.items()}


# Settings of a config.json with a name of our own, and settings that are constant in our form.
_RENAMED = {
    "hidden_size": "dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_dim",
    "tie_word_embeddings": "tied",
}
_ABSOLUTE = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_FIXED = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "qwen3": {"hidden_act": "silu", "attention_bias": False},
    "modernbert": {
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
    },
    "bert": _ABSOLUTE,
    "roberta": _ABSOLUTE,
}
_FORM = FORMS | {"roberta": FORMS["bert"]}  # the same on our side
# Settings that have a value with others, and that are None here.
_NEVER = {
    "llama": ("positions", "window"),
    "qwen3": ("positions", "local_rope_theta"),
    "modernbert": ("positions",),
    "bert": ("window",),
    "roberta": ("window",),
}
_EPSILON = {"modernbert": "norm_eps"} | dict.fromkeys(_HEAD, "layer_norm_eps")  # of the others: rms_norm_eps
_FULL, _SLIDING = "full_attention", "sliding_attention"


def config_from_hugging_face(values: Mapping[str, Any]) -> TransformerConfig:
    """Converts a `config.json`.

    Raises:
      ValueError: the model has another type or a form that ours does not have, such as scaled rotary positions.
    """
    values = completed(values)
    model_type = values.get("model_type")
    if model_type not in _FORM:
        raise ValueError(f"config.json: model_type={model_type!r} has no counterpart here; {', '.join(_FORM)} have")
    mapping.require_fixed(values, _FIXED[model_type])
    settings = _FORM[model_type] | {setting: values[name] for name, setting in _RENAMED.items()}
    settings |= {"norm_epsilon": values[_EPSILON.get(model_type, "rms_norm_eps")]} | _heads(values, model_type)
    places = _learnt_positions(values, model_type) if model_type in _HEAD else _attention_from(values, model_type)
    return TransformerConfig(**settings, **places)


def config_to_hugging_face(config: TransformerConfig, vocab_size: int) -> dict[str, Any]:
    """Returns the settings of the `config.json` of the class that has this form; raises ValueError if none has.

    Token 0 is padding, unless learnt positions imply another; the caller adds the tokens that begin and end a text.
    """
    model_type = _model_type(config)
    settings = {name: getattr(config, setting) for name, setting in _RENAMED.items()} | _FIXED[model_type]
    settings |= {"model_type": model_type, "architectures": [ARCHITECTURES[model_type]], "vocab_size": vocab_size}
    settings |= dict.fromkeys(("bos_token_id", "eos_token_id"), None) | {"pad_token_id": 0}
    if model_type in _HEAD:
        learnt = config.positions
        settings |= {"layer_norm_eps": config.norm_epsilon, "max_position_embeddings": learnt.size}
        settings |= {"type_vocab_size": learnt.token_types}
        return settings | ({"pad_token_id": learnt.first - 1} if model_type == "roberta" else {})
    types = [_FULL if sees_all else _SLIDING for sees_all in config.sees_all]
    if model_type == "modernbert":
        theta = {_FULL: config.rope_theta, _SLIDING: config.local_rope_theta or config.rope_theta}
        rope = {name: {"rope_type": "default", "rope_theta": value} for name, value in theta.items()}
        settings |= {"norm_eps": config.norm_epsilon, "cls_token_id": None, "sep_token_id": None}
        settings |= {"rope_parameters": rope, "layer_types": types}
        return settings | ({} if config.window is None else {"local_attention": 2 * config.window})
    settings |= {"rms_norm_eps": config.norm_epsilon, "num_key_value_heads": config.num_kv_heads}
    settings |= {"head_dim": config.head_dim, "rope_theta": config.rope_theta}
    settings |= {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    if config.window is None:
        return settings
    return settings | {"use_sliding_window": True, "sliding_window": config.window + 1, "layer_types": types}


def _model_type(config: TransformerConfig) -> str:
    """Returns the `model_type` that has the form of a config; a ValueError names a setting that none has."""
    if config.causal:
        model_type = "qwen3" if config.query_key_norm else "llama"
    elif config.positions is None:
        model_type = "modernbert"
    else:
        model_type = "roberta" if config.positions.first else "bert"
    form = dict(_FORM[model_type])
    if not config.causal:
        form |= {"num_kv_heads": config.num_heads, "head_dim": config.dim // config.num_heads}
    form |= dict.fromkeys(_NEVER[model_type])
    for name, only in form.items():
        if getattr(config, name) != only:
            what = ARCHITECTURES[model_type]
            raise ValueError(f"{what} has {name}={only!r} only; this model has {name}={getattr(config, name)!r}")
    if model_type in _HEAD and not config.positions.token_types:
        raise ValueError(f"{ARCHITECTURES[model_type]} has token types; this model has positions.token_types=0")
    return model_type


def _heads(values: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    heads = values["num_attention_heads"]
    width = values["hidden_size"] // heads
    if model_type in ("llama", "qwen3"):
        if values["head_dim"] is None and model_type == "qwen3":
            raise ValueError("config.json: head_dim=None is not possible in Qwen3: remove it to have the class's 128")
        return {"num_kv_heads": values["num_key_value_heads"] or heads, "head_dim": values["head_dim"] or width}
    if model_type == "modernbert" and values.get("head_dim") not in (None, width):  # of its rotary angles alone
        raise ValueError(f"config.json: head_dim={values['head_dim']} is not hidden_size over num_attention_heads")
    return {"num_kv_heads": heads, "head_dim": width}


def _learnt_positions(values: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    first = 0
    if model_type == "roberta":
        if values["pad_token_id"] is None:
            raise ValueError("config.json: pad_token_id=None is not possible in RoBERTa: its positions begin behind it")
        first = values["pad_token_id"] + 1
    size, types = values["max_position_embeddings"], values["type_vocab_size"]
    return {"positions": LearnedPositions(size=size, first=first, token_types=types)}


def _attention_from(values: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Returns rotary angles and windows, from the settings of transformers 5 or of earlier versions."""
    layers = values["num_hidden_layers"]
    scaling, rope = values.get("rope_scaling") or {}, values.get("rope_parameters") or {}
    types = values.get("layer_types")
    if _rope_type(scaling) != "default":
        raise ValueError(f"config.json: rope_scaling={scaling!r} has no counterpart here; only null and 'default' have")
    if model_type == "modernbert":
        theta = _theta((rope.get(_FULL) or {}) | scaling, values["global_rope_theta"])
        local = _theta((rope.get(_SLIDING) or {}) | scaling, values["local_rope_theta"])
        types = types or [_SLIDING if i % values["global_attn_every_n_layers"] else _FULL for i in range(layers)]
        window = values["local_attention"] // 2
    else:
        theta = local = _theta(scaling or rope, values["rope_theta"])
        if model_type == "llama":  # which never has windows
            return {"rope_theta": theta}
        size = values["sliding_window"] if values["use_sliding_window"] else None
        first = layers if size is None else values["max_window_layers"]
        types = types or [_FULL if i < first else _SLIDING for i in range(layers)]
        window = None if size is None else size - 1
    if others := set(types) - {_FULL, _SLIDING}:
        raise ValueError(f"config.json: layer_types has {min(others)!r}, which has no counterpart here")
    if _SLIDING not in types:
        return {"rope_theta": theta}
    where = {"window": window, "global_every": _period(types)}
    if window is None:
        raise ValueError("config.json: layer_types has layers with a window, and use_sliding_window is false")
    return where | {"rope_theta": theta, "local_rope_theta": None if local == theta else local}


def _theta(rope: Mapping[str, Any], default: float | int) -> float:
    if (kind := _rope_type(rope)) != "default":
        raise ValueError(f"config.json: rope_type={kind!r} has no counterpart here; only 'default' has")
    return float(rope.get("rope_theta", default))


def _rope_type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _period(types: Sequence[str]) -> int | None:
    """Returns n if layers 0, n, 2n, ... and no others have full attention; None if no layer has."""
    everything = [i for i, name in enumerate(types) if name == _FULL]
    if not everything:
        return None
    period = everything[1] if len(everything) > 1 else len(types)
    if everything != list(range(0, len(types), period)):
        raise ValueError("config.json: layer_types without a window must be every n-th from the first, as ours are")
    return period
