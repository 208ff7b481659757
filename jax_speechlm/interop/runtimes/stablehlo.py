"""`export --to stablehlo`: one program for CPU, GPU and TPU, for any number of rows of almost any length.

The folder holds `recognizer.stablehlo` (by `jax.export`), `weights.safetensors` and the record. A dozen
lines of JAX run it, without this package (docs/interchange.md).
"""

from pathlib import Path
from typing import Any

import jax
import jax.export
from safetensors.numpy import load_file, save

from jax_speechlm.interop.folders import read_record
from jax_speechlm.interop.runtimes.portable import PLATFORMS, lowered, written_in
from jax_speechlm.interop.runtimes.program import Out, Program, Recognize, Run, Target, export

_PROGRAM, _WEIGHTS = "recognizer.stablehlo", "weights.safetensors"


def export_run(run: Run, out: Out) -> None:
    """Writes a recognizer as StableHLO, its weights as safetensors; plain JAX runs it, on CPU, GPU and TPU."""
    export(run, out, Target("stablehlo", write, read, ("jax", "jaxlib")))


def write(program: Program, folder: Path) -> dict[str, Any]:
    """Writes a recognizer. Returns this target's entries of the record."""
    exported = lowered(program, PLATFORMS)
    (folder / _PROGRAM).write_bytes(exported.serialize())
    (folder / _WEIGHTS).write_bytes(save(program.weights))
    arrays = {name: list(value.shape) for name, value in sorted(program.weights.items())}
    return {"program": _PROGRAM, "weights": _WEIGHTS, "arrays": arrays} | written_in(exported)


def read(folder: Path) -> Recognize:
    """Returns the recognizer of such a folder."""
    record = read_record(folder)
    weights = jax.device_put(load_file(folder / record["weights"]))
    call = jax.jit(jax.export.deserialize(bytearray((folder / record["program"]).read_bytes())).call)
    return lambda audio, audio_length: jax.device_get(call(weights, audio, audio_length))
