"""`export --to litert`: a recognizer for phones and boards, as a LiteRT (formerly TensorFlow Lite) flatbuffer.

TensorFlow's converter makes it from a SavedModel of fixed shapes; LiteRT's small runtime (`ai-edge-litert`) runs it.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from jax_speechlm.inference.checkpoint import experiment_of_run
from jax_speechlm.interop.folders import read_record
from jax_speechlm.interop.runtimes.portable import STABLEHLO, lowered
from jax_speechlm.interop.runtimes.program import (
    Program,
    Recognize,
    Target,
    export,
    in_samples,
    num_threads,
    padded,
    require_installed,
)
from jax_speechlm.interop.runtimes.saved_model import in_tensorflow, module_of, signature

_FILE = "recognizer.tflite"


def export_run(run: Positional[Path], out: Path, seconds: tuple[float, ...] = (5.0, 15.0, 30.0)) -> None:
    """Writes a recognizer as a LiteRT model. It has a signature for each length of audio, which takes one row.

    Args:
      run: a run's directory, or one of its checkpoints/<step> folders.
      out: the folder to write; an earlier export there is replaced.
      seconds: lengths of audio, as short clips waste time in a long one.
    """
    lengths = in_samples(seconds, experiment_of_run(run).sample_rate)
    export(run, out, Target("litert", partial(write, lengths=lengths), read, ("ai_edge_litert",), lengths))


def write(program: Program, folder: Path, lengths: list[int]) -> dict[str, Any]:
    """Writes a recognizer into an empty folder. Returns this target's entries of the record.

    Args:
      lengths: numbers of samples; each gets a signature of its own, named "samples_80000" and so on.

    Raises:
      ExportError: LiteRT's runtime is not installed.
    """
    require_installed("litert", ai_edge_litert="ai-edge-litert")
    import tensorflow as tf

    model = module_of(program)

    def serve(samples: int) -> Any:
        recognize = in_tensorflow(lowered(program, ("cpu",), samples))
        return signature(lambda *inputs: recognize(model.weights, *inputs), 1, samples)

    names = {f"samples_{samples}": samples for samples in lengths}
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(model, saved, signatures={name: serve(samples) for name, samples in names.items()})
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=list(names))
        (folder / _FILE).write_bytes(converter.convert())
    return {"program": _FILE, "signatures": names, "tensorflow": tf.__version__, "stablehlo": STABLEHLO}


def read(folder: Path) -> Recognize:
    """Returns the recognizer of such a folder, on as many threads as the process may use cores."""
    from ai_edge_litert.interpreter import Interpreter

    record = read_record(folder)
    interpreter = Interpreter(str(folder / record["program"]), num_threads=num_threads())

    def runner(name: str) -> Recognize:
        recognize = interpreter.get_signature_runner(name)
        return lambda audio, audio_length: recognize(audio=audio, audio_length=audio_length)

    return padded({samples: runner(name) for name, samples in record["signatures"].items()})
