"""A recognizer as a LiteRT model runs in LiteRT's own interpreter."""

from importlib.metadata import version

import pytest

from jax_speechlm import cli
from jax_speechlm.interop.folders import read_record
from tests.interop.docs_programs import run_docs, save_audio, transcript
from tests.interop.tiny_runs import save, tiny_run

pytest.importorskip("ai_edge_litert", reason="LiteRT's runtime is needed: pip install -e '.[litert]'")


def test_it_runs_in_litert(tmp_path):
    """By the program that the docs show; each signature was checked before."""
    run, file, out = save(tmp_path / "run", tiny_run("ctc")), save_audio(tmp_path / "noise.wav"), tmp_path / "out"
    assert cli.main(["export", str(run), "--to", "litert", "--out", str(out), "--seconds", "1", "1.5"]) == 0
    record = read_record(out)
    assert record["signatures"] == {"samples_16000": 16_000, "samples_24000": 24_000}
    assert record["read_by"] == {"ai_edge_litert": version("ai-edge-litert")}
    assert record["check"]["rows"] == 10
    assert record["check"]["tokens"] > 20
    assert run_docs('about["signatures"]', out, file) == transcript(run, file)
