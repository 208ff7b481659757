"""`export --to saved_model`: a recognizer that plain TensorFlow loads, its program StableHLO in `XlaCallModule`.

TensorFlow is imported by the functions that need it, and by nothing else in this package.
"""

from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from jax_speechlm.interop.folders import RECORD, write_json
from jax_speechlm.interop.program import Program, Run, export, spelling

PLATFORMS = ("cpu", "cuda", "tpu")


def export_run(run: Positional[Path], out: Path) -> None:
    """Writes a recognizer as a TensorFlow SavedModel; its signature takes audio and gives text too.

    Args:
      run: a run's directory, or one of its checkpoints/<step> folders.
      out: the folder to write; an earlier export there is replaced.
    """
    export(run, out, write)


def write(program: Program, folder: Path) -> Run:
    """Writes a recognizer and its record into an empty folder; returns it as read back from there.

    The signature "serving_default" takes any number of rows of the lengths that `Program.samples` says, and gives
    `text` too: UTF-8, one string a row. Weights are variables of the model.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    fewest, most = program.samples
    recognize = jax2tf.convert(
        program.run,
        polymorphic_shapes=[None, "batch, samples", "batch"],
        polymorphic_constraints=[f"samples >= {fewest}", f"samples <= {most}"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    model = tf.Module()
    model.weights = {name: tf.Variable(value, trainable=False) for name, value in program.weights.items()}
    pieces = tf.constant(spelling(program.tokenizer))

    def serve(audio: tf.Tensor, audio_length: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = recognize(model.weights, audio, audio_length)
        text = tf.strings.reduce_join(tf.gather(pieces, outputs["tokens"]), axis=-1)
        return outputs | {"text": tf.strings.regex_replace(text, "^ +", "")}

    arguments = tf.TensorSpec([None, None], tf.int16, "audio"), tf.TensorSpec([None], tf.int32, "audio_length")
    signature = tf.function(serve, input_signature=arguments, autograph=False).get_concrete_function()
    tf.saved_model.save(model, str(folder), signatures={"serving_default": signature})
    write_json(folder, RECORD, program.record("saved_model", platforms=PLATFORMS, tensorflow=tf.__version__))
    return read(folder)


def read(folder: Path) -> Run:
    """The recognizer of such a folder."""
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))

    def run(audio: np.ndarray, audio_length: np.ndarray) -> dict[str, Any]:
        serve = model.signatures["serving_default"]  # asked of the model, which owns the weights, so that it lives on
        given = serve(audio=tf.constant(audio), audio_length=tf.constant(audio_length))
        return {name: value.numpy() for name, value in given.items()}

    return run
