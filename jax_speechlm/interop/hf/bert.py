"""The arrays of Hugging Face's BERT and RoBERTa, by the names that `transformer` maps with (see `mapping`).

Their norms follow attention and feed-forward, and the embeddings; ours precede these, on the same residual stream. So
our first attention norm is their norm of the embeddings, our other attention norms are the final norms of the layers
before, and our last norm is the final norm of their last layer.
"""

import numpy as np

from jax_speechlm.interop.hf.mapping import SAME, TRANSPOSED, Layout, Row, StateDict, linear, norm

_HEAD = {"bert": "cls.predictions.", "roberta": "lm_head."}
_PREDICTION = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm"),
}
# Parts of a pretrained model that its masked LM has no use for, and buffers that older versions saved.
_UNUSED = "{}.pooler.", "cls.seq_relationship.", "{}.embeddings.position_ids", "{}.embeddings.token_type_ids"
# As the first releases called them.
_OLD = {".gamma": ".weight", ".beta": ".bias"}

_HEADS = Layout(lambda x, c: x.reshape(-1), lambda x, c: x.reshape(-1, c.head_dim))


def rows(model_type: str, into_heads: Layout, out_of_heads: Layout) -> list[Row]:
    """Returns the table of "bert" or "roberta", the embedding first; `named` renames the norms as it has them.

    Args:
      into_heads, out_of_heads: layouts of the kernels around attention.
    """
    layer, (dense, prediction_norm) = f"{model_type}.encoder.layer.{{}}.", _PREDICTION[model_type]
    table = [
        Row("embedding", f"{model_type}.embeddings.word_embeddings.weight", SAME),
        Row("position", f"{model_type}.embeddings.position_embeddings.weight", SAME),
        Row("token_type", f"{model_type}.embeddings.token_type_embeddings.weight", SAME),
        Row("prediction.bias", f"{_HEAD[model_type]}bias", SAME),
    ]
    for ours, theirs, kernel, bias in (
        ("layers.attention.query", f"{layer}attention.self.query", into_heads, _HEADS),
        ("layers.attention.key", f"{layer}attention.self.key", into_heads, _HEADS),
        ("layers.attention.value", f"{layer}attention.self.value", into_heads, _HEADS),
        ("layers.attention.out", f"{layer}attention.output.dense", out_of_heads, SAME),
        ("layers.ffn.up", f"{layer}intermediate.dense", TRANSPOSED, SAME),
        ("layers.ffn.down", f"{layer}output.dense", TRANSPOSED, SAME),
        ("prediction.linear", dense, TRANSPOSED, SAME),
    ):
        table += linear(ours, theirs, kernel, bias)
    table += norm("layers.attention_norm", f"{layer}norm")
    table += norm("layers.ffn_norm", f"{layer}attention.output.LayerNorm")
    return table + norm("norm", f"{model_type}.norm") + norm("prediction.norm", prediction_norm)


def head(model_type: str) -> str:
    """Returns the name of the vocabulary map."""
    return f"{_HEAD[model_type]}decoder.weight"


def used(arrays: StateDict) -> dict[str, np.ndarray]:
    """Returns a saved model's arrays under today's names, without the arrays that a masked LM does not use.

    Raises:
      ValueError: the vocabulary map's bias is there twice, and the two differ.
    """
    found = {}
    unused = tuple(prefix.format(model_type) for prefix in _UNUSED for model_type in _HEAD)
    for name, value in arrays.items():
        for old, new in _OLD.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if not name.startswith(unused):
            found[name] = value
    for prefix in _HEAD.values():
        again = found.pop(f"{prefix}decoder.bias", None)
        if again is not None and not np.array_equal(found.setdefault(f"{prefix}bias", again), again):
            raise ValueError(f"{prefix}bias is not {prefix}decoder.bias: they are one array in the model")
    return found


def named(arrays: StateDict, model_type: str, num_layers: int) -> dict[str, np.ndarray]:
    """Returns the result of `used`, with the norms named as in `rows`."""
    names = _norms(model_type, num_layers)
    return {names.get(name, name): value for name, value in arrays.items()}


def saved(arrays: StateDict, model_type: str, num_layers: int) -> dict[str, np.ndarray]:
    """Inverts `named`, and adds the vocabulary map's bias under both of its names."""
    names = {ours: theirs for theirs, ours in _norms(model_type, num_layers).items()}
    bias = arrays[f"{_HEAD[model_type]}bias"]
    return {names.get(name, name): value for name, value in arrays.items()} | {f"{_HEAD[model_type]}decoder.bias": bias}


def _norms(model_type: str, num_layers: int) -> dict[str, str]:
    """Returns our name for each of their norms' arrays that has another position in ours."""
    layer = f"{model_type}.encoder.layer"
    theirs = [f"{model_type}.embeddings.LayerNorm", *(f"{layer}.{i}.output.LayerNorm" for i in range(num_layers))]
    ours = [*(f"{layer}.{i}.norm" for i in range(num_layers)), f"{model_type}.norm"]
    parts = ("weight", "bias")
    return {f"{one}.{part}": f"{other}.{part}" for one, other in zip(theirs, ours, strict=True) for part in parts}
