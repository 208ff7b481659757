"""A recognizer as StableHLO runs without this package, on any number of rows of any length."""

import jax
import jax.export
import numpy as np
import pytest

from jax_speechlm import cli
from jax_speechlm.interop.folders import read_record
from jax_speechlm.interop.runtimes import stablehlo
from jax_speechlm.interop.runtimes.program import Program
from jax_speechlm.interop.runtimes.stablehlo import CALLING_CONVENTION, STABLEHLO, lowered
from tests.interop.docs_programs import run_docs, save_audio, symbols_for_sizes, transcript
from tests.interop.tiny_runs import save, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"), tiny_run("ctc"))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "recognizer"
    with symbols_for_sizes():
        assert cli.main(["export", str(run), "--to", "stablehlo", "--out", str(out)]) == 0
    return out


def test_it_runs_without_this_package(run, exported, tmp_path):
    """By the program that the docs show, which reads StableHLO, safetensors and JSON and nothing else."""
    file = save_audio(tmp_path / "noise.wav")
    assert run_docs("recognize = jax.jit(jax.export.deserialize", exported, file) == transcript(run, file)
    names = {path.name for path in exported.iterdir()}
    assert names == {"recognizer.stablehlo", "weights.safetensors", "jax_speechlm.json"}


def test_a_program_is_written_in_versions_that_older_consumers_read(exported):
    """Whatever JAX writes by itself: a version of StableHLO that is a year or two old, and no newer convention."""
    record = read_record(exported)
    assert record["read_by"] == {"jax": jax.__version__, "jaxlib": jax.lib.__version__}
    assert (record["stablehlo"], record["calling_convention"]) == (STABLEHLO, CALLING_CONVENTION)
    assert f"StableHLO_v{STABLEHLO}".encode() in (exported / record["program"]).read_bytes()


def test_the_calling_convention_is_one_that_the_consumer_knows(monkeypatch):
    """It is set for the export alone; the setting of the process stays as it was."""
    before = jax.config.jax_export_calling_convention_version
    oldest = jax.export.minimum_supported_calling_convention_version
    monkeypatch.setattr("jax_speechlm.interop.runtimes.stablehlo.CALLING_CONVENTION", oldest)
    program = Program.of(tiny_run("ctc"))
    assert lowered(program, ("cpu",), program.samples[0]).calling_convention_version == oldest
    assert jax.config.jax_export_calling_convention_version == before


def test_one_program_serves_every_platform_and_shape(exported):
    record = read_record(exported)
    program = jax.export.deserialize(bytearray((exported / record["program"]).read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    audio = program.in_avals[-2]
    assert audio.dtype == np.int16
    assert all(not isinstance(size, int) for size in audio.shape)
    assert record["check"]["difference"] <= 1e-4
    assert record["check"]["tokens"] > 20
    with pytest.raises(ValueError, match="shapes"):
        stablehlo.read(exported)(np.zeros((1, record["samples"]["fewest"] - 1), np.int16), np.array([9], np.int32))
