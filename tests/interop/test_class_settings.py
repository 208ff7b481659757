"""What a config.json leaves out is its class's default, and one value may have several names."""

import json

import numpy as np
import pytest

from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import parakeet, transformer, voxtral, wav2vec2, wav2vec2_bert
from jax_speechlm.interop.hf.class_settings import DEFAULTS, VOXTRAL_TEXT, completed
from jax_speechlm.interop.hf.feature_extractor import front_end_from_hugging_face
from jax_speechlm.interop.hf.import_ import read_folder
from jax_speechlm.interop.hf.registry import package, read_model, write_model
from jax_speechlm.interop.hf.weights import read_weights, write_weights
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.encoder_decoder import SIZES
from jax_speechlm.nn import functional
from tests.interop.foreign_folders import write_json, write_text_model
from tests.interop.tiny_runs import tiny_run

READERS = {
    **dict.fromkeys(
        ("llama", "qwen3", "qwen2", "modernbert", "bert", "roberta", "xlm-roberta", "distilbert", "gpt2", "mistral"),
        transformer.config_from_hugging_face,
    ),
    **dict.fromkeys(wav2vec2.FAMILIES, wav2vec2.config_from_hugging_face),
    "wav2vec2-bert": wav2vec2_bert.config_from_hugging_face,
    "parakeet_ctc": parakeet.config_from_hugging_face,
}
SPECIAL = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}


@pytest.mark.parametrize("model_type", READERS)
def test_class_defaults_are_the_class_s_own(model_type):
    """A config.json of nothing but its type, and one that spells every default out, are one model."""
    kind = {"model_type": model_type}
    found, spelled = READERS[model_type](kind), READERS[model_type](DEFAULTS[model_type] | kind)
    assert found == spelled
    part = "parakeet_encoder" if model_type == "parakeet_ctc" else model_type
    own = {"distilbert": ("dim", "n_layers"), "gpt2": ("n_embd", "n_layer")}
    width, depth = own.get(model_type, ("hidden_size", "num_hidden_layers"))
    assert (found.dim, found.num_layers) == (DEFAULTS[part][width], DEFAULTS[part][depth])


def test_class_default_of_qwen3_heads_is_128_wide():
    """Not hidden_size over num_attention_heads, as Llama's is."""
    small = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert transformer.config_from_hugging_face(small | {"model_type": "qwen3"}).head_dim == 128
    assert transformer.config_from_hugging_face(small | {"model_type": "llama"}).head_dim == 16
    with pytest.raises(ValueError, match="head_dim=None is not possible in Qwen3"):
        transformer.config_from_hugging_face(small | {"model_type": "qwen3", "head_dim": None})
    none = {"model_type": "qwen3", "num_attention_heads": 16, "num_key_value_heads": None}
    assert transformer.config_from_hugging_face(none).num_kv_heads == 16  # as many as heads, where it is null


def test_class_defaults_of_windows():
    """Of Qwen3 28 layers see everything before the first with a window; Llama has none, whatever the file says."""
    windows = {"use_sliding_window": True, "num_hidden_layers": 32, "num_attention_heads": 32, "max_window_layers": 0}
    qwen = transformer.config_from_hugging_face(windows | {"model_type": "qwen3"})
    assert qwen.window == 4095
    assert not any(qwen.sees_all)
    late = transformer.config_from_hugging_face({**windows, "model_type": "qwen3", "max_window_layers": 28})
    assert late.sees_all == (True,) * 28 + (False,) * 4
    types = {"layer_types": ["sliding_attention"] * 32}
    assert transformer.config_from_hugging_face(windows | types | {"model_type": "llama"}).window is None
    with pytest.raises(ValueError, match="use_sliding_window is false"):
        transformer.config_from_hugging_face(types | {"model_type": "qwen3"})
    with pytest.raises(ValueError, match="'chunked_attention', which has no counterpart"):
        transformer.config_from_hugging_face({"model_type": "qwen3", "layer_types": ["chunked_attention"] * 32})


