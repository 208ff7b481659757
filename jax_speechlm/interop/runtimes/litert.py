"""`export --to litert`: a recognizer for phones and boards, as a LiteRT (formerly TensorFlow Lite) flatbuffer.

TensorFlow's converter makes it from a SavedModel of fixed shapes; LiteRT's small runtime (`ai-edge-litert`) runs it.
"""

import importlib.util
import os
import tempfile
from pathlib import Path

from tyro.conf import Positional

from jax_speechlm.interop.folders import RECORD, ExportError, read_record, write_json
from jax_speechlm.interop.runtimes.portable import STABLEHLO, lowered
from jax_speechlm.interop.runtimes.program import Program, Run, export, in_samples, padded
from jax_speechlm.interop.runtimes.saved_model import in_tensorflow

_FILE = "recognizer.tflite"


def export_run(run: Positional[Path], out: Path, seconds: tuple[float, ...] = (5.0, 15.0, 30.0)) -> None:
    """Writes a recognizer as a LiteRT model. It has a signature for each length of audio, which takes one row.

    Args:
      run: a run's directory, or one of its checkpoints/<step> folders.
      out: the folder to write; an earlier export there is replaced.
      seconds: lengths of audio, as short clips waste time in a long one.
    """
    lengths = in_samples(seconds)
    export(run, out, lambda program, folder: write(program, folder, lengths), lengths, consumers=("ai_edge_litert",))


def write(program: Program, folder: Path, lengths: list[int]) -> Run:
    """Writes a recognizer and its record into an empty folder; returns it as read back from there.

    Args:
      lengths: samples that a signature takes, one signature each, named "samples_80000" and so on.

    Raises:
      ExportError: LiteRT's runtime is not installed.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise ExportError("ai-edge-litert is not installed: pip install -e '.[litert]'")
    import tensorflow as tf

    model = tf.Module()
    model.weights = {name: tf.Variable(value, trainable=False) for name, value in program.weights.items()}

    def signature(samples: int):
        recognize = in_tensorflow(lowered(program, ("cpu",), samples))
        arguments = tf.TensorSpec([1, samples], tf.int16, "audio"), tf.TensorSpec([1], tf.int32, "audio_length")
        serve = tf.function(lambda *args: recognize(model.weights, *args), input_signature=arguments, autograph=False)
        return serve.get_concrete_function()

    signatures = {f"samples_{samples}": samples for samples in lengths}
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(model, saved, signatures={name: signature(each) for name, each in signatures.items()})
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=list(signatures))
        (folder / _FILE).write_bytes(converter.convert())
    record = program.record(
        "litert", program=_FILE, signatures=signatures, tensorflow=tf.__version__, stablehlo=STABLEHLO
    )
    write_json(folder, RECORD, record)
    return read(folder)


def read(folder: Path) -> Run:
    """The recognizer of such a folder, on as many threads as the process may use cores."""
    from ai_edge_litert.interpreter import Interpreter

    record = read_record(folder)
    interpreter = Interpreter(str(folder / record["program"]), num_threads=len(os.sched_getaffinity(0)))

    def runner(name: str) -> Run:
        recognize = interpreter.get_signature_runner(name)
        return lambda audio, audio_length: recognize(audio=audio, audio_length=audio_length)

    return padded({samples: runner(name) for name, samples in record["signatures"].items()})
