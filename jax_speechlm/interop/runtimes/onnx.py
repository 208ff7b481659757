"""`export --to onnx`: a recognizer for onnxruntime and whatever else reads ONNX, by jax2onnx.

Of fixed shapes, a file each: jax2onnx 0.13.0 to 0.17.1 cannot lower `pad` and `rem` where a size is a symbol.
"""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from tyro.conf import Positional

from jax_speechlm.interop.folders import RECORD, ExportError, read_record, readable, write_json
from jax_speechlm.interop.runtimes.program import Outputs, Program, Run, export, in_samples, padded

_INSIDE = 1 << 30
"""Bytes of weights that a file holds itself: a protobuf ends at 2 GiB. More lie in a file beside it."""

_OPSET, _IR_VERSION = 21, 10
"""Of ONNX 1.16, 2024, which onnxruntime has read since 1.18; what jax2onnx writes by itself is newer every year."""

_OUTPUTS = ("log_probs", "num_frames", "tokens")


def export_run(run: Positional[Path], out: Path, seconds: tuple[float, ...] = (5.0, 15.0, 30.0)) -> None:
    """Writes a recognizer as ONNX: a file for each length of audio, which takes one row and holds the weights.

    Args:
      run: a run's directory, or one of its checkpoints/<step> folders.
      out: the folder to write; an earlier export there is replaced.
      seconds: lengths of audio, as short clips waste time in a long one.
    """
    lengths = in_samples(seconds)
    export(run, out, lambda program, folder: write(program, folder, lengths), lengths, consumers=("onnxruntime",))


def write(program: Program, folder: Path, lengths: list[int]) -> Run:
    """Writes a recognizer and its record into an empty folder; returns it as read back from there.

    Args:
      lengths: samples that a file takes, one file each.

    Raises:
      ExportError: jax2onnx or onnxruntime is not installed, or jax2onnx does not know the installed JAX.
    """
    if missing := [name for name in ("jax2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise ExportError(f"not installed: {', '.join(missing)}. Try pip install -e '.[onnx]'")
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
        # Traced here, because while jax2onnx traces it replaces functions of jax.numpy by its own.
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
    write_json(folder, RECORD, program.record("onnx", programs=programs, opset=_OPSET, ir_version=_IR_VERSION))
    return read(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings about parts of jax2onnx that our model has no use for."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read(folder: Path) -> Run:
    """The recognizer of such a folder, in onnxruntime on as many threads as the process may use cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3  # it warns of each constant that jax2onnx left unused

    def runner(name: str) -> Run:
        session = onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])

        def run(audio: np.ndarray, audio_length: np.ndarray) -> Outputs:
            given = session.run(list(_OUTPUTS), {"audio": audio, "audio_length": audio_length})
            return dict(zip(_OUTPUTS, given, strict=True))

        return run

    return padded({samples: runner(name) for name, samples in read_record(folder)["programs"].items()})
