"""A voice and its vocoder as one program, from token ids to samples, in onnxruntime and in plain JAX."""

import dataclasses

import jax
import numpy as np
import pytest
import soundfile

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.interop.folders import RECORD, read_record
from jax_speechlm.models.vocoders.vocos import VocosConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts.vocoder import Vocoding
from tests.interop.docs_programs import run_docs
from tests.interop.tiny_runs import save, tiny_run

pytestmark = pytest.mark.parity


def vocos():
    """An untrained Vocos of the tiny voice's spectrograms."""
    run, model = tiny_run("vocoder"), VocosConfig(input_dim=20, dim=8, num_layers=2, kernel_size=3)
    experiment = run.experiment.replace(model=model, objective=Vocoding())
    make = experiment.objective.build(model, experiment.frontend, None).make
    return dataclasses.replace(run, experiment=experiment, params=functional.init(make, jax.random.key(0)))


def exported(tmp_path, target, voice="speakers", vocoder=None):
    """The record of a voice's export with programs of 12 and 40 tokens, and its folder."""
    runs = save(tmp_path / "voice", tiny_run(voice)), save(tmp_path / "vocoder", vocoder or tiny_run("vocoder"))
    out = tmp_path / "out"
    command = ["export", str(runs[0]), "--to", target, "--out", str(out), "--vocoder", str(runs[1])]
    assert cli.main([*command, "--tokens", "12", "40"]) == 0
    return read_record(out), out


def test_text_to_samples_in_onnxruntime(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    record, out = exported(tmp_path, "onnx")
    assert record["programs"] == {"voice_12.onnx": 12, "voice_40.onnx": 40}
    assert record["check"]["sentences"] == 2
    assert record["check"]["frames"] > 20
    run_docs('["samples", "num_samples"]', out, "a stitch", tmp_path / "said.wav")
    samples, rate = soundfile.read(tmp_path / "said.wav")
    (expected,) = Synthesizer.load(tmp_path / "voice", tmp_path / "vocoder").synthesize("a stitch")
    assert rate == expected.sample_rate
    assert np.abs(expected.samples).max() > 0.01
    np.testing.assert_allclose(samples, expected.samples, atol=2e-4)  # 16 bits a sample


def test_a_vocos_in_onnxruntime(tmp_path):
    pytest.importorskip("jax2onnx")
    record, _ = exported(tmp_path, "onnx", "tts", vocos())
    assert record["check"]["difference"] < 1e-4


def test_text_to_samples_in_plain_jax(tmp_path):
    record, out = exported(tmp_path, "stablehlo", vocoder=vocos())
    assert record["programs"] == {"voice_12.stablehlo": 12, "voice_40.stablehlo": 40}
    assert {file.name for file in out.iterdir()} == {*record["programs"], RECORD, record["weights"]}
    assert record["speakers"] == ["no", "yes", "maybe"]
    assert record["check"]["frames"] > 20


def test_what_is_no_voice_or_no_such_vocoder_is_refused(tmp_path, capsys):
    voice, recognizer = (save(tmp_path / name, tiny_run(name)) for name in ("tts", "ctc"))
    out = ["--out", str(tmp_path / "out")]
    for command, message in (
        ([str(voice), "--to", "stablehlo"], "name the run of a vocos or a hifigan"),
        ([str(voice), "--to", "onnx", "--tokens", "2"], "lengths from 3 to 384"),
        ([str(recognizer), "--to", "stablehlo", "--vocoder", str(voice)], "is no voice: leave --vocoder out"),
        ([str(voice), "--to", "saved_model"], "only recognizers"),
    ):
        assert cli.main(["export", *command, *out]) == USER_ERROR
        assert message in capsys.readouterr().err
