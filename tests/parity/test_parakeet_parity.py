"""The FastConformer and its front end against a live, randomly initialised ParakeetForCTC and its feature extractor."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.logmel import LogMel, log_mel
from jax_speechlm.interop.hf import parakeet
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.fast_conformer import FastConformer
from jax_speechlm.nn import functional

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

FORMS = {
    "as published": {},
    "without biases, four times fewer": {
        "attention_bias": False, "convolution_bias": False, "scale_input": False, "subsampling_factor": 4,
        "num_mel_bins": 128,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=FORMS)
def reference(request):
    torch.manual_seed(1)
    encoder = {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256,
        "subsampling_conv_channels": 32, "layerdrop": 0.0,
    }  # fmt: skip
    config = transformers.ParakeetCTCConfig(
        vocab_size=32, pad_token_id=0, encoder_config=encoder | FORMS[request.param]
    )
    model = transformers.ParakeetForCTC(config)
    with torch.no_grad():  # batch norms as after training, and logits of a size that an error would show in
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "bias_" not in name:
                parameter.normal_(0, (parameter.numel() // parameter.shape[0]) ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
        for name, statistic in model.named_buffers():
            if name.endswith("running_mean"):
                statistic.normal_(0, 0.3)
            elif name.endswith("running_var"):
                statistic.uniform_(0.2, 2)
    return model.eval()


def audio(lengths):
    """Noise whose loudness and colour wander, int16."""
    rng = np.random.default_rng(1)
    samples = rng.standard_normal((len(lengths), max(lengths)))
    samples = np.cumsum(samples, axis=1) % 30 - 15 + 10 * samples
    loudness = np.exp(np.cumsum(rng.standard_normal(samples.shape) * 0.02, axis=1).clip(-3, 3))
    samples = np.clip(40 * samples * loudness, -32768, 32767).astype(np.int16)
    return [row[:length] for row, length in zip(samples, lengths, strict=True)]


def padded(rows, junk=0):
    most = max(map(len, rows))
    return np.stack([np.pad(row, (0, most - len(row)), constant_values=junk) for row in rows])


LENGTHS = (32_100, 17_777, 9_999, 1_439, 480)


@pytest.mark.parametrize("bins", [80, 128])
def test_features(bins):
    rows = audio(LENGTHS)
    extractor = transformers.ParakeetFeatureExtractor(**parakeet.features_to_hugging_face(_mel(bins)))
    floats = [row.astype(np.float32) / 32768 for row in rows]
    expected = extractor(floats, sampling_rate=16_000, return_tensors="np")
    compute = jax.jit(partial(log_mel, config=_mel(bins)))
    features, length = compute(padded(rows, junk=5_000), np.array(LENGTHS))
    np.testing.assert_array_equal(length, expected["attention_mask"].sum(-1))
    for row, frames in enumerate(length):
        np.testing.assert_allclose(features[row, :frames], expected["input_features"][row, :frames], rtol=0, atol=1e-4)


def test_hidden_states_and_logits_from_audio(reference):
    """From samples to logits, lengths mixed, right-padded as the feature extractor does."""
    config = parakeet.config_from_hugging_face(reference.config.to_dict())
    state_dict = {name: value.numpy() for name, value in reference.state_dict().items()}
    params = read(parakeet.sources(state_dict, config))
    encoder, head = params["encoder"], params["head"]
    rows, mel = audio(LENGTHS), _mel(config.input_dim)
    extractor = transformers.ParakeetFeatureExtractor(**parakeet.features_to_hugging_face(mel))
    inputs = extractor([row / np.float32(32768) for row in rows], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**inputs, output_hidden_states=True)
    assert expected.logits.std() > 0.3

    graphdef = functional.declare(lambda rngs: FastConformer(config, rngs=rngs)).graphdef
    run = jax.jit(partial(_encode, graphdef, mel))
    (hidden, tapped), lengths = run(encoder, padded(rows, junk=-3_000), np.array(LENGTHS))
    logits = hidden @ head["kernel"] + head["bias"]
    for row, length in enumerate(config.num_frames(np.asarray(lengths))):
        for layers in range(4):
            theirs = expected.hidden_states[layers][row, :length].numpy()
            np.testing.assert_allclose(tapped[layers][row, :length], theirs, atol=1e-4)
        np.testing.assert_allclose(logits[row, :length], expected.logits[row, :length].numpy(), atol=1e-4)


def test_what_we_export_loads_strictly_and_computes_the_same(reference):
    config = parakeet.config_from_hugging_face(reference.config.to_dict())
    state_dict = {name: value.numpy() for name, value in reference.state_dict().items()}
    params = read(parakeet.sources(state_dict, config))
    values = parakeet.config_to_hugging_face(config, vocab_size=32)
    model = transformers.ParakeetForCTC(transformers.ParakeetCTCConfig(**values)).eval()
    exported = parakeet.to_hugging_face(params, config)
    model.load_state_dict({name: torch.tensor(value) for name, value in exported.items()}, strict=True)
    features = torch.randn(2, 140, config.input_dim)
    with torch.no_grad():
        np.testing.assert_allclose(model(features).logits, reference(features).logits, atol=2e-5)
    again = read(parakeet.sources({name: x.numpy() for name, x in model.state_dict().items()}, config))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def _mel(bins):
    return LogMel(variant="nemo", num_mel_bins=bins, stack=1)


def _encode(graphdef, mel, params, samples, num_samples):
    features, length = log_mel(jnp.asarray(samples), num_samples, mel)
    return functional.bind(graphdef, params)(features, length, taps=(0, 1, 2, 3)), length
