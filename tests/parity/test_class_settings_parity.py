"""The table of defaults and other names (`interop.class_settings`) against the classes of transformers."""

import dataclasses
import inspect
import json

import pytest

from jax_speechlm.interop.hf import transformer
from jax_speechlm.interop.hf.class_settings import ACTIVATIONS, DEFAULTS, FEATURES, VOXTRAL_TEXT
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.interop.hf.weights import read_weights, write_weights
from tests.parity.test_import_parity import write

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

CLASSES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen3": "Qwen3Config",
    "qwen2": "Qwen2Config",
    "modernbert": "ModernBertConfig",
    "bert": "BertConfig",
    "roberta": "RobertaConfig",
    "xlm-roberta": "XLMRobertaConfig",
    "distilbert": "DistilBertConfig",
    "gpt2": "GPT2Config",
    "wav2vec2": "Wav2Vec2Config",
    "hubert": "HubertConfig",
    "wavlm": "WavLMConfig",
    "data2vec-audio": "Data2VecAudioConfig",
    "wav2vec2-bert": "Wav2Vec2BertConfig",
    "parakeet_encoder": "ParakeetEncoderConfig",
    "parakeet_ctc": "ParakeetCTCConfig",
    "nemotron_asr_streaming_encoder": "NemotronAsrStreamingEncoderConfig",
    "nemotron_asr_streaming": "NemotronAsrStreamingConfig",
    "voxtral": "VoxtralConfig",
    "voxtral_encoder": "VoxtralEncoderConfig",
    "whisper": "WhisperConfig",
    "wavtokenizer": "WavTokenizerConfig",
    "speecht5_hifigan": "SpeechT5HifiGanConfig",
    "fastspeech2_conformer_hifigan": "FastSpeech2ConformerHifiGanConfig",
}
_BY_ARGUMENT = "rope_theta", "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"
"""Settings that are no fields of a class, but arguments of older files."""
_BY_INSTANCE = ("resblock_dilation_sizes",)
"""Settings whose default an object has, not the class."""


def test_every_default_is_that_of_the_class():
    assert CLASSES.keys() == DEFAULTS.keys()
    for model_type, name in CLASSES.items():
        kind = getattr(transformers, name)
        assert kind.model_type == model_type
        if model_type not in (
            "whisper",
            "distilbert",
            "gpt2",
            "voxtral_encoder",
        ):  # whose files have the names that the table has
            assert not kind.attribute_map  # no setting has a second name
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for setting, value in DEFAULTS[model_type].items():
            if setting in _BY_ARGUMENT:
                continue
            field = fields[setting]
            theirs = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            theirs = getattr(kind(), setting) if setting in _BY_INSTANCE else theirs
            theirs = json.loads(json.dumps(theirs)) if isinstance(theirs, tuple | list) else theirs
            assert (ACTIVATIONS.get(theirs, theirs) if isinstance(theirs, str) else theirs) == value, (name, setting)


def test_every_default_of_rotary_positions_is_that_of_the_class():
    for model_type in ("llama", "qwen3", "qwen2"):
        assert getattr(transformers, CLASSES[model_type]).default_theta == DEFAULTS[model_type]["rope_theta"]
    both = {name: DEFAULTS["modernbert"][f"{name}_rope_theta"] for name in ("global", "local")}
    assert transformers.ModernBertConfig.default_theta == both
    every = DEFAULTS["modernbert"]["global_attn_every_n_layers"]
    assert [i for i, name in enumerate(transformers.ModernBertConfig().layer_types) if name == "full_attention"] == [
        i for i in range(DEFAULTS["modernbert"]["num_hidden_layers"]) if i % every == 0
    ]


def test_every_default_of_parts_and_extractors_is_that_of_the_class():
    text = transformers.VoxtralConfig.sub_configs_defaults["text_config"]
    assert {name: value for name, value in text.init_kwargs.items() if name in VOXTRAL_TEXT} == {
        name: value for name, value in VOXTRAL_TEXT.items() if name != "model_type"
    }
    assert text.init_kwargs.keys() - VOXTRAL_TEXT.keys() == {"use_cache"}
    assert text.model_type == VOXTRAL_TEXT["model_type"]
    for name, defaults in FEATURES.items():
        theirs = inspect.signature(getattr(transformers, name).__init__).parameters
        assert {setting: theirs[setting].default for setting in defaults} == defaults


def test_every_alias_of_an_activation_is_in_the_table_and_no_other_function():
    """By what each computes: transformers has two dozen names."""
    x = torch.linspace(-20, 20, 1001)  # clipped ones differ far out
    known = {"silu": torch.nn.functional.silu(x), "gelu": torch.nn.functional.gelu(x)}
    known["gelu_new"] = torch.nn.functional.gelu(x, approximate="tanh")
    found = {}
    for name, made in transformers.activations.ACT2CLS.items():
        if name in ("prelu", "xielu"):  # which learn
            continue
        kind, arguments = made if isinstance(made, tuple) else (made, {})
        for ours, expected in known.items():
            if name != ours and torch.allclose(kind(**arguments)(x), expected, rtol=0, atol=1e-6):
                found[name] = ours
    assert found == ACTIVATIONS


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 0, "num_hidden_layers": 4},
        {"model_type": "qwen3", "use_sliding_window": False, "sliding_window": 7},
        {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4},
        {"model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": None},
        {"model_type": "modernbert", "num_hidden_layers": 7, "global_attn_every_n_layers": 2},
    ],
)
def test_a_file_that_leaves_settings_out_is_read_as_the_class_reads_it(values):
    ours = transformer.config_from_hugging_face(values)
    theirs = transformers.AutoConfig.for_model(**values)
    assert (ours.num_layers, ours.dim) == (theirs.num_hidden_layers, theirs.hidden_size)
    if values["model_type"] != "modernbert":
        assert (ours.head_dim, ours.num_kv_heads) == (theirs.head_dim, theirs.num_key_value_heads)
    if values["model_type"] != "llama":
        assert list(ours.sees_all) == [name == "full_attention" for name in theirs.layer_types]


@pytest.mark.parametrize("kind", ["qwen3", "llama", "ctc"])
def test_a_folder_that_leaves_its_class_defaults_out_gives_what_transformers_gives(tmp_path, kind):
    """And with a tied table under the other name, buffers of old, swish for silu, an inner width of any size."""
    changes = {"ctc": {"intermediate_size": 40}, "qwen3": {"head_dim": 128}}.get(kind, {})
    write(tmp_path / "theirs", kind, **changes)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    fields = dataclasses.fields(getattr(transformers, CLASSES[config["model_type"]]))
    defaults = {field.name: field.default for field in fields}
    short = {name: value for name, value in config.items() if name == "model_type" or defaults.get(name, ...) != value}
    assert len(short) < len(config) - 3
    short |= {"hidden_act": {"ctc": "silu"}.get(kind, "swish")}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(short))
    arrays = dict(read_weights(tmp_path / "theirs"))
    if kind == "qwen3":
        arrays["lm_head.weight"] = arrays.pop("model.embed_tokens.weight")
    if kind != "ctc":
        arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4).numpy()
    arrays = {name: array.copy() for name, array in arrays.items()}
    for file in (tmp_path / "theirs").glob("*.safetensors*"):
        file.unlink()
    write_weights(tmp_path / "theirs", arrays)
    verdict = import_run(tmp_path / "theirs", tmp_path / "run")
    assert verdict.is_full
    assert not verdict.failed
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    assert verdict.to_json()["read_by"] == versions
