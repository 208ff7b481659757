"""FastSpeech 2 against a live, randomly initialised FastSpeech2ConformerModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.interop.hf import fastspeech2
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.tts.fastspeech2 import (
    FastSpeech2,
    durations,
    one_hot_tokens,
    repeat_by_frame,
    token_of_frame,
)
from jax_speechlm.nn import functional

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

VOCAB, BINS = 30, 20
FORMS = {
    "one voice": {},
    "speakers and wide kernels": {
        "num_speakers": 3, "positionwise_conv_kernel_size": 5, "encoder_num_attention_heads": 4,
        "decoder_linear_units": 40, "pitch_predictor_channels": 24, "speech_decoder_postnet_layers": 3,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=FORMS)
def reference(request):
    torch.manual_seed(1)
    sizes = {
        "vocab_size": VOCAB, "num_mel_bins": BINS, "hidden_size": 32, "encoder_layers": 2, "decoder_layers": 3,
        "encoder_linear_units": 48, "decoder_linear_units": 48, "duration_predictor_channels": 16,
        "energy_predictor_channels": 16, "pitch_predictor_channels": 16, "pitch_predictor_layers": 3,
        "speech_decoder_postnet_units": 24, "encoder_normalize_before": True, "decoder_normalize_before": True,
    }  # fmt: skip
    config = transformers.FastSpeech2ConformerConfig(**sizes | FORMS[request.param])
    model = transformers.FastSpeech2ConformerModel(config)
    with torch.no_grad():  # batch norms as after training, and values of a size that an error would show in
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.duration_predictor.linear.bias.fill_(1.4)
        for name, statistic in model.named_buffers():
            if name.endswith("running_mean"):
                statistic.normal_(0, 0.3)
            elif name.endswith("running_var"):
                statistic.uniform_(0.2, 2)
    return model.eval()


def ours(reference):
    config = fastspeech2.config_from_hugging_face(reference.config.to_dict())
    state_dict = {name: value.numpy() for name, value in reference.state_dict().items()}
    return config, read(fastspeech2.sources(state_dict, config))


def test_durations_pitch_energy_and_spectrogram(reference):
    config, params = ours(reference)
    num_speakers = reference.config.num_speakers or 1
    tokens = np.random.default_rng(0).integers(1, VOCAB, (1, 23)).astype(np.int32)
    speaker = {"speaker_ids": torch.tensor([2])} if num_speakers > 1 else {}
    with torch.no_grad():
        expected = reference(torch.tensor(tokens, dtype=torch.long), **speaker, return_dict=True)
    assert expected.spectrogram.std() > 0.3

    declared = functional.declare(lambda rngs: FastSpeech2(config, VOCAB, num_speakers, rngs=rngs))
    assert jax.tree.map(lambda x: x.shape, declared.shapes) == jax.tree.map(lambda x: x.shape, params)
    module = functional.bind(declared.graphdef, jax.tree.map(jnp.asarray, params))
    # With junk behind the text and behind the frames, which transformers could not have.
    junk = jnp.asarray(np.concatenate([tokens, np.full((1, 5), 7, np.int32)], axis=1))
    segments = Segments.of(jnp.array([tokens.shape[1]]))
    hidden = module.encode(junk, segments, jnp.array([[2]]))
    variances = module.predict(hidden, segments)
    count = tokens.shape[1]
    duration = np.asarray(durations(variances.log_duration))
    np.testing.assert_array_equal(duration[:, :count], expected.duration_outputs)
    assert duration.max() > 2
    np.testing.assert_allclose(variances.pitch[0, :count], expected.pitch_outputs[0, :, 0], atol=1e-4)
    np.testing.assert_allclose(variances.energy[0, :count], expected.energy_outputs[0, :, 0], atol=1e-4)

    frames = int(duration.sum())
    matrix = one_hot_tokens(token_of_frame(jnp.asarray(duration), frames + 9), junk.shape[1])
    x = repeat_by_frame(module.add_variances(hidden, variances.pitch, variances.energy), matrix)
    _, mel = module.decode(x + (jnp.arange(frames + 9) >= frames)[:, None] * 1e3, Segments.of(jnp.array([frames])))
    assert expected.spectrogram.shape[1] == frames
    np.testing.assert_allclose(mel[0, :frames], expected.spectrogram[0], atol=1e-4)
    assert not np.asarray(mel[0, frames:]).any()


def test_what_we_export_loads_strictly_and_computes_the_same(reference):
    config, params = ours(reference)
    values = fastspeech2.config_to_hugging_face(config, VOCAB, reference.config.num_speakers or 1)
    model = transformers.FastSpeech2ConformerModel(transformers.FastSpeech2ConformerConfig(**values)).eval()
    exported = fastspeech2.to_hugging_face(params, config)
    model.load_state_dict({name: torch.tensor(value) for name, value in exported.items()}, strict=True)
    tokens = torch.randint(1, VOCAB, (1, 17))
    with torch.no_grad():
        np.testing.assert_allclose(
            model(tokens, return_dict=True).spectrogram, reference(tokens, return_dict=True).spectrogram, atol=5e-5
        )
    again = read(fastspeech2.sources({name: x.numpy() for name, x in model.state_dict().items()}, config))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_defaults_are_those_of_the_class():
    default = transformers.FastSpeech2ConformerConfig().to_dict()
    assert {name: default[name] for name in fastspeech2._DEFAULTS} == fastspeech2._DEFAULTS
    fixed = {"encoder_normalize_before": True, "decoder_normalize_before": True}
    assert fastspeech2.config_from_hugging_face(fixed) == fastspeech2.config_from_hugging_face(default | fixed)


def test_a_form_that_has_no_counterpart_is_named():
    with pytest.raises(ValueError, match="encoder_normalize_before=False has no counterpart"):
        fastspeech2.config_from_hugging_face({})
