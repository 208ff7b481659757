"""The WavTokenizer codec against a live, randomly initialised `WavTokenizerModel`."""

import dataclasses

import jax
import numpy as np
import pytest

import jax_speechlm
from jax_speechlm.interop.hf import wav_tokenizer
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizer
from jax_speechlm.nn import functional
from tests.golden.make_wav_tokenizer import scatter

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SMALL = {
    "sampling_rate": 16_000, "num_filters": 8, "upsampling_ratios": [8, 5, 4, 2], "hidden_size": 32, "codebook_dim": 32,
    "codebook_size": 64, "decoder_hidden_size": 64, "decoder_intermediate_size": 96, "decoder_num_layers": 3,
    "decoder_attention_num_groups": 8,
}  # fmt: skip
FORMS = {
    "50 Hz": SMALL,
    "25 Hz, two residual layers, identity shortcuts, one LSTM layer": SMALL
    | {
        "upsampling_ratios": [8, 5, 4, 4], "num_residual_layers": 2, "use_conv_shortcut": False, "num_lstm_layers": 1,
        "adanorm_num_embeddings": 1, "last_kernel_size": 3,
    },
    "odd strides": SMALL | {"upsampling_ratios": [2, 5, 3], "compress": 4},
}  # fmt: skip


@dataclasses.dataclass
class Pair:
    """A codec of transformers, and ours with its weights."""

    theirs: "transformers.WavTokenizerModel"

    def __post_init__(self):
        self.config = wav_tokenizer.config_from_hugging_face(self.theirs.config.to_dict())
        arrays = {name: value.numpy() for name, value in self.theirs.state_dict().items()}
        self.params = read(wav_tokenizer.sources(arrays, self.config))
        graphdef = functional.declare(lambda rngs: WavTokenizer(self.config, rngs=rngs)).graphdef

        def bind(params):
            return functional.bind(graphdef, params["autoencoder"])

        self.latents = jax.jit(lambda params, *x: bind(params).latents(*x))
        self.encode = jax.jit(lambda params, *x: bind(params).encode(*x))
        self.decode = jax.jit(lambda params, *x: bind(params).decode(*x))


@pytest.fixture(scope="module", params=FORMS)
def pair(request):
    torch.manual_seed(0)
    model = transformers.WavTokenizerModel(transformers.WavTokenizerConfig(**FORMS[request.param])).eval()
    scatter(model)
    with torch.no_grad():
        model.encoder_model.encoder.layers[-1].conv.bias.zero_()
        latents = model.encoder_model.encoder(torch.from_numpy(wave(47_999, 5))[None, None])[0].T
        codebook = model.encoder_model.quantizer.codebook
        codebook.embed.copy_(latents[torch.randperm(len(latents))[: len(codebook.embed)]])  # codes as of a trained one
        codebook.cluster_size.uniform_(0, 1)
        codebook.embed_avg.normal_()
    return Pair(model)


def wave(length, seed):
    rng = np.random.default_rng(seed)
    seconds = np.arange(length) / 16_000
    tone = np.sin(2 * np.pi * (150 + 900 * seconds) * seconds) * (1 + np.sin(20 * seconds))
    return (0.2 * tone + 0.05 * rng.standard_normal(length)).astype(np.float32)


LENGTHS = (16_000, 15_999, 12_345, 641, 640, 321, 320, 319, 33, 7, 2, 1)
"""Whole and partial hops, and utterances that are shorter than their reflections."""


def test_vectors_codes_and_samples_are_those_of_transformers(pair):
    num_different, num_codes = 0, 0
    codebook = pair.params["autoencoder"]["quantizer"]["vectors"]
    for length in LENGTHS:
        audio = wave(length, length)
        with torch.no_grad():
            tensor = torch.from_numpy(audio)[None, None]
            latents = pair.theirs.encoder_model.encoder(tensor)[0].T.numpy()
            codes = pair.theirs.encode(tensor).audio_codes[0, 0].numpy()
            samples = pair.theirs.decode(torch.from_numpy(codes)[None, None]).audio_values[0, 0].numpy()
        # ours in a longer row, which has junk behind the utterance
        padded = np.full((1, 16_640), 50, np.float32)
        padded[0, :length] = audio
        x, count = jax.device_get(pair.latents(pair.params, padded, np.array([length])))
        assert count == len(codes) == -(-length // pair.config.hop)
        np.testing.assert_allclose(x[0, : len(codes)], latents, atol=1e-4)
        own, _ = jax.device_get(pair.encode(pair.params, padded, np.array([length])))
        assert not own[0, len(codes) :].any()
        for place in np.flatnonzero(own[0, : len(codes)] != codes):  # equal distances but for rounding
            squared = np.sum((latents[place] - codebook[[own[0, place], codes[place]]]) ** 2, axis=-1)
            assert abs(squared[0] - squared[1]) < 1e-5 * (np.sum(latents[place] ** 2) + squared.sum()), (length, place)
            num_different += 1
        num_codes += len(codes)
        row = np.full((1, own.shape[1]), 3, np.int32)
        row[0, : len(codes)] = codes
        audio, count = jax.device_get(pair.decode(pair.params, row, np.array([len(codes)])))
        assert count == len(samples) == len(codes) * pair.config.hop
        np.testing.assert_allclose(audio[0, : count[0]], samples, atol=1e-4)
        assert not audio[0, count[0] :].any()
    assert num_different == 0, f"{num_different} of {num_codes} codes are another of two at equal distance"


def test_weights_come_back(pair):
    arrays = wav_tokenizer.to_hugging_face(pair.params, pair.config)
    theirs = {name: value.numpy() for name, value in pair.theirs.state_dict().items()}
    assert arrays.keys() == theirs.keys()
    assert {name: array.shape for name, array in arrays.items()} == {name: x.shape for name, x in theirs.items()}
    again = read(wav_tokenizer.sources(arrays, pair.config))
    jax.tree.map(np.testing.assert_array_equal, again, pair.params)
    length = pair.config.hop * 9 + 5
    with torch.no_grad():
        other = transformers.WavTokenizerModel(pair.theirs.config).eval()
        other.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        audio = torch.from_numpy(wave(length, 1))[None, None]
        np.testing.assert_allclose(other(audio).audio_values, pair.theirs(audio).audio_values, atol=1e-5)


def test_settings_come_back(pair):
    settings = wav_tokenizer.config_to_hugging_face(pair.config, 16_000)
    theirs = pair.theirs.config.to_dict()
    assert {name: theirs[name] for name in settings if name != "architectures"} == {
        name: value for name, value in settings.items() if name != "architectures"
    }


def test_a_saved_model_becomes_a_run(tmp_path):
    torch.manual_seed(0)
    rate = {"sampling_rate": 24_000, "upsampling_ratios": [6, 5, 5, 4]}
    model = transformers.WavTokenizerModel(transformers.WavTokenizerConfig(**SMALL | rate))
    with torch.no_grad():
        model.encoder_model.quantizer.codebook.embed.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "folder")
    transformers.WavTokenizerFeatureExtractor(hop_length=600).save_pretrained(tmp_path / "folder")
    verdict = import_run(tmp_path / "folder", tmp_path / "run")
    assert verdict.is_full
    assert not verdict.failed
    assert {"codes", "samples"} <= {check.name for check in verdict.checks}
    codec = jax_speechlm.load(tmp_path / "run")
    assert codec.model.sample_rate == 24_000
    assert len(codec.encode_codes([np.zeros(6001, np.int16)])[0]) == 11
