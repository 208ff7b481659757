"""Settings of text models: `TransformerConfig` to and from the `config.json` of transformers' classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax_speechlm.interop.hf import mapping, rope_settings
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.models.transformer_config import FORMS, LearnedPositions, TransformerConfig

# Settings of a config.json with a name of our own, by family where that is not Llama's and BERT's.
_RENAMED = {
    "hidden_size": "dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_dim",
    "tie_word_embeddings": "tied",
}
_TIED = {"tie_word_embeddings": "tied"}
_RENAMED_IN = {
    "distilbert": _TIED | {"dim": "dim", "n_layers": "num_layers", "n_heads": "num_heads", "hidden_dim": "ffn_dim"},
    "gpt2": _TIED | {"n_embd": "dim", "n_layer": "num_layers", "n_head": "num_heads", "n_inner": "ffn_dim"},
}
_EPSILON = {"modernbert": "norm_eps", "bert": "layer_norm_eps", "roberta": "layer_norm_eps"}
_EPSILON |= {"gpt2": "layer_norm_epsilon", "distilbert": None}  # of the others: rms_norm_eps
_DISTILBERT_EPSILON = 1e-12  # a constant of the class
_POSITIONS = {"gpt2": "n_positions"}  # of the others: max_position_embeddings
_ACTIVATION = {"distilbert": "activation", "gpt2": "activation_function"}  # of the others: hidden_act
_FEEDFORWARD = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
"""Our `feedforward` without a gate, by transformers' names of activations."""

# Settings that are constant in our form.
_ABSOLUTE = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
_FIXED = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "qwen3": {"hidden_act": "silu", "attention_bias": False},
    "qwen2": {"hidden_act": "silu"},
    "gpt2": {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
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
    "distilbert": {},
}
_FORM = FORMS | dict.fromkeys(("roberta", "distilbert"), FORMS["bert"])  # the same on our side
# Settings that have a value with others, and that are None here.
_NEVER = {
    "llama": ("positions", "global_every", "local_rope_theta"),
    "qwen3": ("positions", "local_rope_theta"),
    "qwen2": ("positions", "local_rope_theta"),
    "gpt2": ("window",),
    "modernbert": ("positions", "rope_scaling"),
    **dict.fromkeys(families.LEARNT, ("window",)),
}
_UNGATED = ("gpt2", *families.LEARNT)
_FULL, _SLIDING = "full_attention", "sliding_attention"


def config_from_hugging_face(values: Mapping[str, Any]) -> TransformerConfig:
    """Converts a `config.json`.

    Raises:
      ValueError: the model has another type or a form that ours does not have.
    """
    values = completed(values)
    model_type = values.get("model_type")
    family = families.SAME_FAMILY.get(model_type, model_type)
    if family not in _FORM:
        known = ", ".join([*_FORM, *families.SAME_FAMILY])
        raise ValueError(f"config.json: model_type={model_type!r} has no counterpart here; {known} have")
    mapping.require_fixed(values, _FIXED[family])
    renamed = _RENAMED_IN.get(family, _RENAMED)
    settings = _FORM[family] | {setting: values[name] for name, setting in renamed.items()}
    settings |= {"norm_epsilon": _epsilon(values, family)} | _heads(settings, values, family)
    if family in _UNGATED:
        settings |= {"feedforward": _feedforward(values, family), "positions": _learnt_positions(values, family)}
        if settings["ffn_dim"] is None:  # GPT-2's default
            settings["ffn_dim"] = 4 * settings["dim"]
    else:
        settings |= _attention_from(values, family)
    if not settings["causal"] and _has_no_masked_lm(values, family):
        settings |= {"head": "linear", "tied": True}
    return TransformerConfig(**settings)


