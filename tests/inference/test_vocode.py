"""Waveforms from spectrograms and recordings, by a trained vocoder and by Griffin and Lim's algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import jax_speechlm
from data_pipelines.audio.wav import to_int16
from jax_speechlm import cli
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.frontend.synthesis_mel import synthesis_mel
from jax_speechlm.inference import vocode
from jax_speechlm.inference.vocode import Vocoder
from jax_speechlm.models.vocoders.vocos import Vocos
from jax_speechlm.nn import functional
from tests.contracts.streaming import random_cuts
from tests.interop.tiny_runs import save, tiny_run
from tests.training import tiny

MEL = tiny.SYNTHESIS_MEL


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The checkpoint of a vocoder with parameters that are nowhere 0 or 1."""
    import dataclasses

    experiment = tiny.experiment("vocoder")
    objective = experiment.objective.build(experiment.model, experiment.frontend, None)
    rng, params = np.random.default_rng(0), jax.device_get(functional.init(objective.make, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)
    made = dataclasses.replace(tiny_run("ctc"), experiment=experiment, params=params, tokenizer=None)
    return save(tmp_path_factory.mktemp("run") / "vocoder", made)


def mels(*lengths):
    rng = np.random.default_rng(1)
    return [(2 * rng.standard_normal((length, 16)) - 4).astype(np.float32) for length in lengths]


def recording(samples, seed=0):
    return np.random.default_rng(seed).integers(-9000, 9000, samples).astype(np.int16)


def test_waveforms_are_those_of_the_model(run):
    vocoder, inputs = Vocoder.load(run), mels(40, 1, 33)
    outputs = vocoder.vocode(inputs)
    model = tiny.MODELS["vocoder"]
    module = functional.bind(
        functional.declare(lambda rngs: Vocos(model, rngs=rngs)).graphdef, vocoder.run.params["generator"]
    )
    for mel, audio in zip(inputs, outputs, strict=True):
        expected = module(jnp.asarray(mel)[None], jnp.array([len(mel)]))[0]
        np.testing.assert_allclose(audio, expected, atol=1e-5)
        assert audio.dtype == np.float32
        assert len(audio) == 64 * len(mel)
    assert [len(audio) for audio in vocoder.vocode([mels(1)[0][:0]])] == [0]


@pytest.mark.parametrize("frames", [0, 1, 5, 70])
def test_a_stream_gives_the_samples_of_one_pass(run, frames):
    vocoder, (mel,) = Vocoder.load(run), mels(frames)
    (expected,) = vocoder.vocode([mel])
    for seed in range(3):
        ends = np.cumsum(random_cuts(seed, frames))
        outputs = list(vocoder.stream(np.split(mel, ends[:-1])))
        streamed = np.concatenate([np.zeros(0, np.float32), *outputs])
        assert len(streamed) == len(expected)
        np.testing.assert_allclose(streamed, expected, atol=1e-5)
        assert all(len(output) for output in outputs)


def test_long_spectrograms_and_recordings_are_computed_in_pieces(run, monkeypatch):
    vocoder, (mel,), audio = Vocoder.load(run), mels(75), recording(64 * 75 + 11)
    (expected,), whole = vocoder.vocode([mel]), vocoder.spectrogram(audio)
    monkeypatch.setattr(vocode, "_LONGEST", 32)
    np.testing.assert_allclose(vocoder.vocode([mel])[0], expected, atol=1e-5)
    np.testing.assert_allclose(vocoder.spectrogram(audio), whole, atol=1e-5)
    direct, _ = synthesis_mel(jnp.asarray(audio)[None], jnp.array([len(audio)]), MEL)
    np.testing.assert_allclose(whole, direct[0], atol=1e-5)


def test_the_command_writes_a_copy_as_long_as_the_recording(run, tmp_path, capsys):
    audio = recording(5003)
    soundfile.write(tmp_path / "in.wav", audio, 16_000)
    out = tmp_path / "deep" / "out.wav"
    assert cli.main(["vocode", str(run), str(tmp_path / "in.wav"), "--out", str(out)]) == 0
    written, rate = soundfile.read(out, dtype="int16")
    assert rate == 16_000
    np.testing.assert_array_equal(written, to_int16(Vocoder.load(run).copy(audio)))
    assert len(written) == 5003
    assert "0.31 s at 16000 Hz" in capsys.readouterr().out
    assert [file.name for file in out.parent.iterdir()] == ["out.wav"]


def test_griffin_lim_needs_no_run(tmp_path):
    seconds = np.arange(12_000) / 16_000
    tone = (6000 * np.sin(2 * np.pi * 440 * seconds)).astype(np.int16)
    soundfile.write(tmp_path / "in.wav", tone, 16_000)
    out = tmp_path / "out.wav"
    assert cli.main(["vocode", "griffin-lim", str(tmp_path / "in.wav"), "--out", str(out)]) == 0
    written, rate = soundfile.read(out, dtype="int16")
    assert (len(written), rate) == (12_000, 16_000)
    power = np.abs(np.fft.rfft(written[2000:10_000] * np.hanning(8000)))
    assert np.argmax(power) * 2 == pytest.approx(440, abs=10)
    vocoder = Vocoder.load("griffin-lim")
    before, after = vocoder.spectrogram(tone), vocoder.spectrogram(written)
    assert np.abs(before - after)[4:-4, 8:20].mean() < 0.3
    assert Vocoder.load("griffin-lim", MEL).mel == MEL
    (audio,) = Vocoder.load("griffin-lim", MEL).vocode(mels(9))
    assert audio.shape == (9 * 64,)
    assert np.abs(audio).max() <= 1


def test_a_loaded_run_vocodes(run):
    model, (mel,) = jax_speechlm.load(run), mels(12)
    assert model.abilities == ("vocode",)
    (audio,) = model.vocode(mel)
    np.testing.assert_array_equal(audio, Vocoder.load(run).vocode([mel])[0])
    with pytest.raises(CheckpointError, match="no transcribe"):
        model.transcribe("a.wav")


def test_bad_input_is_named(run, tmp_path, capsys):
    soundfile.write(tmp_path / "in.wav", recording(5003), 16_000)

    def error(*args):
        assert cli.main(["vocode", *map(str, args)]) == USER_ERROR
        return capsys.readouterr().err

    assert "nothing.wav" in error(run, tmp_path / "nothing.wav", "--out", tmp_path / "out.wav")
    assert "is a folder" in error(run, tmp_path / "in.wav", "--out", tmp_path)
    other = save(tmp_path / "other", tiny_run("ctc"))
    assert "cannot compute waveforms" in error(other, tmp_path / "in.wav", "--out", tmp_path / "out.wav")
    assert "nowhere" in error(tmp_path / "nowhere", tmp_path / "in.wav", "--out", tmp_path / "out.wav")
    assert not (tmp_path / "out.wav").exists()
    vocoder = Vocoder.load(run)
    with pytest.raises(ValueError, match=r"\[time, 16\] here, got \[3, 5\]"):
        vocoder.vocode([np.zeros((3, 5))])
    with pytest.raises(ValueError, match="not finite"):
        vocoder.vocode([np.full((3, 16), np.nan)])
    with pytest.raises(ValueError, match=r"other mel spectrograms \(hop 64, not 32"):
        Vocoder.load(run, MEL.replace(hop=32))
    assert Vocoder.load(run, MEL).mel == MEL