def test_class_default_of_roberta_positions_is_behind_1():
    assert transformer.config_from_hugging_face({"model_type": "roberta"}).positions.first == 2
    with pytest.raises(ValueError, match="pad_token_id=None is not possible in RoBERTa"):
        transformer.config_from_hugging_face({"model_type": "roberta", "pad_token_id": None})


@pytest.mark.parametrize(
    ("model_type", "rope", "theta"),
    [
        ("llama", {"rope_scaling": {"type": "default", "rope_theta": 7.0}}, 7.0),
        ("llama", {"rope_scaling": {"rope_type": "default"}, "rope_theta": 5.0}, 5.0),
        ("qwen3", {"rope_parameters": {"type": "default"}}, 10_000.0),
        ("modernbert", {"rope_parameters": {"full_attention": None}}, 160_000.0),
        ("modernbert", {"rope_scaling": {"rope_type": "default"}, "global_rope_theta": 3.0}, 3.0),
    ],
)
def test_rotary_settings_of_any_version(model_type, rope, theta):
    assert transformer.config_from_hugging_face({"model_type": model_type} | rope).rope_theta == theta
    scaled = {"rope_scaling": {"type": "longrope", "factor": 2.0}}
    with pytest.raises(ValueError, match=r"rope_type='longrope' has no counterpart"):
        transformer.config_from_hugging_face({"model_type": model_type} | scaled)


@pytest.mark.parametrize(
    ("model_type", "setting", "names", "other"),
    [
        ("llama", "hidden_act", ("silu", "swish"), "gelu"),
        ("qwen3", "hidden_act", ("silu", "swish"), "relu"),
        ("modernbert", "hidden_activation", ("gelu", "gelu_python"), "gelu_new"),
        ("modernbert", "classifier_activation", ("gelu", "gelu_python"), "silu"),
        ("bert", "hidden_act", ("gelu_new", "gelu_pytorch_tanh"), "mish"),
        ("roberta", "hidden_act", ("gelu", "gelu_python"), "mish"),
        ("wav2vec2-bert", "hidden_act", ("swish", "silu"), "gelu"),
        ("parakeet_encoder", "hidden_act", ("silu", "swish"), "relu"),
    ],
)
def test_aliases_of_an_activation_are_one_function(model_type, setting, names, other):
    read = READERS.get(model_type, parakeet.config_from_hugging_face)
    one, two = (read({"model_type": model_type, setting: name}) for name in names)
    assert one == two
    with pytest.raises(ValueError, match=f"{setting}='{other}' has no counterpart"):
        read({"model_type": model_type, setting: other})


def test_parts_of_a_model_have_the_defaults_that_the_whole_gives_them():
    """Voxtral's of its language model come before Llama's; and a tower that is not named is its own, not ours."""
    found = completed({"model_type": "voxtral", "text_config": {"hidden_size": 64}})
    assert found["text_config"] == completed(VOXTRAL_TEXT | {"hidden_size": 64})
    assert found["text_config"]["head_dim"] == 128
    assert (
        completed({"model_type": "voxtral", "text_config": {"model_type": "qwen3"}})["text_config"]["rms_norm_eps"]
        == 1e-5
    )
    mistrals = voxtral.config_from_hugging_face({"model_type": "voxtral"})
    assert mistrals.encoder == SIZES["large-v3"].encoder
    assert mistrals.adapter == Stacking(frames=4, hidden_dim=3072, bias=False, activation="gelu")
    assert (mistrals.transformer.num_layers, mistrals.transformer.dim) == (30, 3072)
    for wrong in (
        {"projector_hidden_act": "silu"},
        {"audio_config": {"model_type": "wav2vec2"}},
        {"audio_config": {"model_type": "voxtral_encoder", "activation_function": "relu"}},
    ):
        with pytest.raises(ValueError, match=r"has no counterpart|activation_function"):
            voxtral.config_from_hugging_face({"model_type": "voxtral"} | wrong)


def test_class_defaults_of_feature_extractors():
    assert front_end_from_hugging_face({"feature_extractor_type": "SeamlessM4TFeatureExtractor"}).num_mel_bins == 80
    assert front_end_from_hugging_face({"feature_extractor_type": "ParakeetFeatureExtractor"}).num_mel_bins == 80


