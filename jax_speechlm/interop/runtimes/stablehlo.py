"""`export --to stablehlo`: one program for CPU, GPU and TPU, for any number of rows of almost any length.

The folder holds `recognizer.stablehlo` (by `jax.export`), `weights.safetensors` and the record. A dozen
lines of JAX run it, without this package (docs/interchange.md).

JAX writes StableHLO of four weeks ago. TensorFlow's releases, and a JAX that was not updated, read only older versions.
A reader understands all older versions for at least five years, so programs are written in an old one.
Guarantees: https://openxla.org/stablehlo/compatibility and https://docs.jax.dev/en/latest/export/export.html.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax.extend.mlir import serialize_portable_artifact
from safetensors.numpy import load_file, save

from jax_speechlm.interop.folders import read_record
from jax_speechlm.interop.runtimes.program import Out, Program, Recognize, Run, Target, export

_PROGRAM, _WEIGHTS = "recognizer.stablehlo", "weights.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")

STABLEHLO = "1.0.0"
"""Of the first half of 2024. TensorFlow 2.21 reads up to 1.13.7, JAX 0.10.2 up to 1.17.0."""

CALLING_CONVENTION = 10
"""The newest that TensorFlow 2.21 and JAX 0.10.2 know; an older JAX writes its own."""


def lowered(program: Program, platforms: Iterable[str], samples: int | None = None) -> jax.export.Exported:
    """Lowers a recognizer of one row of `samples`, or of any number of rows and samples, to a program of its inputs.

    Returns:
      The program of (weights, audio, audio_length), for the platforms.
    """
    shapes = jax.eval_shape(lambda: program.weights)
    with _calling_convention(min(CALLING_CONVENTION, jax.export.maximum_supported_calling_convention_version)):
        lower = jax.export.export(jax.jit(program.run), platforms=tuple(platforms))
        exported = lower(shapes, *program.arguments(samples))
    module = serialize_portable_artifact(exported.mlir_module(), STABLEHLO)
    return dataclasses.replace(exported, mlir_module_serialized=module)


def written_in(exported: jax.export.Exported) -> dict[str, Any]:
    """Returns the record's entries on platforms and versions."""
    convention = exported.calling_convention_version
    return {"platforms": exported.platforms, "stablehlo": STABLEHLO, "calling_convention": convention}


@contextlib.contextmanager
def _calling_convention(version: int) -> Iterator[None]:
    before = jax.config.jax_export_calling_convention_version
    jax.config.update("jax_export_calling_convention_version", version)
    try:
        yield
    finally:
        jax.config.update("jax_export_calling_convention_version", before)


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
