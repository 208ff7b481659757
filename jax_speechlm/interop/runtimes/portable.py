"""Programs in versions of StableHLO and of the calling convention that every runtime here reads.

JAX writes StableHLO of four weeks ago, and TensorFlow's releases, like a JAX that was not updated, read less than that.
A reader understands every older version, for at least five years, so programs are written in an old one.
Guarantees: https://openxla.org/stablehlo/compatibility and https://docs.jax.dev/en/latest/export/export.html.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import jax
import jax.export
from jax.extend.mlir import serialize_portable_artifact

from jax_speechlm.interop.runtimes.program import Program

STABLEHLO = "1.0.0"
"""Of the first half of 2024. TensorFlow 2.21 reads up to 1.13.7, JAX 0.10.2 up to 1.17.0."""

CALLING_CONVENTION = 10
"""The newest that TensorFlow 2.21 and JAX 0.10.2 know; an older JAX writes its own."""


def lowered(program: Program, platforms: Iterable[str], samples: int | None = None) -> jax.export.Exported:
    """A recognizer's program of (weights, audio, audio_length).

    Args:
      samples: of the one row that it takes; None for any number of rows of any number of samples.
    """
    shapes = jax.eval_shape(lambda: program.weights)
    with _calling_convention(min(CALLING_CONVENTION, jax.export.maximum_supported_calling_convention_version)):
        export = jax.export.export(jax.jit(program.run), platforms=tuple(platforms))
        exported = export(shapes, *program.arguments(samples))
    module = serialize_portable_artifact(exported.mlir_module(), STABLEHLO)
    return dataclasses.replace(exported, mlir_module_serialized=module)


@contextlib.contextmanager
def _calling_convention(number: int) -> Iterator[None]:
    before = jax.config.jax_export_calling_convention_version
    jax.config.update("jax_export_calling_convention_version", number)
    try:
        yield
    finally:
        jax.config.update("jax_export_calling_convention_version", before)
