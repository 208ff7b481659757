"""Names of the classes of text models in transformers, and of their arrays (see `mapping`).

Each family has a bare model, and classes that add a head to it: to their arrays' names the bare model's are added
behind a prefix, such as `bert.`. Hubs have files in which that prefix is missing or superfluous, as transformers
accepts both; `normalized` gives every array the name that its class saves it under.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jax_speechlm.interop.hf import mapping
from jax_speechlm.interop.hf.mapping import (
    HEADS_BIAS,
    INTO_HEADS,
    OUT_OF_HEADS,
    SAME,
    SPLIT_HEADS,
    SPLIT_HEADS_OUT,
    TRANSPOSED,
    Row,
)
from jax_speechlm.models.transformer_config import TransformerConfig

_ENCODERS = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "distilbert": "DistilBert",
    "modernbert": "ModernBert",
}
ENCODERS = {model_type: f"{name}Model" for model_type, name in _ENCODERS.items()}
"""By `model_type`, the bare encoders."""
LANGUAGE_MODELS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
} | {model_type: f"{name}ForMaskedLM" for model_type, name in _ENCODERS.items()}
CLASSIFIERS = {model_type: f"{name}ForSequenceClassification" for model_type, name in _ENCODERS.items()}
TAGGERS = {model_type: f"{name}ForTokenClassification" for model_type, name in _ENCODERS.items()}
READERS_OF_SPANS = {model_type: f"{name}ForQuestionAnswering" for model_type, name in _ENCODERS.items()}
MODEL_TYPES = {
    name: model_type
    for classes in (ENCODERS, LANGUAGE_MODELS, CLASSIFIERS, TAGGERS, READERS_OF_SPANS)
    for model_type, name in classes.items()
}
"""The `model_type` of every class."""
SAME_FAMILY = {"xlm-roberta": "roberta", "mistral": "llama"}
"""Classes that compute what another family's do. An XLM-RoBERTa has another tokenizer, a Mistral perhaps windows."""


class _Layer(NamedTuple):
    """Names of a layer's arrays, in a family with learnt positions."""

    prefix: str
    query: str
    key: str
    value: str
    out: str
    up: str
    down: str
    attention_norm: str
    output_norm: str


class _Head(NamedTuple):
    """Names of the arrays of a masked LM's head: linear map, norm, bias of the vocabulary map, and that map."""

    linear: str
    norm: str
    bias: str
    decoder: str


