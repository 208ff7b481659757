"""`export --to onnx`: a recognizer, a step of one over a stream, or a voice, for onnxruntime and other readers of ONNX.

The package jax2onnx converts. Shapes are fixed, one file per shape: its versions 0.13.0 to 0.17.1 cannot lower `pad`
and `rem` where a size is a symbol.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jax_speechlm.interop.folders import ExportError, read_record, readable
from jax_speechlm.interop.runtimes import program as programs
from jax_speechlm.interop.runtimes import stream as streams
from jax_speechlm.interop.runtimes import voice as voices
from jax_speechlm.interop.runtimes.program import Out, Outputs, Program, Recognize, Run, Seconds, Target
from jax_speechlm.interop.runtimes.stream import ChunkMs, IsStream, Step, StreamProgram
from jax_speechlm.interop.runtimes.voice import Speak, Tokens, VocoderRun, VoiceProgram

_INSIDE = 1 << 30
"""Most bytes of weights in the file itself: a protobuf ends at 2 GiB. More are written to a second file."""

_OPSET, _IR_VERSION = 21, 10
"""Of ONNX 1.16, 2024, which onnxruntime has read since 1.18; jax2onnx by itself writes newer ones every year."""


def export_run(
    run: Run,
    out: Out,
    seconds: Seconds = programs.LENGTHS,
    vocoder: VocoderRun = None,
    tokens: Tokens = voices.LENGTHS,
    stream: IsStream = False,
    chunk_ms: ChunkMs = None,
) -> None:
    """Writes a recognizer or a voice as ONNX: a file for each length, which takes one row and holds the weights."""
    programs.check_positive(seconds)
    streams.check_options(stream, chunk_ms)
    if stream:
        streams.export(run, out, Target("onnx", write, read_stream, ("onnxruntime",)), chunk_ms)
    elif voices.is_voice(run):
        voices.export(run, vocoder, out, Target("onnx", write, read_voice, ("onnxruntime",)), tokens)
    else:
        voices.require_no(vocoder, run)
        programs.export(run, out, Target("onnx", write, read, ("onnxruntime",)), seconds)


def write(program: Program | StreamProgram | VoiceProgram, folder: Path, lengths: list[int]) -> dict[str, Any]:
    """Writes a program, a file for each number of samples or tokens. Returns this target's entries of the record."""
    programs.require_installed("onnx", jax2onnx="jax2onnx", onnxruntime="onnxruntime")
    import onnx
    from jax2onnx import to_onnx

    is_large = sum(value.nbytes for value in program.weights.values()) > _INSIDE
    weights = {name: jnp.asarray(value) for name, value in program.weights.items()}

    def run(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        outputs = program.run(weights, *inputs)
        return tuple(outputs[name] for name in program.outputs)

    files = {f"{program.name}_{length}.onnx": length for length in lengths}
    for name, length in files.items():
        arguments = program.arguments(length)
        # Traced here because jax2onnx replaces functions of jax.numpy by its own while it traces.
        primitives = jaxpr_as_fun(jax.make_jaxpr(run)(*arguments))
        names = {"input_names": list(program.inputs), "output_names": list(program.outputs), "model_name": program.name}
        with _quiet():
            try:
                model = to_onnx(primitives, list(arguments), return_mode="proto", opset=_OPSET, **names)
            except (AttributeError, ImportError) as error:  # of a JAX that is newer than the converter
                versions = ", ".join(f"{name} {version(name)}" for name in ("jax2onnx", "jax"))
                raise ExportError(
                    f"the converter does not work with this JAX ({versions}: {error}). Export where an older JAX is "
                    "installed, such as 0.10.2: pip install -e '.[onnx]' 'jax<0.11'"
                ) from error
        model.ir_version = _IR_VERSION
        onnx.save_model(model, folder / name, save_as_external_data=is_large, location=f"{name}.data")
    for file in folder.iterdir():
        readable(file)
    return {"programs": files, "opset": _OPSET, "ir_version": _IR_VERSION}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns off warnings about parts of jax2onnx that these models do not use."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("jax2onnx", "onnx_ir"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def read(folder: Path) -> Recognize:
    """Returns the recognizer of such a folder, in onnxruntime on as many threads as the process may use cores."""
    sessions = _sessions(folder)

    def recognize(session: Callable[..., Outputs]) -> Recognize:
        return lambda audio, audio_length: session(audio, audio_length)

    return programs.padded({samples: recognize(session) for samples, session in sessions.items()})


def read_stream(folder: Path) -> Step:
    """Returns the step of such a folder, likewise."""
    (session,) = _sessions(folder).values()
    return lambda inputs: session(*inputs.values())


def read_voice(folder: Path) -> Speak:
    """Returns the voice of such a folder, likewise."""
    return voices.padded(_sessions(folder))


def _sessions(folder: Path) -> dict[int, Callable[..., Outputs]]:
    """Returns the programs of a folder by their length, as functions of their inputs."""
    import onnxruntime

    record = read_record(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = programs.num_threads()
    options.log_severity_level = 3  # it warns of constants that jax2onnx left unused

    def runner(name: str) -> Callable[..., Outputs]:
        session = onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])

        def run(*inputs: np.ndarray) -> Outputs:
            outputs = session.run(list(record["outputs"]), dict(zip(record["inputs"], inputs, strict=True)))
            return dict(zip(record["outputs"], outputs, strict=True))

        return run

    return {length: runner(name) for name, length in record["programs"].items()}
