"""A recognizer as StableHLO runs without this package, on any number of rows of any length."""

import jax
import jax.export
import numpy as np
import pytest

from jax_speechlm import cli
from jax_speechlm.interop import stablehlo
from jax_speechlm.interop.folders import read_record
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
    assert run_docs("jax.export.deserialize", exported, file) == transcript(run, file)
    names = {path.name for path in exported.iterdir()}
    assert names == {"recognizer.stablehlo", "weights.safetensors", "jax_speechlm.json"}


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