_BERT_LAYER = _Layer(
    "encoder.layer.{}.", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "intermediate.dense", "output.dense", "attention.output.LayerNorm", "output.LayerNorm",
)  # fmt: skip
_DISTILBERT_LAYER = _Layer(
    "transformer.layer.{}.", "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
    "ffn.lin1", "ffn.lin2", "sa_layer_norm", "output_layer_norm",
)  # fmt: skip
_LAYERS = {"bert": _BERT_LAYER, "roberta": _BERT_LAYER, "distilbert": _DISTILBERT_LAYER}
_PREDICTIONS = "cls.predictions."
_HEADS = {
    "bert": _Head(*(_PREDICTIONS + name for name in ("transform.dense", "transform.LayerNorm", "bias", "decoder"))),
    "roberta": _Head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
    "distilbert": _Head("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
}
LEARNT = tuple(_LAYERS)
"""Families of encoders whose positions are learnt."""

_PREFIXES = {"bert": "bert.", "roberta": "roberta.", "distilbert": "distilbert.", "gpt2": "transformer."}
_OLD = {".gamma": ".weight", ".beta": ".bias"}  # as BERT's first releases called the parts of a norm
_BUFFERS = {
    "gpt2": (".attn.bias", ".attn.masked_bias"),
    **dict.fromkeys(LEARNT, ("embeddings.position_ids", "embeddings.token_type_ids")),
}
"""Ends of the names of arrays that older versions saved, and that today's classes compute."""

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
_CAUSAL_ROWS = [Row(path, f"{causal}.weight", layout) for path, layout, causal, _ in _ROWS]
_QUERY_KEY_NORM = [
    Row("layers.attention.query_norm.scale", "layers.{}.self_attn.q_norm.weight", SAME),
    Row("layers.attention.key_norm.scale", "layers.{}.self_attn.k_norm.weight", SAME),
]
_QKV_BIAS = [
    Row(f"layers.attention.{path}.bias", f"layers.{{}}.self_attn.{path[0]}_proj.bias", HEADS_BIAS)
    for path in ("query", "key", "value")
]
_MODERNBERT_ROWS = [Row(path, both_ways, layout) for path, layout, _, both_ways in _ROWS]
_MODERNBERT_HEAD = [
    Row("prediction.linear.kernel", "head.dense.weight", TRANSPOSED),
    Row("prediction.norm.scale", "head.norm.weight", SAME),
    Row("prediction.bias", "decoder.bias", SAME),
]
_GPT2_ROWS = [
    Row("embedding", "wte.weight", SAME),
    Row("position", "wpe.weight", SAME),
    *mapping.norm("layers.attention_norm", "h.{}.ln_1"),
    *(
        row._replace(name=f"{row.name}/{part}")
        for part, path in enumerate(("query", "key", "value"))
        for row in mapping.linear(f"layers.attention.{path}", "h.{}.attn.c_attn", SPLIT_HEADS, HEADS_BIAS)
    ),
    *mapping.linear("layers.attention.out", "h.{}.attn.c_proj", SPLIT_HEADS_OUT),
    *mapping.norm("layers.ffn_norm", "h.{}.ln_2"),
    *mapping.linear("layers.ffn.up", "h.{}.mlp.c_fc", SAME),
    *mapping.linear("layers.ffn.down", "h.{}.mlp.c_proj", SAME),
    *mapping.norm("norm", "ln_f"),
]
POOLER = mapping.linear("pooler", "pooler.dense")


def rows(config: TransformerConfig, model_type: str, is_bare: bool) -> tuple[list[Row], str, str]:
    """Returns the table of a model's rows, and the names of its embedding and of its vocabulary map.

    Args:
      is_bare: whether the class is the bare model, whose arrays' names have no prefix, instead of one with a head.
    """
    base, head, decoder = _bare_rows(config, model_type), [], "lm_head.weight"
    if model_type == "modernbert":
        head, decoder = _MODERNBERT_HEAD, "decoder.weight"
    elif model_type in _HEADS:
        names = _HEADS[model_type]
        head = [
            Row("prediction.bias", names.bias, SAME),
            *mapping.linear("prediction.linear", names.linear),
            *mapping.norm("prediction.norm", names.norm),
        ]
        decoder = f"{names.decoder}.weight"
    if not is_bare:
        base = [_renamed(row, prefix_of(model_type)) for row in base]
    table = base + (head if config.head == "transform" else [])
    return (table if config.tied else [*table, Row("untied", decoder, SAME)]), base[0].name, decoder


def prefix_of(model_type: str) -> str:
    """Returns what precedes the names of the bare model's arrays in classes with a head."""
    return _PREFIXES.get(model_type, "model.")


def second_bias(model_type: str) -> tuple[str, str] | None:
    """Returns the two names of the bias of the vocabulary map, where a class saves it under both."""
    if model_type not in ("bert", "roberta"):
        return None
    return _HEADS[model_type].bias, f"{_HEADS[model_type].decoder}.bias"


def tied_names(model_type: str) -> set[str]:
    """Returns names of arrays that are other arrays of a tied model once more; a file holds them once."""
    decoder = {"modernbert": "decoder", **{name: head.decoder for name, head in _HEADS.items()}}.get(model_type)
    names = {f"{decoder or 'lm_head'}.weight"}
    return names | ({twice[1]} if (twice := second_bias(model_type)) else set())


def normalized(arrays: Mapping[str, np.ndarray], model_type: str, is_bare: bool) -> dict[str, np.ndarray]:
    """Returns a saved model's arrays by the names of its class, without buffers and parts for other uses.

    Args:
      is_bare: whether the class is the bare model; its pooler is kept.

    Raises:
      ValueError: an array is there under two names, with different values.
    """
    prefix, renamed = prefix_of(model_type), {}
    family = model_type if model_type in LEARNT else ""
    unused = ("cls.seq_relationship.",) if family == "bert" else ()
    if is_bare and family:
        head = _HEADS[family]
        unused += ("cls.",) if family == "bert" else (head.linear, head.norm, head.bias, head.decoder)
    for name, value in arrays.items():
        for old, new in _OLD.items() if family else ():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        bare = name.removeprefix(prefix)
        if name.startswith(unused) or bare.endswith(_BUFFERS.get(model_type, ())):
            continue
        if is_bare or (bare == name and _is_of_base(name, model_type)):
            name = bare if is_bare else prefix + name
        if name in renamed and not np.array_equal(renamed[name], value):
            raise ValueError(f"{name!r} is there twice, with and without {prefix!r}, and the two differ")
        renamed[name] = value
    name, second = second_bias(model_type) or ("", "")
    again = renamed.pop(second, None)
    if again is not None and not np.array_equal(renamed.setdefault(name, again), again):
        raise ValueError(f"{name} is not {second}: they are one array in the model")
    return renamed


def without_pooler(arrays: Mapping[str, np.ndarray], model_type: str) -> dict[str, np.ndarray]:
    """Returns arrays without the pooler, which only some classes have a use for."""
    pooler = tuple(f"{prefix}pooler." for prefix in ("", prefix_of(model_type)))
    return {name: value for name, value in arrays.items() if not name.startswith(pooler)}


def _is_of_base(name: str, model_type: str) -> bool:
    """Returns whether a name without prefix is of the bare model's part."""
    first = {"gpt2": ("h.", "wte.", "wpe.", "ln_f.")}.get(model_type)
    if model_type in LEARNT:
        first = ("embeddings.", "pooler.", _LAYERS[model_type].prefix.partition("{")[0])
    return name.startswith(first or ("embed_tokens.", "layers.", "norm.", "embeddings.", "final_norm."))


def _renamed(row: Row, prefix: str) -> Row:
    name = row.name
    return row._replace(name=prefix + name if isinstance(name, str) else [prefix + each for each in name])


def _bare_rows(config: TransformerConfig, model_type: str) -> list[Row]:
    """Returns the table of the bare model, the embedding first."""
    if model_type in LEARNT:
        return _learnt_rows(config, model_type)
    if model_type == "modernbert":
        # Our first layer's attention norm is theirs on the embeddings.
        norms = [f"layers.{i}.attn_norm.weight" for i in range(1, config.num_layers)]
        first_norm = Row(_MODERNBERT_ROWS[1].path, ["embeddings.norm.weight", *norms], SAME)
        return [_MODERNBERT_ROWS[0], first_norm, *_MODERNBERT_ROWS[2:]]
    if model_type == "gpt2":
        return _GPT2_ROWS
    return _CAUSAL_ROWS + {"qwen3": _QUERY_KEY_NORM, "qwen2": _QKV_BIAS}.get(model_type, [])


def _learnt_rows(config: TransformerConfig, model_type: str) -> list[Row]:
    """Returns the table of an encoder whose positions are learnt.

    Their norms follow attention and feed-forward, and the embeddings; ours precede these, on the same residual stream.
    So our first attention norm is their norm of the embeddings, our other attention norms are the final norms of the
    layers before, and our last norm is the final norm of their last layer.
    """
    names = _LAYERS[model_type]
    layer = names.prefix
    norms = ["embeddings.LayerNorm"]
    norms += [f"{layer.format(i)}{names.output_norm}" for i in range(config.num_layers)]
    types = [Row("token_type", "embeddings.token_type_embeddings.weight", SAME)]
    return [
        Row("embedding", "embeddings.word_embeddings.weight", SAME),
        Row("position", "embeddings.position_embeddings.weight", SAME),
        *(types if config.positions.token_types else []),
        *mapping.linear("layers.attention.query", layer + names.query, INTO_HEADS, HEADS_BIAS),
        *mapping.linear("layers.attention.key", layer + names.key, INTO_HEADS, HEADS_BIAS),
        *mapping.linear("layers.attention.value", layer + names.value, INTO_HEADS, HEADS_BIAS),
        *mapping.linear("layers.attention.out", layer + names.out, OUT_OF_HEADS),
        *mapping.linear("layers.ffn.up", layer + names.up),
        *mapping.linear("layers.ffn.down", layer + names.down),
        Row("layers.attention_norm.scale", [f"{name}.weight" for name in norms[:-1]], SAME),
        Row("layers.attention_norm.bias", [f"{name}.bias" for name in norms[:-1]], SAME),
        *mapping.norm("layers.ffn_norm", layer + names.attention_norm),
        *mapping.norm("norm", norms[-1]),
    ]
