"""The causal FastConformer, whole and as a stream, against a live, randomly initialised NemotronAsrStreamingEncoder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_speechlm
from jax_speechlm.frontend.logmel import log_mel
from jax_speechlm.interop.hf import nemotron
from jax_speechlm.interop.hf.export import export_run
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.interop.hf.weights import read_weights
from jax_speechlm.models.fast_conformer import FastConformer
from jax_speechlm.models.streaming import StreamingEncoder
from jax_speechlm.nn import functional

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers", minversion="5.24")
pytestmark = pytest.mark.parity

LENGTHS = [16_000, 12_345, 1_300]


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no bias"])
def reference(request):
    torch.manual_seed(1)
    config = transformers.NemotronAsrStreamingEncoderConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_mel_bins=16,
        subsampling_conv_channels=8, layerdrop=0.0, attention_bias=request.param, convolution_bias=request.param,
        sliding_window=7, conv_kernel_size=5,
    )  # fmt: skip
    model = transformers.NemotronAsrStreamingEncoder(config)
    with torch.no_grad():  # values of a size that an error would show in
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "bias_" not in name:
                parameter.normal_(0, (parameter.numel() // parameter.shape[0]) ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def audio():
    rng = np.random.default_rng(0)
    rows = np.zeros((len(LENGTHS), max(LENGTHS)), np.int16)
    for row, length in enumerate(LENGTHS):
        rows[row, :length] = 3000 * rng.standard_normal(length) * np.sin(np.arange(length) / 900)
    return rows


def converted(model):
    config = nemotron.config_from_hugging_face(model.config.to_dict(), (1, 2, 3))
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return config, read(nemotron.sources(weights, config))["encoder"]


@pytest.fixture(scope="module")
def transducer(tmp_path_factory, reference):
    """The folder of a whole model with a tokenizer of letters, whose blank is the last id, and the model."""
    folder = tmp_path_factory.mktemp("nemotron") / "model"
    vocab = {name: id_ for id_, name in enumerate(["<unk>", *"\u2581abcdef", "<blank>"])}
    torch.manual_seed(2)
    config = transformers.NemotronAsrStreamingConfig(
        vocab_size=len(vocab), decoder_hidden_size=24, num_decoder_layers=2, blank_token_id=len(vocab) - 1,
        pad_token_id=0, encoder_config=reference.config.to_dict(),
    )  # fmt: skip
    model = transformers.NemotronAsrStreamingForRNNT(config).eval()
    model.encoder.load_state_dict(reference.state_dict())
    with torch.no_grad():  # a predictor and a joint network that emit several tokens
        for name, parameter in model.named_parameters():
            if not name.startswith("encoder."):
                parameter.normal_(0, 0.4 if parameter.ndim > 1 else 0.1)
        model.joint.head.bias[-1] += 5.0
    described = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
    described.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    described.decoder = tokenizers.decoders.Metaspace()
    described.add_special_tokens(["<unk>", "<blank>"])
    tokenizer = transformers.ParakeetTokenizer(tokenizer_object=described, unk_token="<unk>", pad_token="<unk>")
    extractor = transformers.NemotronAsrStreamingFeatureExtractor(feature_size=16)
    transformers.NemotronAsrStreamingProcessor(
        extractor, tokenizer, supported_num_lookahead_tokens=[2, 1, 0]
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("reference", [True], indirect=True, ids=["bias"])
def test_a_whole_model_comes_and_goes_by_the_commands(transducer, audio, tmp_path):
    """Its texts are compared at every latency; a stream has that of transformers' own streaming `generate`."""
    folder, model = transducer
    run = tmp_path / "run"
    import_run(folder, run)
    verdict = export_run(run, tmp_path / "again")
    assert verdict.is_full
    assert not verdict.failed
    first, second = (nemotron.folded(read_weights(each)) for each in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])

    extractor = transformers.NemotronAsrStreamingFeatureExtractor(feature_size=16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    recognizer, found = jax_speechlm.load(run), set()
    for lookahead in (0, 1, 2):
        first, size = 1 + 8 * lookahead, 8 * (lookahead + 1)
        num = first + size * ((LENGTHS[0] // 160 - first) // size)  # it takes whole chunks
        samples = audio[0, : 160 * num]
        inputs = extractor(samples / np.float32(32768), sampling_rate=16_000, return_tensors="pt")
        vectors = inputs.input_features[:, :num]
        with torch.no_grad():
            ids = model.generate(
                (chunk for chunk in (vectors[:, :first], *vectors[:, first:].split(size, dim=1))),
                num_lookahead_tokens=lookahead,
                decoder_start_token_id=model.config.blank_token_id,
            ).sequences[0]
        expected = tokenizer.decode(ids[ids != model.config.blank_token_id], group_tokens=False)
        stream = recognizer.stream(chunk_ms=80 * (lookahead + 1))
        stream.accept(samples)
        assert stream.finalize().text == " ".join(expected.split())
        found.add(expected)
    assert all(len(text) > 5 for text in found)
    with pytest.raises(ValueError, match="not trained on chunks of 320 ms: choose one of 80, 160, 240 ms"):
        recognizer.stream(chunk_ms=320)


def test_weights_and_settings_there_and_back(reference):
    config, encoder = converted(reference)
    again = nemotron.to_hugging_face({"encoder": encoder}, config)
    state_dict = reference.state_dict()
    assert set(again) == set(state_dict)
    for name, array in again.items():
        np.testing.assert_array_equal(array, state_dict[name].numpy())
    settings = nemotron.config_to_hugging_face(config)
    theirs = reference.config.to_dict()
    differing = {name for name in settings if settings[name] != theirs[name]}
    assert differing <= {"default_num_lookahead_tokens", "layerdrop", "activation_dropout"}


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_features_and_hidden_states_whole_and_streamed(reference, audio, lookahead):
    config, encoder = converted(reference)
    extractor = transformers.NemotronAsrStreamingFeatureExtractor(feature_size=16)
    rows = [row[:length] / np.float32(32768) for row, length in zip(audio, LENGTHS, strict=True)]
    inputs = extractor(rows, sampling_rate=16_000, return_tensors="pt")
    mel = nemotron.features(16)
    x, lengths = jax.jit(partial(log_mel, config=mel))(jnp.asarray(audio), jnp.asarray(LENGTHS, jnp.int32))
    np.testing.assert_array_equal(lengths, inputs.attention_mask.sum(-1))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(x[row, :length], inputs.input_features[row, :length], atol=1e-3)
    theirs = inputs.input_features.numpy()[:, : x.shape[1]]

    with torch.no_grad():
        expected = reference(**inputs, num_lookahead_tokens=lookahead).last_hidden_state.numpy()
    stream = StreamingEncoder(config, lookahead + 1)
    graphdef = functional.declare(lambda rngs: FastConformer(config, rngs=rngs)).graphdef
    run = jax.jit(lambda x, lengths: functional.bind(graphdef, encoder)(x, lengths, chunk=stream.chunk)[0])
    whole = run(jnp.asarray(theirs), lengths)
    for row, length in enumerate(lengths):
        frames = config.num_frames(int(length))
        np.testing.assert_allclose(whole[row, :frames], expected[row, :frames], atol=1e-4)

    # The first row as a stream: vectors that are no part of it come first.
    vectors = np.pad(theirs[:1], ((0, 0), (config.lead_vectors, 0), (0, 0)), constant_values=99)
    step, state, found = jax.jit(partial(stream.step, encoder)), stream.init_state(1), []
    for first in range(0, vectors.shape[1], stream.num_vectors):
        chunk = vectors[:, first : first + stream.num_vectors]
        padded = np.pad(chunk, ((0, 0), (0, stream.num_vectors - chunk.shape[1]), (0, 0)))
        state, hidden, num = step(state, jnp.asarray(padded), jnp.array([chunk.shape[1]]))
        found.append(np.asarray(hidden)[0, : int(num[0])])
    frames = config.num_frames(int(lengths[0]))
    np.testing.assert_allclose(np.concatenate(found), expected[0, :frames], atol=1e-4)
