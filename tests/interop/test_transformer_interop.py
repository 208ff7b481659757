import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_speechlm.interop.hf import transformer as interop
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import LearnedPositions, TransformerConfig
from jax_speechlm.nn import functional

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "transformer.npz")
KINDS = ("qwen3", "llama", "modernbert", "bert", "roberta")
SMALL = {"dim": 8, "num_layers": 3, "num_heads": 2, "ffn_dim": 12}
BERT = TransformerConfig.bert(**SMALL, num_kv_heads=2, head_dim=4, positions=LearnedPositions(size=9, token_types=2))
CONFIGS = {
    "qwen3": TransformerConfig.qwen3(**SMALL, num_kv_heads=1, head_dim=6, window=3, rope_theta=1e6),
    "llama": TransformerConfig.llama(**SMALL, num_kv_heads=1, head_dim=4, tied=False),
    "modernbert": TransformerConfig.modernbert(
        **SMALL, num_kv_heads=2, head_dim=4, window=4, global_every=2, local_rope_theta=100.0
    ),
    "bert": BERT,
    "roberta": BERT.replace(positions=LearnedPositions(size=9, first=1, token_types=1)),
}  # fmt: skip


def golden(kind):
    """A model's config.json and state dict."""
    prefix = f"{kind}/weights/"
    weights = {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN.files if name.startswith(prefix)}
    return json.loads(str(GOLDEN[f"{kind}/config"])), weights


@partial(jax.jit, static_argnames="graphdef")
def logits(graphdef, params, tokens, segment, position):
    model = functional.bind(graphdef, params)
    return model.logits(model(tokens, segment, position))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_hugging_face(kind):
    values, weights = golden(kind)
    config, vocab_size = interop.config_from_hugging_face(values), values["vocab_size"]
    params = read(interop.sources(weights, config))
    declared = functional.declare(lambda rngs: Transformer(config, vocab_size, rngs=rngs))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, declared.shapes)

    ours = logits(declared.graphdef, params, GOLDEN["tokens"], GOLDEN["segment"], GOLDEN["position"])
    real = GOLDEN["segment"] > 0
    np.testing.assert_allclose(ours[real], GOLDEN[f"{kind}/logits"][real], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_exports_the_names_and_arrays_that_hugging_face_has(kind):
    values, weights = golden(kind)
    config = interop.config_from_hugging_face(values)
    exported = interop.to_hugging_face(read(interop.sources(weights, config)), config)
    assert exported.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(exported[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_config_there_and_back(kind):
    values, _ = golden(kind)
    config = interop.config_from_hugging_face(values)
    again = interop.config_to_hugging_face(config, values["vocab_size"])
    assert interop.config_from_hugging_face(again) == config
    assert {name: values[name] for name in again if name in values} | again == again
    config = CONFIGS[kind]
    assert interop.config_from_hugging_face(interop.config_to_hugging_face(config, 7)) == config


def test_configs_of_older_versions():
    """Settings as in the config.json files of Llama 2, Qwen3 and ModernBERT."""
    llama = interop.config_from_hugging_face({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "rms_norm_eps": 1e-5, "rope_scaling": None, "tie_word_embeddings": False,
    })  # fmt: skip
    assert (llama.num_kv_heads, llama.head_dim, llama.rope_theta, llama.tied) == (32, 128, 10_000, False)
    qwen = interop.config_from_hugging_face({
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 28,
        "tie_word_embeddings": True,
    })  # fmt: skip
    assert (qwen.rope_theta, qwen.window, qwen.tied) == (1e6, None, True)
    bert = interop.config_from_hugging_face({
        "model_type": "modernbert", "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
        "num_attention_heads": 12, "norm_eps": 1e-5, "global_attn_every_n_layers": 3, "local_attention": 128,
        "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0,
    })  # fmt: skip
    assert (bert.window, bert.global_every, bert.rope_theta, bert.local_rope_theta) == (64, 3, 160_000, 10_000)
    assert bert.tied


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"model_type": "mistral"}, "model_type='mistral' has no counterpart"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling="),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]}, "every n-th from the first"),
        ("modernbert", {"decoder_bias": False}, "decoder_bias=False"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("roberta", {"is_decoder": True}, "is_decoder=True"),
    ],
)
def test_forms_without_counterpart_are_refused(kind, change, message):
    with pytest.raises(ValueError, match=message):
        interop.config_from_hugging_face(interop.config_to_hugging_face(CONFIGS[kind], 7) | change)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"window": 4}, "LlamaForCausalLM has window=None only; this model has window=4"),
        ("llama", {"feedforward": "geglu"}, "feedforward='swiglu' only"),
        ("qwen3", {"local_rope_theta": 10.0}, "local_rope_theta=None only"),
        ("modernbert", {"num_kv_heads": 1}, "num_kv_heads=2 only"),
        ("modernbert", {"head": "linear"}, "head='transform' only"),
        ("modernbert", {"norm_placement": "post"}, "norm_placement='pre_embedding' only"),
        ("bert", {"feedforward": "geglu"}, "feedforward='gelu' only"),
        ("bert", {"window": 4}, "window=None only"),
        ("bert", {"positions": LearnedPositions(size=9)}, "has token types"),
    ],
)
def test_models_that_hugging_face_has_not_are_not_exported(kind, change, message):
    with pytest.raises(ValueError, match=message):
        interop.config_to_hugging_face(CONFIGS[kind].replace(**change), 7)


def test_a_missing_setting_is_the_class_default():
    values = interop.config_to_hugging_face(CONFIGS["llama"], 7)
    del values["hidden_size"]
    assert interop.config_from_hugging_face(values).dim == 4096


def test_a_bias_that_is_there_twice_must_be_one():
    values, weights = golden("bert")
    config, name = interop.config_from_hugging_face(values), "cls.predictions.decoder.bias"
    with pytest.raises(ValueError, match=r"they are one array in the model"):
        interop.sources(weights | {name: weights[name] + 1}, config)


def test_state_dicts_that_do_not_fit_are_refused():
    values, weights = golden("modernbert")
    config = interop.config_from_hugging_face(values)
    with pytest.raises(ValueError, match=r"no place for, such as 'model\.layers\.5"):
        interop.sources(weights, config.replace(num_layers=5))
    with pytest.raises(ValueError, match=r"has no 'model\.layers\.6.*a ModernBertForMaskedLM of 7 layers"):
        interop.sources(weights, config.replace(num_layers=7))
    with pytest.raises(ValueError, match="does not fit dim=32"):
        interop.sources(weights, config.replace(dim=32, head_dim=8))
    with pytest.raises(ValueError, match=r"'decoder\.weight' is not .* set tie_word_embeddings to false"):
        interop.sources(weights | {"decoder.weight": weights["decoder.weight"] + 1}, config)
