"""`export --to saved_model`: a recognizer that plain TensorFlow loads, its program StableHLO in `XlaCallModule`.

TensorFlow is imported by the functions that need it, and by nothing else in this package.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from tyro.conf import Positional

from jax_speechlm.interop.folders import RECORD, write_json
from jax_speechlm.interop.runtimes.portable import STABLEHLO, lowered
from jax_speechlm.interop.runtimes.program import Program, Run, export, spelling

PLATFORMS = ("cpu", "cuda", "tpu")


def export_run(run: Positional[Path], out: Path) -> None:
    """Writes a recognizer as a TensorFlow SavedModel; its signature takes audio and gives text too.

    Args:
      run: a run's directory, or one of its checkpoints/<step> folders.
      out: the folder to write; an earlier export there is replaced.
    """
    export(run, out, write, consumers=("tensorflow",))


def write(program: Program, folder: Path) -> Run:
    """Writes a recognizer and its record into an empty folder; returns it as read back from there.

    The signature "serving_default" takes any number of rows of the lengths that `Program.samples` says, and gives
    `text` too: UTF-8, one string a row. Weights are variables of the model.
    """
    import tensorflow as tf

    exported = lowered(program, PLATFORMS)
    recognize = in_tensorflow(exported)
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
    written_in = {"stablehlo": STABLEHLO, "calling_convention": exported.calling_convention_version}
    record = program.record("saved_model", platforms=PLATFORMS, tensorflow=tf.__version__, **written_in)
    write_json(folder, RECORD, record)
    return read(folder)


def in_tensorflow(exported: jax.export.Exported) -> Callable[..., dict[str, Any]]:
    """A program of (weights, audio, audio_length) as a function of TensorFlow's tensors, weights by name."""
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python.xla import call_module

    shapes = [[size if isinstance(size, int) else None for size in each.shape] for each in exported.out_avals]
    attributes = {
        "version": exported.calling_convention_version,
        "module": exported.mlir_module_serialized,
        "Sout": shapes,
        "Tout": [tf.as_dtype(each.dtype) for each in exported.out_avals],
        "platforms": [name.upper() for name in exported.platforms],
    }

    def call(weights: Mapping[str, Any], *inputs: Any) -> dict[str, Any]:
        flat = [*(weights[name] for name in sorted(weights)), *inputs]
        kept = [tf.convert_to_tensor(flat[place]) for place in exported.module_kept_var_idx]
        return jax.tree.unflatten(exported.out_tree, call_module(kept, **attributes))

    return call


def read(folder: Path) -> Run:
    """The recognizer of such a folder."""
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))

    def run(audio: np.ndarray, audio_length: np.ndarray) -> dict[str, Any]:
        serve = model.signatures["serving_default"]  # asked of the model, which owns the weights, so that it lives on
        given = serve(audio=tf.constant(audio), audio_length=tf.constant(audio_length))
        return {name: value.numpy() for name, value in given.items()}

    return run
