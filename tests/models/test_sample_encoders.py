import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.interop.hf import wav2vec2
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.encoders import forward_flops, make_encoder
from jax_speechlm.models.wav2vec2 import BASE, SIZES, RelativeBias, Wav2Vec2EncoderConfig
from jax_speechlm.nn import functional

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "sample_encoders.npz")
NAMES = sorted({name.partition("/")[0] for name in GOLDEN.files if "/" in name})
AUDIO = [GOLDEN[f"audio_{row}"] for row in range(4)]


def golden(name):
    """The state dict, config and parameters of a golden model."""
    prefix = f"{name}/weights/"
    weights = {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}
    values = json.loads(str(GOLDEN[f"{name}/config"]))
    config = wav2vec2.config_from_hugging_face(values)
    return weights, values, config, read(wav2vec2.sources(weights, config, values["architectures"][0]))["encoder"]


def padded(audio, junk):
    """A batch of rows whose padding holds junk."""
    longest = max(map(len, audio)) + 100
    rows = [np.pad(samples, (0, longest - len(samples)), constant_values=junk) for samples in audio]
    return {"audio": jnp.asarray(np.stack(rows)), "audio_length": jnp.array(list(map(len, audio)))}


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_are_those_of_hugging_face_whatever_else_is_in_the_batch(name):
    weights, values, config, params = golden(name)
    graphdef = functional.declare(lambda rngs: make_encoder(config, rngs=rngs)).graphdef

    @jax.jit
    def run(params, batch):
        return functional.bind(graphdef, params)(*features(batch, FrontEnd(mel=Waveform()), None), taps=(0,))

    output, taps = run(params, padded(AUDIO, junk=9999))
    for row, samples in enumerate(AUDIO):
        count = config.num_frames(len(samples))
        expected = GOLDEN[f"{name}/hidden_{row}"]
        assert expected.shape == (count, 16)
        np.testing.assert_allclose(output[row, :count], expected, atol=1e-4)
        np.testing.assert_allclose(taps[0][row, :count], GOLDEN[f"{name}/first_{row}"], atol=1e-4)
        assert not output[row, count:].any()

    arrays = wav2vec2.to_hugging_face({"encoder": params}, config)
    assert arrays.keys() == weights.keys()
    assert all(np.array_equal(arrays[key], weights[key]) for key in arrays)
    settings = wav2vec2.config_to_hugging_face(config)
    assert wav2vec2.config_from_hugging_face(settings) == config
    # All but the rates of dropout, of which ours has one, and the extractor's masks.
    rates = {name for name in settings if name.endswith(("dropout", "layerdrop")) or "spec_augment" in name}
    assert {key: values[key] for key in settings.keys() - rates if key in values} == {
        key: settings[key] for key in settings.keys() - rates if key in values
    }


def test_files_of_earlier_versions_have_other_names_of_the_weight_norm():
    weights, values, config, params = golden("wav2vec2")
    conv = "encoder.pos_conv_embed.conv"
    old = {
        name.replace(f"{conv}.parametrizations.weight.original0", f"{conv}.weight_g").replace(
            f"{conv}.parametrizations.weight.original1", f"{conv}.weight_v"
        ): array
        for name, array in weights.items()
    }
    assert f"{conv}.weight_g" in old
    again = read(wav2vec2.sources(old, config, values["architectures"][0]))["encoder"]
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_features_are_those_of_the_extractor():
    batch = padded(AUDIO, junk=-7)
    x, lengths = features(batch, FrontEnd(mel=Waveform()), None)
    assert x.shape == (*batch["audio"].shape, 1)
    np.testing.assert_allclose(x[0, : len(AUDIO[0]), 0], GOLDEN["features_0"], atol=1e-5)
    assert not x[0, len(AUDIO[0]) :].any()
    assert lengths.tolist() == [len(samples) for samples in AUDIO]
    as_is, _ = features(batch, FrontEnd(mel=Waveform(normalize=False)), None)
    np.testing.assert_array_equal(as_is[1, :2400, 0], AUDIO[1] / np.float32(32768))


def test_a_long_recording_is_normalised_exactly():
    samples = (np.random.default_rng(0).normal(900, 20, 1 << 19)).astype(np.int16)  # 33 s, quiet and off centre
    x, _ = features(padded([samples], junk=0), FrontEnd(mel=Waveform()), None)
    exact = samples / 32768.0
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-7)
    np.testing.assert_allclose(x[0, : len(samples), 0], exact, atol=1e-4)


def test_sizes_are_those_published():
    counts = {}
    for name, config in SIZES.items():
        shapes = functional.declare(lambda rngs, config=config: make_encoder(config, rngs=rngs)).shapes
        counts[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert (config.reach, config.subsampling) == (400, 320)
        assert config.num_frames(np.array([0, 399, 400, 719, 720, 16_000])).tolist() == [0, 0, 1, 1, 2, 49]
    # As transformers counts them, but for the filler of masked frames.
    expected = {"BASE": 94_371_712, "LARGE": 315_438_720, "WAVLM": 94_381_936, "DATA2VEC": 93_164_288}
    assert counts == {name: count - SIZES[name].dim for name, count in expected.items()}
    assert forward_flops(BASE, 160_000, 1) > 2 * 94e6 * 499


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": (5,)}, "one entry a convolution"),
        ({"channels": (4,), "kernels": (3,), "strides": (4,)}, "would leave out samples"),
        ({"dim": 20, "num_heads": 3}, "multiple of num_heads"),
        ({"dim": 24}, "multiple of position_groups"),
    ],
)
def test_impossible_shapes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Wav2Vec2EncoderConfig(**settings)


def test_a_bias_without_steps_is_refused():
    with pytest.raises(ValueError, match="must exceed a quarter of buckets"):
        RelativeBias(buckets=320, longest=80)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "relu"}, {"feat_extract_activation": "relu"}, {"layer_norm_eps": 1e-6}, {"add_adapter": True},
        {"adapter_attn_dim": 16}, {"model_type": "sew"},
    ],
)  # fmt: skip
def test_forms_without_a_counterpart_are_refused_with_the_setting(change):
    _, values, _, _ = golden("wav2vec2")
    with pytest.raises(ValueError, match=next(iter(change))):
        wav2vec2.config_from_hugging_face(values | change)
