import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf import text_heads
from jax_speechlm.interop.hf import transformer as interop
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.transformer import Transformer, init_cache
from jax_speechlm.models.transformer_config import LearnedPositions, TransformerConfig
from jax_speechlm.nn import functional

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "transformer.npz")
KINDS = ("qwen3", "qwen2", "llama", "modernbert", "bert", "roberta", "distilbert", "gpt2")
ENCODERS = KINDS[3:7]
SMALL = {"dim": 8, "num_layers": 3, "num_heads": 2, "ffn_dim": 12}
BERT = TransformerConfig.bert(**SMALL, num_kv_heads=2, head_dim=4, positions=LearnedPositions(size=9, token_types=2))
CONFIGS = {
    "qwen3": TransformerConfig.qwen3(**SMALL, num_kv_heads=1, head_dim=6, window=3, rope_theta=1e6),
    "qwen2": TransformerConfig.qwen2(**SMALL, num_kv_heads=1, head_dim=4),
    "llama": TransformerConfig.llama(**SMALL, num_kv_heads=1, head_dim=4, tied=False),
    "modernbert": TransformerConfig.modernbert(
        **SMALL, num_kv_heads=2, head_dim=4, window=4, global_every=2, local_rope_theta=100.0
    ),
    "bert": BERT,
    "roberta": BERT.replace(positions=LearnedPositions(size=9, first=1, token_types=1)),
    "distilbert": BERT.replace(positions=LearnedPositions(size=9), feedforward="relu"),
    "gpt2": TransformerConfig.gpt2(**SMALL, num_kv_heads=2, head_dim=4, positions=LearnedPositions(size=9)),
}  # fmt: skip


def golden(kind):
    """A model's config.json and state dict."""
    prefix = f"{kind}/weights/"
    weights = {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN.files if name.startswith(prefix)}
    return json.loads(str(GOLDEN[f"{kind}/config"])), weights


def batch(kind):
    """Its last row is padded on the left, but for DistilBERT, which counts positions from the left."""
    if kind != "distilbert":
        return tuple(GOLDEN[name] for name in ("tokens", "segment", "position"))
    segment = -np.sort(-GOLDEN["segment"])
    return GOLDEN["tokens"], segment, np.maximum(segment.cumsum(1) - 1, 0).astype(np.int32)


@partial(jax.jit, static_argnames="graphdef")
def hidden_states(graphdef, params, tokens, segment, position):
    return functional.bind(graphdef, params)(tokens, segment, position)


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

    ours, real = logits(declared.graphdef, params, *batch(kind)), batch(kind)[1] > 0
    np.testing.assert_allclose(ours[real], GOLDEN[f"{kind}/logits"][real], atol=1e-4)


@pytest.mark.parametrize("scaling", ["linear", "dynamic", "llama3", "yarn", "yarn, untruncated"])
def test_logits_with_scaled_positions_are_those_of_hugging_face(scaling):
    values, prefix = json.loads(str(GOLDEN[f"rope/{scaling}/config"])), "rope/weights/"
    weights = {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN.files if name.startswith(prefix)}
    config = interop.config_from_hugging_face(values)
    assert config.rope_scaling is not None
    declared = functional.declare(lambda rngs: Transformer(config, values["vocab_size"], rngs=rngs))
    ours, real = (
        logits(declared.graphdef, read(interop.sources(weights, config)), *batch("llama")),
        batch("llama")[1] > 0,
    )
    np.testing.assert_allclose(ours[real], GOLDEN[f"rope/{scaling}/logits"][real], atol=1e-4)


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("kind", ENCODERS)
def test_hidden_states_of_an_encoder_alone_are_those_of_hugging_face(kind, prefixed):
    """Whose arrays' names have the prefix of the classes with a head in some files."""
    values, weights = golden(kind)
    name = families.ENCODERS[kind]
    config = interop.config_from_hugging_face(values | {"architectures": [name]})
    prefix = families.prefix_of(kind)
    weights = {key: value for key, value in weights.items() if key.startswith(prefix)}
    bare = {key.removeprefix(prefix): value for key, value in weights.items()}
    params = read(text_heads.bare_sources(weights if prefixed else bare, config))
    assert params.keys() == {"transformer"}
    declared = functional.declare(lambda rngs: Transformer(config, values["vocab_size"], rngs=rngs))
    ours = hidden_states(declared.graphdef, params["transformer"], *batch(kind))
    real = batch(kind)[1] > 0
    np.testing.assert_allclose(ours[real], GOLDEN[f"{kind}/hidden"][real], atol=1e-4)
    exported = text_heads.bare_arrays(params, config)
    assert exported.keys() == bare.keys()
    for key, value in bare.items():
        np.testing.assert_array_equal(exported[key], value)
    again = interop.config_to_hugging_face(config, values["vocab_size"])
    assert again["architectures"] == [name]
    assert interop.config_from_hugging_face(again) == config


def test_gpt2_as_the_hub_has_it_is_read():
    """Without a prefix, and with the masks that the class computes today."""
    values, weights = golden("gpt2")
    config = interop.config_from_hugging_face(values)
    hub = {name.removeprefix("transformer."): value for name, value in weights.items() if name != "lm_head.weight"}
    hub["h.0.attn.bias"], hub["h.0.attn.masked_bias"] = np.ones((1, 1, 9, 9), np.float32), np.float32(-1e4)
    jax.tree.map(
        np.testing.assert_array_equal, read(interop.sources(hub, config)), read(interop.sources(weights, config))
    )


