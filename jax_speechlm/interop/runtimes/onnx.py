"""`export --to onnx`: a recognizer for onnxruntime and other readers of ONNX, by jax2onnx.

Shapes are fixed, one file per shape: jax2onnx 0.13.0 to 0.17.1 cannot lower `pad` and `rem` where a size is a symbol.
"""

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from tyro.conf import Positional

from jax_speechlm.inference.checkpoint import experiment_of_run
from jax_speechlm.interop.folders import ExportError, read_record, readable
from jax_speechlm.interop.runtimes.program import (
    Outputs,
    Program,
    Recognize,
    Target,
    export,
    in_samples,
    num_threads,
    padded,
    require_installed,
)

_INSIDE = 1 << 30
"""Most bytes of weights in the file itself: a protobuf ends at 2 GiB. More are written to a second file."""

_OPSET, _IR_VERSION = 21, 10
"""Of ONNX 1.16, 2024, which onnxruntime has read since 1.18; jax2onnx by itself writes newer ones every year."""

_OUTPUTS = ("log_probs", "num_frames", "tokens")


def export_run(run: Positional[Path], out: Path, seconds: tuple[float, ...] = (5.0, 15.0, 30.0)) -> None:
    """Writes a recognizer as ONNX: a file for each length of audio, which takes one row and holds the weights.

    Args:
      run: a run's directory, or one of its checkpoints/<step> folders.
      out: the folder to write; an earlier export there is replaced.
      seconds: lengths of audio, as short clips waste time in a long one.
    """
    lengths = in_samples(seconds, experiment_of_run(run).sample_rate)
    export(run, out, Target("onnx", partial(write, lengths=lengths), read, ("onnxruntime",), lengths))


def write(program: Program, folder: Path, lengths: list[int]) -> dict[str, Any]:
    """Writes a recognizer into an empty folder. Returns this target's entries of the record.

    Args:
      lengths: numbers of samples; each gets a file of its own.

    Raises:
      ExportError: jax2onnx or onnxruntime is not installed, or jax2onnx does not know the installed JAX.
    """
    require_installed("onnx", jax2onnx="jax2onnx", onnxruntime="onnxruntime")
    import onnx
    from jax2onnx import to_onnx

    is_large = sum(value.nbytes for value in program.weights.values()) > _INSIDE
    weights = {name: jnp.asarray(value) for name, value in program.weights.items()}

    def recognize(audio: jax.Array, audio_length: jax.Array) -> tuple[jax.Array, ...]:
        outputs = program.run(weights, audio, audio_length)
        return tuple(outputs[name] for name in _OUTPUTS)

    programs = {f"recognizer_{samples}.onnx": samples for samples in lengths}
    for name, samples in programs.items():
        arguments = program.arguments(samples)
        # Traced here because jax2onnx replaces functions of jax.numpy by its own while it traces.
        primitives = jaxpr_as_fun(jax.make_jaxpr(recognize)(*arguments))
        names = {"input_names": ["audio", "audio_length"], "output_names": list(_OUTPUTS), "model_name": "recognizer"}
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
    return {"programs": programs, "opset": _OPSET, "ir_version": _IR_VERSION}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns off warnings about parts of jax2onnx that these models do not use."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read(folder: Path) -> Recognize:
    """Returns the recognizer of such a folder, in onnxruntime on as many threads as the process may use cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.log_severity_level = 3  # it warns of constants that jax2onnx left unused

    def runner(name: str) -> Recognize:
        session = onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])

        def recognize(audio: np.ndarray, audio_length: np.ndarray) -> Outputs:
            outputs = session.run(list(_OUTPUTS), {"audio": audio, "audio_length": audio_length})
            return dict(zip(_OUTPUTS, outputs, strict=True))

        return recognize

    return padded({samples: runner(name) for name, samples in read_record(folder)["programs"].items()})
