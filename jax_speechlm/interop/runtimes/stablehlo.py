"""`export --to stablehlo`: one program for CPU, GPU and TPU, for any number of rows of almost any length.

Of a voice there is a program for each number of tokens, `voice_<tokens>.stablehlo`.

The folder holds `recognizer.stablehlo` (by `jax.export`), `weights.safetensors` and the record. A dozen
lines of JAX run it, without this package (docs/interchange.md).

JAX writes StableHLO of four weeks ago. TensorFlow's releases, and a JAX that was not updated, read only older versions.
A reader understands all older versions for at least five years, so programs are written in an old one.
Guarantees: https://openxla.org/stablehlo/compatibility and https://docs.jax.dev/en/latest/export/export.html.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax.extend.mlir import serialize_portable_artifact
from safetensors.numpy import load_file, save

from jax_speechlm.interop.folders import read_record
from jax_speechlm.interop.runtimes import stream as streams
from jax_speechlm.interop.runtimes import voice as voices
from jax_speechlm.interop.runtimes.program import Out, Outputs, Program, Recognize, Run, Target, export
from jax_speechlm.interop.runtimes.stream import ChunkMs, IsStream, Step, StreamProgram
from jax_speechlm.interop.runtimes.voice import Speak, Tokens, VocoderRun, VoiceProgram

_PROGRAM, _WEIGHTS = "recognizer.stablehlo", "weights.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")

STABLEHLO = "1.0.0"
"""Of the first half of 2024. TensorFlow 2.21 reads up to 1.13.7, JAX 0.10.2 up to 1.17.0."""

CALLING_CONVENTION = 10
"""The newest that TensorFlow 2.21 and JAX 0.10.2 know; an older JAX writes its own."""


def lowered(
    program: Program | StreamProgram | VoiceProgram, platforms: Iterable[str], samples: int | None = None
) -> jax.export.Exported:
    """Lowers a program of one row of `samples` (or tokens), or of any number of rows and samples.

    Returns:
      The program of the weights and its inputs, for the platforms.
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


def export_run(
    run: Run,
    out: Out,
    vocoder: VocoderRun = None,
    tokens: Tokens = voices.LENGTHS,
    stream: IsStream = False,
    chunk_ms: ChunkMs = None,
) -> None:
    """Writes a recognizer or a voice as StableHLO, its weights as safetensors, for plain JAX on CPU, GPU and TPU."""
    consumers = "jax", "jaxlib"
    streams.check_options(stream, chunk_ms)
    if stream:
        streams.export(run, out, Target("stablehlo", write_sizes, read_stream, consumers), chunk_ms)
    elif voices.is_voice(run):
        voices.export(run, vocoder, out, Target("stablehlo", write_sizes, read_voice, consumers), tokens)
    else:
        voices.require_no(vocoder, run)
        export(run, out, Target("stablehlo", write, read, consumers))


def write(program: Program, folder: Path) -> dict[str, Any]:
    """Writes a recognizer. Returns this target's entries of the record."""
    exported = lowered(program, PLATFORMS)
    (folder / _PROGRAM).write_bytes(exported.serialize())
    return {"program": _PROGRAM} | _write_weights(program, folder) | written_in(exported)


def write_sizes(program: StreamProgram | VoiceProgram, folder: Path, lengths: list[int]) -> dict[str, Any]:
    """Writes a program for each number of samples or tokens. Returns this target's entries of the record."""
    files = {f"{program.name}_{length}.stablehlo": length for length in lengths}
    for name, length in files.items():
        exported = lowered(program, PLATFORMS, length)
        (folder / name).write_bytes(exported.serialize())
    return {"programs": files} | _write_weights(program, folder) | written_in(exported)


def _write_weights(program: Program | StreamProgram | VoiceProgram, folder: Path) -> dict[str, Any]:
    (folder / _WEIGHTS).write_bytes(save(program.weights))
    arrays = {name: list(value.shape) for name, value in sorted(program.weights.items())}
    return {"weights": _WEIGHTS, "arrays": arrays}


def read(folder: Path) -> Recognize:
    """Returns the recognizer of such a folder."""
    record = read_record(folder)
    weights = jax.device_put(load_file(folder / record["weights"]))
    call = jax.jit(jax.export.deserialize(bytearray((folder / record["program"]).read_bytes())).call)
    return lambda audio, audio_length: jax.device_get(call(weights, audio, audio_length))


def read_stream(folder: Path) -> Step:
    """Returns the step of such a folder."""
    (call,) = _calls(folder).values()
    return lambda inputs: call(*inputs.values())


def read_voice(folder: Path) -> Speak:
    """Returns the voice of such a folder."""
    return voices.padded(_calls(folder))


def _calls(folder: Path) -> dict[int, Callable[..., Outputs]]:
    """Returns the programs of a folder by their length, as functions of their inputs."""
    record = read_record(folder)
    weights = jax.device_put(load_file(folder / record["weights"]))

    def runner(name: str) -> Callable[..., Outputs]:
        call = jax.jit(jax.export.deserialize(bytearray((folder / name).read_bytes())).call)
        return lambda *inputs: jax.device_get(call(weights, *inputs))

    return {length: runner(name) for name, length in record["programs"].items()}
