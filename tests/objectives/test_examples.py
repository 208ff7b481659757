"""Examples of a validation: the recordings as they are, and beside them what a model makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.batch import by_utterance
from jax_speechlm.frontend.frontend import features
from jax_speechlm.frontend.griffin_lim import mel_to_audio
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts import examples
from tests.contracts.objectives import TOYS

HOP = {"tts fastspeech2": 256, "tacotron tacotron": 256, "vocoder vocos": 64, "codec wav_tokenizer": 64}


def shown(name):
    """Returns the examples of a toy, its batch, and its parameters as a module."""
    toy = TOYS[name]
    batch = jax.tree.map(jnp.asarray, toy.batch)
    module = functional.bind(functional.declare(toy.objective.make).graphdef, toy.params)
    return jax.device_get(jax.jit(lambda *inputs: toy.objective.pictures(*inputs))(toy.params, batch)), batch, module


@pytest.mark.parametrize("name", HOP)
def test_recordings_are_beside_what_the_model_computes(name):
    found, batch, module = shown(name)
    hop, kind = HOP[name], "voice" if HOP[name] == 256 else "copy"
    waves = {name: values for name, values in found.items() if values.ndim == 1}
    assert set(waves) == {f"clip_{row}_{each}" for row in (1, 2, 3) for each in ("natural", kind)}
    frontend = TOYS[name].frontend
    for row in range(3):
        natural, computed = waves[f"clip_{row + 1}_natural"], waves[f"clip_{row + 1}_{kind}"]
        samples = batch["audio"].shape[1] // hop * hop
        length = min(int(batch["audio_length"][row]), samples)
        assert natural.shape == computed.shape == (samples,)
        np.testing.assert_allclose(natural[:length], np.asarray(batch["audio"][row, :length]) / 2**15, atol=1e-7)
        for wave in (natural, computed):
            assert np.isnan(wave[length:]).all()
            assert np.isfinite(wave[:length]).all()
        if kind == "copy":
            if name.startswith("codec"):
                alone = jnp.asarray(natural[None, :length])
                expected = module.autoencoder.reconstruct(alone, jnp.array([length])).audio
            else:
                alone = {name: values[row : row + 1] for name, values in by_utterance(batch).items()}
                frames = -(-length // hop)
                expected = module.generator(features(alone, frontend, None)[0][:, :frames], jnp.array([frames]))
            np.testing.assert_allclose(computed[:length], expected[0, :length], atol=1e-4)


def test_long_recordings_are_cut(monkeypatch):
    monkeypatch.setattr(examples, "LONGEST_CLIP", 0.2)
    found, batch, _ = shown("vocoder vocos")
    assert batch["audio"].shape[1] > 3_200
    assert {len(values) for values in found.values()} == {3_200}


def test_a_voice_is_its_spectrogram_by_griffin_lim_and_silent_between_utterances():
    mel_config = TOYS["tts fastspeech2"].frontend.mel
    mel = np.random.default_rng(0).normal(-2, 0.5, (1, 30, 16)).astype(np.float32)
    segments = examples.Segments(jnp.array([[0, 18]]), jnp.array([[10, 8]]))
    batch = {"audio": jnp.zeros((1, 30 * 256), jnp.int16)}
    batch |= {"audio_start": 256 * segments.start, "audio_length": 256 * segments.length}
    found = examples.spoken_clips(batch, jnp.asarray(mel), segments, mel_config)
    voice = np.asarray(found["clip_1_voice"])
    assert np.isnan(voice[26 * 256 :]).all()
    assert np.abs(voice[12 * 256 : 16 * 256]).max() < 1e-3 * np.abs(voice[: 9 * 256]).max()
    alone = mel_to_audio(jnp.asarray(mel[:, :10]), jnp.array([10]), mel_config, iterations=16)
    power = lambda audio: np.square(np.asarray(audio)[: 8 * 256]).mean()  # noqa: E731
    np.testing.assert_allclose(power(voice), power(alone[0]), rtol=0.1)


def test_a_wavenet_has_none():
    assert TOYS["vocoder wavenet"].objective.pictures is None