def config_to_hugging_face(config: TransformerConfig, vocab_size: int) -> dict[str, Any]:
    """Returns the settings of the `config.json` of the class that has this form; raises ValueError if none has.

    Token 0 is padding, unless learnt positions imply another; the caller adds the tokens that begin and end a text.
    """
    family = family_of(config)
    settings = {name: getattr(config, setting) for name, setting in _RENAMED_IN.get(family, _RENAMED).items()}
    architecture = architecture_of(config)
    settings |= _FIXED[family] | {"model_type": families.MODEL_TYPES[architecture], "architectures": [architecture]}
    settings |= {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    if epsilon := _EPSILON.get(family, "rms_norm_eps"):
        settings[epsilon] = config.norm_epsilon
    if family in _UNGATED:
        activation = next(name for name, kind in _FEEDFORWARD.items() if kind == config.feedforward)
        learnt = config.positions
        settings[_ACTIVATION.get(family, "hidden_act")] = activation
        settings[_POSITIONS.get(family, "max_position_embeddings")] = learnt.size
        settings |= {"type_vocab_size": learnt.token_types} if family in ("bert", "roberta") else {}
        return settings | ({"pad_token_id": learnt.first - 1} if family == "roberta" else {})
    types = [_FULL if sees_all else _SLIDING for sees_all in config.sees_all]
    if family == "modernbert":
        theta = {_FULL: config.rope_theta, _SLIDING: config.local_rope_theta or config.rope_theta}
        rope = {name: {"rope_type": "default", "rope_theta": value} for name, value in theta.items()}
        settings |= {"cls_token_id": None, "sep_token_id": None, "rope_parameters": rope, "layer_types": types}
        return settings | ({} if config.window is None else {"local_attention": 2 * config.window})
    settings |= {"num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim}
    settings |= {"rope_theta": config.rope_theta}
    settings |= rope_settings.scaling_to_hugging_face(config.rope_scaling, config.rope_theta)
    if config.window is None:
        return settings
    if family == "llama":
        return settings | {"sliding_window": config.window + 1}
    return settings | {"use_sliding_window": True, "sliding_window": config.window + 1, "layer_types": types}


def family_of(config: TransformerConfig) -> str:
    """Returns the `model_type` that has the form of a config; a ValueError names a setting that none has."""
    learnt = config.positions
    if config.causal:
        rotary = "qwen3" if config.query_key_norm else "qwen2" if config.qkv_bias else "llama"
        family = rotary if learnt is None else "gpt2"
    elif learnt is None:
        family = "modernbert"
    else:
        family = "roberta" if learnt.first else "bert" if learnt.token_types else "distilbert"
    form = dict(_FORM[family])
    if family in _UNGATED and config.feedforward in _FEEDFORWARD.values():
        form.pop("feedforward")
    if not config.causal:
        form |= {"num_kv_heads": config.num_heads, "head_dim": config.dim // config.num_heads}
    if is_bare(config):
        form |= {"head": "linear", "tied": True}
    if family == "llama":
        form |= {"global_layers": ()}
    if family == "gpt2":
        form |= {"num_kv_heads": config.num_heads, "head_dim": config.dim // config.num_heads}
    form |= dict.fromkeys(_NEVER[family])
    for name, only in form.items():
        if getattr(config, name) != only:
            what = families.LANGUAGE_MODELS[family]
            raise ValueError(f"{what} has {name}={only!r} only; this model has {name}={getattr(config, name)!r}")
    if family == "roberta" and not learnt.token_types:
        raise ValueError("RobertaForMaskedLM has token types; this model has positions.token_types=0")
    if family == "gpt2" and (learnt.first or learnt.token_types):
        raise ValueError(f"GPT2LMHeadModel has positions from 0 on and no token types; this model has {learnt!r}")
    if family == "distilbert" and config.norm_epsilon != _DISTILBERT_EPSILON:
        raise ValueError(
            f"DistilBert has norm_epsilon={_DISTILBERT_EPSILON} only; this model has {config.norm_epsilon}"
        )
    return family


def is_bare(config: TransformerConfig) -> bool:
    """Returns whether a model is an encoder without a masked LM's head."""
    return not config.causal and config.head == "linear"


def architecture_of(config: TransformerConfig) -> str:
    """Returns the class in transformers of a language model or a bare encoder."""
    family = family_of(config)
    if is_bare(config):
        return families.ENCODERS[family]
    return families.LANGUAGE_MODELS["mistral" if family == "llama" and config.window else family]


def _has_no_masked_lm(values: Mapping[str, Any], family: str) -> bool:
    """Returns whether the class of an encoder has no prediction head; ModernBERT's heads begin with it."""
    names = values.get("architectures") or [""]
    bare = names[0] in families.ENCODERS.values()
    return bare or (family != "modernbert" and names[0] in families.MODEL_TYPES and "MaskedLM" not in names[0])


def _epsilon(values: Mapping[str, Any], family: str) -> float:
    name = _EPSILON.get(family, "rms_norm_eps")
    return _DISTILBERT_EPSILON if name is None else values[name]


def _feedforward(values: Mapping[str, Any], family: str) -> str:
    name = _ACTIVATION.get(family, "hidden_act")
    if (kind := _FEEDFORWARD.get(values[name])) is None:
        raise ValueError(
            f"config.json: {name}={values[name]!r} has no counterpart here; {', '.join(_FEEDFORWARD)} have"
        )
    if family == "roberta" and kind != "gelu" and "MaskedLM" in str(values.get("architectures")):
        raise ValueError(f"config.json: {name}={values[name]!r}: the head of a masked LM is as its feed-forward here")
    return kind


def _heads(settings: Mapping[str, Any], values: Mapping[str, Any], family: str) -> dict[str, Any]:
    heads = settings["num_heads"]
    width = settings["dim"] // heads
    if family in ("llama", "qwen3", "qwen2"):
        head_dim = values.get("head_dim")  # which Qwen2's class has not, and its attention takes from a file
        if head_dim is None and family == "qwen3":
            raise ValueError("config.json: head_dim=None is not possible in Qwen3: remove it to have the class's 128")
        return {"num_kv_heads": values["num_key_value_heads"] or heads, "head_dim": head_dim or width}
    if family == "modernbert" and values.get("head_dim") not in (None, width):  # of its rotary angles alone
        raise ValueError(f"config.json: head_dim={values['head_dim']} is not hidden_size over num_attention_heads")
    return {"num_kv_heads": heads, "head_dim": width}


def _learnt_positions(values: Mapping[str, Any], family: str) -> LearnedPositions:
    first = 0
    if family == "roberta":
        if values["pad_token_id"] is None:
            raise ValueError("config.json: pad_token_id=None is not possible in RoBERTa: its positions begin behind it")
        first = values["pad_token_id"] + 1
    size = values[_POSITIONS.get(family, "max_position_embeddings")]
    types = values["type_vocab_size"] if family in ("bert", "roberta") else 0
    return LearnedPositions(size=size, first=first, token_types=types)


def _attention_from(values: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Returns rotary angles and windows, from the settings of transformers 5 or of earlier versions."""
    layers = values["num_hidden_layers"]
    scaling, rope = values.get("rope_scaling") or {}, values.get("rope_parameters") or {}
    types = values.get("layer_types")
    if family == "modernbert":
        _plain_theta(scaling, 1.0)
        theta = _plain_theta((rope.get(_FULL) or {}) | scaling, values["global_rope_theta"])
        local = _plain_theta((rope.get(_SLIDING) or {}) | scaling, values["local_rope_theta"])
        types = types or [_SLIDING if i % values["global_attn_every_n_layers"] else _FULL for i in range(layers)]
        angles, window = {"rope_theta": theta}, values["local_attention"] // 2
    else:
        rope = scaling or rope
        theta = local = float(rope.get("rope_theta") or values["rope_theta"])
        angles = {"rope_theta": theta, "rope_scaling": rope_settings.scaling_from_hugging_face(rope, values)}
        if family == "llama":  # of which only Mistral has windows
            size = values["sliding_window"] if values["model_type"] == "mistral" else None
            return angles | {"window": None if size is None else size - 1}
        size = values["sliding_window"] if values["use_sliding_window"] else None
        first = layers if size is None else values["max_window_layers"]
        types = types or [_FULL if i < first else _SLIDING for i in range(layers)]
        window = None if size is None else size - 1
    if others := set(types) - {_FULL, _SLIDING}:
        raise ValueError(f"config.json: layer_types has {min(others)!r}, which has no counterpart here")
    if _SLIDING not in types:
        return angles
    if not window:
        raise ValueError("config.json: layer_types has layers with a window, and use_sliding_window is false, or 1")
    return angles | _global(types) | {"window": window, "local_rope_theta": None if local == theta else local}


def _plain_theta(rope: Mapping[str, Any], default: float | int) -> float:
    if (kind := rope_settings.rope_type(rope)) != "default":
        raise ValueError(f"config.json: rope_type={kind!r} has no counterpart in this model here; only 'default' has")
    return float(rope.get("rope_theta", default))


def _global(types: Sequence[str]) -> dict[str, Any]:
    """Returns which layers have full attention: the layers 0, n, 2n, ..., or by their numbers."""
    everything = tuple(i for i, name in enumerate(types) if name == _FULL)
    if not everything:
        return {}
    period = everything[1] if len(everything) > 1 else len(types)
    if everything == tuple(range(0, len(types), period)):
        return {"global_every": period}
    return {"global_layers": everything}
