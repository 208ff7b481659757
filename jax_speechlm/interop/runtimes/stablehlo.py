"""`export --to stablehlo`: one program for CPU, GPU and TPU, for any number of rows of almost any length.

The folder holds `recognizer.stablehlo` (what `jax.export` serialises), `weights.safetensors` and the record. A dozen
lines of JAX run it; none of this package is needed (docs/interchange.md).
"""

from pathlib import Path

import jax
import jax.export
from safetensors.numpy import load_file, save
from tyro.conf import Positional

from jax_speechlm.interop.folders import RECORD, read_record, write_json
from jax_speechlm.interop.runtimes.portable import STABLEHLO, lowered
from jax_speechlm.interop.runtimes.program import Program, Run, export

PLATFORMS = ("cpu", "cuda", "tpu")
_PROGRAM, _WEIGHTS = "recognizer.stablehlo", "weights.safetensors"


def export_run(run: Positional[Path], out: Path) -> None:
    """Writes a recognizer as StableHLO, its weights as safetensors; plain JAX runs it, on CPU, GPU and TPU.

    Args:
      run: a run's directory, or one of its checkpoints/<step> folders.
      out: the folder to write; an earlier export there is replaced.
    """
    export(run, out, write, consumers=("jax", "jaxlib"))


def write(program: Program, folder: Path) -> Run:
    """Writes a recognizer and its record into an empty folder; returns it as read back from there."""
    exported = lowered(program, PLATFORMS)
    (folder / _PROGRAM).write_bytes(exported.serialize())
    (folder / _WEIGHTS).write_bytes(save(program.weights))
    arrays = {name: list(value.shape) for name, value in sorted(program.weights.items())}
    written_in = {"stablehlo": STABLEHLO, "calling_convention": exported.calling_convention_version}
    files = {"program": _PROGRAM, "weights": _WEIGHTS}
    record = program.record("stablehlo", **files, arrays=arrays, platforms=PLATFORMS, **written_in)
    write_json(folder, RECORD, record)
    return read(folder)


def read(folder: Path) -> Run:
    """The recognizer of such a folder."""
    record = read_record(folder)
    weights = jax.device_put(load_file(folder / record["weights"]))
    call = jax.jit(jax.export.deserialize(bytearray((folder / record["program"]).read_bytes())).call)
    return lambda audio, audio_length: jax.device_get(call(weights, audio, audio_length))