def test_steps_with_a_cache_are_gpt2s_whole_pass():
    values, weights = golden("gpt2")
    config = interop.config_from_hugging_face(values)
    params = read(interop.sources(weights, config))
    graphdef = functional.declare(lambda rngs: Transformer(config, values["vocab_size"], rngs=rngs)).graphdef

    @jax.jit
    def step(params, tokens, position, cache):
        model = functional.bind(graphdef, params)
        hidden, cache = model.decode(tokens, position, cache)
        return model.logits(hidden), cache

    tokens, cache = GOLDEN["tokens"][:1], init_cache(config, 1, 21)
    first, cache = step(params, tokens[:, :4], np.arange(4, dtype=np.int32)[None], cache)
    parts = [first[0]]
    for place in range(4, 21):
        logits, cache = step(params, tokens[:, place : place + 1], np.array([[place]], np.int32), cache)
        parts.append(logits[0])
    np.testing.assert_allclose(np.concatenate(parts), GOLDEN["gpt2/logits"][0], atol=1e-4)


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
        ("llama", {"model_type": "mamba"}, "model_type='mamba' has no counterpart"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "longrope"}},
            "rope_type='longrope' has no counterpart here; default, l",
        ),
        ("llama", {"rope_scaling": {"type": "linear", "factor": -1.0}}, "factor"),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": "a"}}, "factor"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor has no counterpart"),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear' has no counterpart in"),
        ("modernbert", {"decoder_bias": False}, "decoder_bias=False"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("roberta", {"is_decoder": True}, "is_decoder=True"),
        ("roberta", {"hidden_act": "relu"}, "the head of a masked LM"),
        ("bert", {"hidden_act": "mish"}, "hidden_act='mish' has no counterpart here; gelu, gelu_new, relu have"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ],
)
def test_forms_without_counterpart_are_refused(kind, change, message):
    with pytest.raises(ValueError, match=message):
        interop.config_from_hugging_face(interop.config_to_hugging_face(CONFIGS[kind], 7) | change)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"window": 4, "global_every": 2}, "LlamaForCausalLM has global_every=None only; this model has g"),
        ("llama", {"window": 4, "global_layers": (1,)}, r"global_layers=\(\) only"),
        ("llama", {"feedforward": "geglu"}, "feedforward='swiglu' only"),
        ("qwen3", {"local_rope_theta": 10.0}, "local_rope_theta=None only"),
        ("modernbert", {"num_kv_heads": 1}, "num_kv_heads=2 only"),
        ("modernbert", {"norm_placement": "post"}, "norm_placement='pre_embedding' only"),
        ("bert", {"feedforward": "geglu"}, "feedforward='gelu' only"),
        ("bert", {"window": 4}, "window=None only"),
        ("roberta", {"positions": LearnedPositions(size=9, first=1)}, "has token types"),
        ("distilbert", {"norm_epsilon": 1e-5}, "norm_epsilon=1e-12 only"),
        ("gpt2", {"positions": LearnedPositions(size=9, token_types=2)}, "no token types"),
        ("gpt2", {"num_kv_heads": 1}, "num_kv_heads=2 only"),
    ],
)
def test_models_that_hugging_face_has_not_are_not_exported(kind, change, message):
    with pytest.raises(ValueError, match=message):
        interop.config_to_hugging_face(CONFIGS[kind].replace(**change), 7)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.5, "beta_fast": 8, "truncate": False},
    ],
    ids=lambda scaling: "-".join(map(str, scaling.values())),
)
def test_scaled_positions_come_back(scaling):
    values = interop.config_to_hugging_face(CONFIGS["llama"], 7) | {"max_position_embeddings": 256}
    config = interop.config_from_hugging_face(values | {"rope_parameters": scaling | {"rope_theta": 500.0}})
    assert (config.rope_scaling.kind, config.rope_theta) == (scaling["rope_type"], 500)
    old = {"rope_scaling": {"type" if key == "rope_type" else key: value for key, value in scaling.items()}}
    old |= {"rope_theta": 500.0, "rope_parameters": None}
    assert interop.config_from_hugging_face(values | old) == config
    again = values | interop.config_to_hugging_face(config, 7)
    assert interop.config_from_hugging_face(again) == config
    if scaling["rope_type"] == "dynamic":
        assert again["max_position_embeddings"] == config.rope_scaling.original == 256


def test_a_llama_with_windows_in_every_layer_is_a_mistral():
    config = CONFIGS["llama"].replace(window=4)
    values = interop.config_to_hugging_face(config, 7)
    assert (values["architectures"], values["model_type"]) == (["MistralForCausalLM"], "mistral")
    assert values["sliding_window"] == 5
    assert interop.config_from_hugging_face(values) == config
    assert interop.config_from_hugging_face(values | {"sliding_window": None}) == CONFIGS["llama"]


@pytest.mark.parametrize("kinds", ["ssf", "fss", "sff", "fsf", "sss"])
def test_windows_in_any_layers_come_back(kinds):
    types = [{"s": "sliding_attention", "f": "full_attention"}[kind] for kind in kinds]
    values = interop.config_to_hugging_face(CONFIGS["qwen3"], 7) | {"layer_types": types}
    config = interop.config_from_hugging_face(values)
    assert config.sees_all == tuple(kind == "f" for kind in kinds)
    assert interop.config_from_hugging_face(interop.config_to_hugging_face(config, 7)) == config


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
