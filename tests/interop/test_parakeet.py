import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.interop.hf import parakeet
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.fast_conformer import FastConformer, FastConformerConfig
from jax_speechlm.nn import functional

CONFIG = FastConformerConfig(input_dim=8, dim=8, num_layers=3, num_heads=2, kernel_size=5, channels=4)
BARE = CONFIG.replace(bias=False, subsampling=4, scale_input=False)
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "fast_conformer.npz")
NORM = "layers.0.conv.norm"


def random_params(config):
    """Values of all sizes, none of them where they were initialised."""
    rng = np.random.default_rng(0)

    def values(x):
        return (rng.standard_normal(x.shape) * 10.0 ** rng.integers(-4, 4)).astype(np.float32)

    shapes = functional.declare(lambda rngs: FastConformer(config, rngs=rngs)).shapes
    return {"encoder": jax.tree.map(values, shapes)}


@pytest.mark.parametrize("config", [CONFIG, BARE], ids=["full", "bare"])
def test_there_and_back_is_exact(config):
    params = random_params(config)
    head = {"kernel": np.ones((8, 5), np.float32), "bias": np.arange(5, dtype=np.float32)}
    for whole in (params | {"head": head}, params):
        again = read(parakeet.sources(parakeet.to_hugging_face(whole, config), config))
        jax.tree.map(np.testing.assert_array_equal, again, whole)


STATE_DICT = parakeet.to_hugging_face(random_params(CONFIG), CONFIG)


@given(arrays.arrays(np.float32, (2, 8), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)))
def test_any_scale_and_offset_survive_as_a_batch_norm(values):
    state_dict = STATE_DICT | {f"{NORM}.weight": values[0], f"{NORM}.bias": values[1]}
    encoder = read(parakeet.sources(state_dict, CONFIG))["encoder"]
    np.testing.assert_array_equal(encoder["layers"]["convolution"]["scale"][0], values[0])
    np.testing.assert_array_equal(encoder["layers"]["convolution"]["offset"][0], values[1])


def test_a_batch_norm_folds_as_it_is_defined():
    state_dict, rng = dict(STATE_DICT), np.random.default_rng(1)
    weight, bias, mean, conv_bias = rng.standard_normal((4, 8)).astype(np.float32)
    variance = rng.uniform(0.1, 3, 8).astype(np.float32)
    named = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    state_dict |= {f"{NORM}.{name}": value for name, value in named.items()}
    state_dict["layers.0.conv.depthwise_conv.bias"] = conv_bias
    convolution = read(parakeet.sources(state_dict, CONFIG))["encoder"]["layers"]["convolution"]
    x = rng.standard_normal(8)  # what the convolution gives without its bias
    expected = (x + conv_bias - mean) / np.sqrt(variance + 1e-5) * weight + bias
    np.testing.assert_allclose(x * convolution["scale"][0] + convolution["offset"][0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["full", "bare"])
def test_exports_the_names_and_arrays_that_hugging_face_has(form):
    prefix = f"{form}/weights/"
    theirs = {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN.files if name.startswith(prefix)}
    config = parakeet.config_from_hugging_face(json.loads(str(GOLDEN[f"{form}/config"])))
    ours = parakeet.to_hugging_face(read(parakeet.sources(theirs, config)), config)
    assert {name: (x.shape, x.dtype) for name, x in ours.items()} == {
        name: (x.shape, x.dtype) for name, x in theirs.items()
    }
    for name in theirs:
        if ".conv.norm." not in name and "depthwise_conv.bias" not in name:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("config", [CONFIG, BARE], ids=["full", "bare"])
def test_config_there_and_back(config):
    values = parakeet.config_to_hugging_face(config, vocab_size=7)
    assert (values["vocab_size"], values["pad_token_id"]) == (7, 0)
    assert values["encoder_config"]["intermediate_size"] == 32
    assert parakeet.config_from_hugging_face(values) == config
    assert parakeet.config_from_hugging_face(parakeet.config_to_hugging_face(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"convolution_bias": False}, "convolution_bias=False has no counterpart here; only True"),
        ({"subsampling_factor": 2}, "subsampling"),
        ({"model_type": "wav2vec2"}, "model_type='wav2vec2'"),
    ],
)
def test_forms_without_counterpart_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        parakeet.config_from_hugging_face(parakeet.config_to_hugging_face(CONFIG) | change)


def test_another_head_is_refused_and_a_missing_setting_is_the_class_default():
    values = parakeet.config_to_hugging_face(CONFIG, vocab_size=7)
    with pytest.raises(ValueError, match="model_type='parakeet_tdt'"):
        parakeet.config_from_hugging_face(values | {"model_type": "parakeet_tdt"})
    del values["encoder_config"]["hidden_size"]
    assert parakeet.config_from_hugging_face(values).dim == 1024


def test_state_dicts_that_do_not_fit_are_refused():
    state_dict = dict(STATE_DICT)
    with pytest.raises(ValueError, match=r"no place for, such as 'layers\.2"):
        parakeet.sources(state_dict, CONFIG.replace(num_layers=2))
    with pytest.raises(ValueError, match=r"has no 'layers\.3.*a Parakeet of 4 layers"):
        parakeet.sources(state_dict, CONFIG.replace(num_layers=4))
    with pytest.raises(ValueError, match="does not fit dim=16"):
        parakeet.sources(state_dict, CONFIG.replace(dim=16))
    del state_dict[f"{NORM}.running_mean"]
    with pytest.raises(ValueError, match=r"layers\.0\.conv\.norm lacks"):
        parakeet.sources(state_dict, CONFIG)


def test_the_front_end_there_and_back():
    mel = LogMel(variant="nemo", num_mel_bins=128, stack=1)
    values = parakeet.features_to_hugging_face(mel)
    assert parakeet.features_from_hugging_face(values) == mel
    for change in ({"preemphasis": 0.9}, {"feature_extractor_type": "WhisperFeatureExtractor"}):
        with pytest.raises(ValueError, match="has no counterpart here"):
            parakeet.features_from_hugging_face(values | change)
    for other in (mel.replace(normalize=False), mel.replace(variant="kaldi"), mel.replace(stack=2)):
        with pytest.raises(ValueError, match="export a run that was trained with variant nemo"):
            parakeet.features_to_hugging_face(other)