@pytest.mark.parametrize("model_type", ["wav2vec2-bert", "parakeet_encoder"])
@pytest.mark.parametrize(("outer", "inner"), [(48, 100), (1024, 2730), (768, 1), (16, 17), (1000, 4097)])
def test_an_inner_width_that_is_no_multiple_comes_back_exactly(model_type, outer, inner):
    form = wav2vec2_bert if model_type == "wav2vec2-bert" else parakeet
    values = {"model_type": model_type, "hidden_size": outer, "intermediate_size": inner, "num_attention_heads": 1}
    config = form.config_from_hugging_face(values)
    assert config.ffn_dim == inner
    assert type(config).from_json(config.model_dump_json()) == config
    assert form.config_to_hugging_face(config)["intermediate_size"] == inner


def test_an_inner_width_that_is_no_multiple_is_a_model():
    run = tiny_run("ctc")
    run.experiment.__dict__["model"] = run.experiment.model.replace(ffn_multiple=2.5)
    built = run.experiment.objective.build(run.experiment.model, run.experiment.frontend, run.tokenizer)
    shapes = functional.declare(built.make).shapes
    assert shapes["encoder"]["layers"]["ffn1"]["expand"]["kernel"].shape == (2, 16, 40)


def test_voxtral_joins_whole_frames_only():
    tower = {"model_type": "wav2vec2-bert", "hidden_size": 16, "intermediate_size": 40, "num_attention_heads": 2}
    values = {"model_type": "voxtral", "projector_hidden_act": "relu", "audio_config": tower}
    with pytest.raises(ExportError, match=r"here 2\.5: the encoder's intermediate_size must be a multiple"):
        voxtral.config_from_hugging_face(values)


def test_buffers_of_earlier_versions_are_left_out(tmp_path):
    """Every class computes them today, and transformers does not load them."""
    arrays = write_text_model(tmp_path / "llama", "llama", **SPECIAL)
    for file in (tmp_path / "llama").glob("*.safetensors*"):
        file.unlink()
    frequencies = np.ones(4, np.float32)
    old = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": frequencies for layer in range(2)}
    write_weights(tmp_path / "llama", arrays | old, shard_bytes=20_000)
    assert read_weights(tmp_path / "llama").keys() == arrays.keys()
    read_folder(tmp_path / "llama")

    run = package(tiny_run("bert"))
    (tmp_path / "bert").mkdir()
    write_model(tmp_path / "bert", run)
    ids = {
        "bert.embeddings.position_ids": np.arange(64)[None],
        "bert.embeddings.token_type_ids": np.zeros((1, 64), int),
    }
    write_weights(tmp_path / "bert", run.arrays | ids)  # of whole numbers
    read_folder(tmp_path / "bert")


TABLES = {
    "qwen3": ("model.embed_tokens.weight", "lm_head.weight"),
    "masked_lm": ("model.embeddings.tok_embeddings.weight", "decoder.weight"),
    "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_tied_table_is_read_under_either_name(tmp_path, name):
    run, (one, other) = tiny_run(name), TABLES[name]
    made = package(run)
    table = made.arrays[one]
    assert run.experiment.model.tied
    rest = {key: value for key, value in made.arrays.items() if key not in (one, other)}
    for names in ((one,), (other,), (one, other)):
        write_model(tmp_path, made)
        write_weights(tmp_path, rest | dict.fromkeys(names, table))
        found = read_model(tmp_path).params["transformer"]["embedding"]
        np.testing.assert_array_equal(found, table)
        read_folder(tmp_path)
    write_weights(tmp_path, rest | {one: table, other: table + 1})
    with pytest.raises(ExportError, match="set tie_word_embeddings to false"):
        read_model(tmp_path)


def test_class_names_left_out_are_the_class_s(tmp_path):
    """LABEL_0, LABEL_1, ... of as many as num_labels says."""
    write_model(tmp_path, package(tiny_run("frames")))
    config = json.loads((tmp_path / "config.json").read_text())
    count = len(config.pop("id2label"))
    write_json(tmp_path, "config.json", config | {"num_labels": count})
    assert read_folder(tmp_path).experiment.objective.classes == tuple(f"LABEL_{n}" for n in range(count))
