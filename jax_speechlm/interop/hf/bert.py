"""The arrays of Hugging Face's BERT and RoBERTa, for `transformer` (see `mapping`).

Their norms follow attention and feed-forward, and the embeddings; ours precede these, on the same residual stream. So
our first attention norm is their norm of the embeddings, our other attention norms are the final norms of the layers
before, and our last norm is the final norm of their last layer.
"""

import numpy as np

from jax_speechlm.interop.hf.mapping import (
    HEADS_BIAS,
    INTO_HEADS,
    OUT_OF_HEADS,
    SAME,
    Row,
    StateDict,
    linear,
    norm,
)

HEAD = {"bert": "cls.predictions.", "roberta": "lm_head."}
"""Prefixes of the arrays of the head, by `model_type`."""

_PREDICTION = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm"),
}
# Parts of a pretrained model that its masked LM has no use for, and buffers that older versions saved.
_UNUSED = "{}.pooler.", "cls.seq_relationship.", "{}.embeddings.position_ids", "{}.embeddings.token_type_ids"
_OLD = {".gamma": ".weight", ".beta": ".bias"}  # as the first releases called them


def rows(model_type: str, num_layers: int) -> list[Row]:
    """Returns the table of "bert" or "roberta", the embedding first."""
    layer, (dense, prediction_norm) = f"{model_type}.encoder.layer.{{}}.", _PREDICTION[model_type]
    norms = [f"{model_type}.embeddings.LayerNorm"]
    norms += [f"{layer.format(i)}output.LayerNorm" for i in range(num_layers)]
    return [
        Row("embedding", f"{model_type}.embeddings.word_embeddings.weight", SAME),
        Row("position", f"{model_type}.embeddings.position_embeddings.weight", SAME),
        Row("token_type", f"{model_type}.embeddings.token_type_embeddings.weight", SAME),
        Row("prediction.bias", f"{HEAD[model_type]}bias", SAME),
        *linear("layers.attention.query", f"{layer}attention.self.query", INTO_HEADS, HEADS_BIAS),
        *linear("layers.attention.key", f"{layer}attention.self.key", INTO_HEADS, HEADS_BIAS),
        *linear("layers.attention.value", f"{layer}attention.self.value", INTO_HEADS, HEADS_BIAS),
        *linear("layers.attention.out", f"{layer}attention.output.dense", OUT_OF_HEADS),
        *linear("layers.ffn.up", f"{layer}intermediate.dense"),
        *linear("layers.ffn.down", f"{layer}output.dense"),
        *linear("prediction.linear", dense),
        Row("layers.attention_norm.scale", [f"{name}.weight" for name in norms[:-1]], SAME),
        Row("layers.attention_norm.bias", [f"{name}.bias" for name in norms[:-1]], SAME),
        *norm("layers.ffn_norm", f"{layer}attention.output.LayerNorm"),
        *norm("norm", norms[-1]),
        *norm("prediction.norm", prediction_norm),
    ]


def used(arrays: StateDict) -> dict[str, np.ndarray]:
    """Returns a saved model's arrays under today's names, without the arrays that a masked LM does not use."""
    renamed = {}
    unused = tuple(prefix.format(model_type) for prefix in _UNUSED for model_type in HEAD)
    for name, value in arrays.items():
        for old, new in _OLD.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if not name.startswith(unused):
            renamed[name] = value
    for prefix in HEAD.values():
        again = renamed.pop(f"{prefix}decoder.bias", None)
        if again is not None and not np.array_equal(renamed.setdefault(f"{prefix}bias", again), again):
            raise ValueError(f"{prefix}bias is not {prefix}decoder.bias: they are one array in the model")
    return renamed
