"""A recognizer as a SavedModel runs in plain TensorFlow."""

from importlib.metadata import packages_distributions, version

from jax_speechlm import cli
from jax_speechlm.interop.folders import read_record
from jax_speechlm.interop.runtimes.stablehlo import STABLEHLO
from tests.interop.docs_programs import run_docs, save_audio, symbols_for_sizes, transcript
from tests.interop.tiny_runs import save, tiny_run


def test_it_runs_in_plain_tensorflow(tmp_path):
    """By the program that the docs show, in a process that can import neither this package nor JAX."""
    run, file, out = save(tmp_path / "run", tiny_run("ctc")), save_audio(tmp_path / "noise.wav"), tmp_path / "out"
    with symbols_for_sizes():
        assert cli.main(["export", str(run), "--to", "saved_model", "--out", str(out)]) == 0
    record = read_record(out)
    assert record["read_by"] == {"tensorflow": version(packages_distributions()["tensorflow"][0])}
    assert f"StableHLO_v{STABLEHLO}".encode() in (out / "saved_model.pb").read_bytes()
    assert run_docs("tf.saved_model.load", out, file) == transcript(run, file)
