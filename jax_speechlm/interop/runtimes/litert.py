"""`export --to litert`: a recognizer, or a step of one over a stream, for phones and boards.

It is a LiteRT (formerly TensorFlow Lite) flatbuffer. TensorFlow's converter makes it from a SavedModel of fixed shapes;
LiteRT's small runtime (`ai-edge-litert`) runs it.
"""

import tempfile
from pathlib import Path
from typing import Any

from jax_speechlm.interop.folders import read_record
from jax_speechlm.interop.runtimes import program as programs
from jax_speechlm.interop.runtimes import stream as streams
from jax_speechlm.interop.runtimes.program import Out, Program, Recognize, Run, Seconds, Target
from jax_speechlm.interop.runtimes.saved_model import in_tensorflow, module_of, signature
from jax_speechlm.interop.runtimes.stablehlo import STABLEHLO, lowered
from jax_speechlm.interop.runtimes.stream import ChunkMs, IsStream, Step, StreamProgram


def export_run(
    run: Run,
    out: Out,
    seconds: Seconds = programs.LENGTHS,
    stream: IsStream = False,
    chunk_ms: ChunkMs = None,
) -> None:
    """Writes a recognizer as a LiteRT model. It has a signature for each length of audio, which takes one row."""
    streams.check_options(stream, chunk_ms)
    consumers = ("ai_edge_litert",)
    if stream:
        streams.export(run, out, Target("litert", write, read_stream, consumers), chunk_ms)
    else:
        programs.export(run, out, Target("litert", write, read, consumers), seconds)


def write(program: Program | StreamProgram, folder: Path, lengths: list[int]) -> dict[str, Any]:
    """Writes a recognizer with a signature for each number of samples, named "samples_80000" and so on.

    Returns:
      This target's entries of the record.
    """
    programs.require_installed("litert", ai_edge_litert="ai-edge-litert")
    import tensorflow as tf

    model = module_of(program)

    def serve(samples: int) -> Any:
        recognize = in_tensorflow(lowered(program, ("cpu",), samples))
        return signature(lambda *inputs: recognize(model.weights, *inputs), program, samples)

    names = {f"samples_{samples}": samples for samples in lengths}
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(model, saved, signatures={name: serve(samples) for name, samples in names.items()})
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=list(names))
        (folder / f"{program.name}.tflite").write_bytes(converter.convert())
    return {
        "program": f"{program.name}.tflite",
        "signatures": names,
        "tensorflow": tf.__version__,
        "stablehlo": STABLEHLO,
    }


def read(folder: Path) -> Recognize:
    """Returns the recognizer of such a folder, on as many threads as the process may use cores."""
    runners = _runners(folder)

    def recognize(runner: Any) -> Recognize:
        return lambda audio, audio_length: runner(audio=audio, audio_length=audio_length)

    return programs.padded({samples: recognize(runner) for samples, runner in runners.items()})


def read_stream(folder: Path) -> Step:
    """Returns the step of such a folder, likewise."""
    (runner,) = _runners(folder).values()
    return lambda inputs: runner(**inputs)


def _runners(folder: Path) -> dict[int, Any]:
    from ai_edge_litert.interpreter import Interpreter

    record = read_record(folder)
    interpreter = Interpreter(str(folder / record["program"]), num_threads=programs.num_threads())
    return {samples: interpreter.get_signature_runner(name) for name, samples in record["signatures"].items()}
