"""The front end against the live libraries, on audio that no golden file has seen."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.logmel import LogMel, log_mel
from jax_speechlm.frontend.synthesis_mel import SynthesisMel, synthesis_mel

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def audio():
    rng = np.random.default_rng(1)
    lengths = np.array([30_000, 17_777, 4_321])
    envelope = np.exp(np.cumsum(rng.standard_normal((3, 30_000)) * 0.03, axis=1).clip(-6, 6))
    samples = 40 * envelope * np.cumsum(rng.standard_normal((3, 30_000)), axis=1) % 20_000 - 10_000
    samples = np.where(np.arange(30_000) < lengths[:, None], samples, 5_000)
    return samples.astype(np.int16), lengths


@pytest.mark.parametrize("normalize", [False, True])
def test_kaldi_is_the_seamless_feature_extractor(audio, normalize):
    transformers = pytest.importorskip("transformers")
    samples, lengths = audio
    expected = transformers.SeamlessM4TFeatureExtractor()(
        [row[:length] / 32768 for row, length in zip(samples, lengths, strict=True)],
        sampling_rate=16_000,
        return_tensors="np",
        do_normalize_per_mel_bins=normalize,
    )
    features, length = log_mel(jnp.asarray(samples), jnp.asarray(lengths), LogMel(normalize=normalize))
    np.testing.assert_array_equal(length, expected["attention_mask"].sum(-1))
    for row, frames in enumerate(length):
        np.testing.assert_allclose(features[row, :frames], expected["input_features"][row, :frames], rtol=0, atol=1e-3)


def test_librosa_is_librosa(audio):
    librosa = pytest.importorskip("librosa")
    samples, lengths = audio
    config = LogMel(variant="librosa", stack=1, normalize=False)
    features, length = log_mel(jnp.asarray(samples), jnp.asarray(lengths), config)
    for row in range(3):
        y = samples[row, : lengths[row]] / 32768
        power = librosa.feature.melspectrogram(y=y, sr=16_000, n_fft=400, hop_length=160, n_mels=80)
        expected = np.log(np.maximum(power, 1e-10)).T
        np.testing.assert_allclose(features[row, : length[row]], expected, rtol=0, atol=1e-3)


def test_synthesis_mel_is_the_speecht5_feature_extractor(audio):
    transformers = pytest.importorskip("transformers")
    samples, lengths = audio
    extractor, config = transformers.SpeechT5FeatureExtractor(), SynthesisMel()
    np.testing.assert_allclose(config.filters(), extractor.mel_filters, atol=1e-9)
    rows = [row[:length] / 32768 for row, length in zip(samples, lengths, strict=True)]
    expected = extractor(audio_target=rows, sampling_rate=16_000, padding=True, return_tensors="np")
    mel, length = synthesis_mel(jnp.asarray(samples), jnp.asarray(lengths), config)
    np.testing.assert_array_equal(length, expected["attention_mask"].sum(-1))
    np.testing.assert_allclose(mel, expected["input_values"], rtol=0, atol=1e-4)
