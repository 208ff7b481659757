"""A recognizer as ONNX runs in onnxruntime."""

from importlib.metadata import version

import jax
import pytest

from jax_speechlm import cli
from jax_speechlm.interop.folders import read_record
from tests.evaluation.runs import write_run
from tests.interop.docs_programs import run_docs, save_audio, transcript
from tests.interop.test_stream_program import TDT, exported
from tests.interop.tiny_runs import save, tiny_run
from tests.trained_tones import TOKENIZER

_REASON = "the converter and the runtime are needed: pip install -e '.[onnx]'"
pytest.importorskip("jax2onnx", reason=_REASON)
pytest.importorskip("onnxruntime", reason=_REASON)
pytestmark = pytest.mark.parity


def test_it_runs_in_onnxruntime(tmp_path, capsys):
    """By the program that the docs show; each file was checked before."""
    run, file, out = save(tmp_path / "run", tiny_run("ctc")), save_audio(tmp_path / "noise.wav"), tmp_path / "out"
    status = cli.main(["export", str(run), "--to", "onnx", "--out", str(out), "--seconds", "1", "1.5"])
    if jax.__version_info__ >= (0, 12) and status:  # which no jax2onnx that pip takes knows yet
        assert "the converter does not work with this JAX" in capsys.readouterr().err
        return
    assert status == 0
    record = read_record(out)
    assert record["programs"] == {"recognizer_16000.onnx": 16_000, "recognizer_24000.onnx": 24_000}
    assert {path.name for path in out.iterdir()} == {*record["programs"], "jax_speechlm.json"}
    assert record["read_by"] == {"onnxruntime": version("onnxruntime")}
    onnx = pytest.importorskip("onnx")
    for name in record["programs"]:  # of versions that onnxruntime has read since 1.18
        model = onnx.load(out / name)
        assert model.ir_version == record["ir_version"] == 10
        assert {each.domain: each.version for each in model.opset_import}[""] == record["opset"] == 21
    assert record["check"]["rows"] == 10
    assert record["check"]["tokens"] > 20
    assert run_docs('run(["tokens"]', out, file) == transcript(run, file)


def test_streams_run_in_onnxruntime(tmp_path):
    """By the loop that the docs show; of a CTC model and, with a loop in the program, of a transducer."""
    out, file, text = exported(tmp_path, "onnx")
    record = read_record(out)
    assert record["check"]["tokens"] > 10
    assert run_docs("window_samples", out, file) == text == "ab cab bca"
    run = write_run(tmp_path / "tdt", TDT, TOKENIZER)
    assert cli.main(["export", str(run), "--to", "onnx", "--stream", "--out", str(tmp_path / "again")]) == 0
    assert read_record(tmp_path / "again")["check"]["tokens"] > 10
