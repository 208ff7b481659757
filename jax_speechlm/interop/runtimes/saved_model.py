"""`export --to saved_model`: a recognizer that plain TensorFlow loads, its program StableHLO in `XlaCallModule`.

Only the functions that need TensorFlow import it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import numpy as np

from jax_speechlm.interop.runtimes.program import Out, Program, Recognize, Run, Target, export, id_texts
from jax_speechlm.interop.runtimes.stablehlo import PLATFORMS, lowered, written_in
from jax_speechlm.interop.runtimes.stream import StreamProgram

if TYPE_CHECKING:
    import tensorflow as tf


def export_run(run: Run, out: Out) -> None:
    """Writes a recognizer as a TensorFlow SavedModel; its signature takes audio and gives text too."""
    export(run, out, Target("saved_model", write, read, ("tensorflow",)))


def write(program: Program, folder: Path) -> dict[str, Any]:
    """Writes a recognizer, its weights as variables. Returns this target's entries of the record.

    The signature "serving_default" takes any number of rows of the lengths that `Program.samples` gives, and returns
    `text` too: UTF-8, one string per row.
    """
    import tensorflow as tf

    exported = lowered(program, PLATFORMS)
    recognize, model = in_tensorflow(exported), module_of(program)
    pieces = tf.constant(id_texts(program.tokenizer))

    def serve(audio: tf.Tensor, audio_length: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = recognize(model.weights, audio, audio_length)
        text = tf.strings.reduce_join(tf.gather(pieces, outputs["tokens"]), axis=-1)
        return outputs | {"text": tf.strings.regex_replace(text, "^ +", "")}

    tf.saved_model.save(model, str(folder), signatures={"serving_default": signature(serve, program)})
    return {"tensorflow": tf.__version__} | written_in(exported)


def module_of(program: Program | StreamProgram) -> "tf.Module":
    """Returns a module of TensorFlow with the weights as variables, by name."""
    import tensorflow as tf

    model = tf.Module()
    model.weights = {name: tf.Variable(value, trainable=False) for name, value in program.weights.items()}
    return model


def signature(serve: Callable[..., Any], program: Program | StreamProgram, samples: int | None = None) -> Any:
    """Returns a function of a program's inputs as a concrete one of TensorFlow's, of any sizes without `samples`."""
    import tensorflow as tf

    arguments = [
        tf.TensorSpec([size if isinstance(size, int) else None for size in each.shape], each.dtype, name)
        for name, each in zip(program.inputs, program.arguments(samples), strict=True)
    ]
    return tf.function(serve, input_signature=arguments, autograph=False).get_concrete_function()


def in_tensorflow(exported: jax.export.Exported) -> Callable[..., dict[str, Any]]:
    """Returns a program of (weights, audio, audio_length) as a function of TensorFlow's tensors, weights by name."""
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python.xla import call_module

    attributes = {
        "version": exported.calling_convention_version,
        "module": exported.mlir_module_serialized,
        "Sout": [[size if isinstance(size, int) else None for size in out.shape] for out in exported.out_avals],
        "Tout": [tf.as_dtype(out.dtype) for out in exported.out_avals],
        "platforms": [name.upper() for name in exported.platforms],
    }

    def call(weights: Mapping[str, Any], *inputs: Any) -> dict[str, Any]:
        flat = [*(weights[name] for name in sorted(weights)), *inputs]
        kept = [tf.convert_to_tensor(flat[index]) for index in exported.module_kept_var_idx]
        return jax.tree.unflatten(exported.out_tree, call_module(kept, **attributes))

    return call


def read(folder: Path) -> Recognize:
    """Returns the recognizer of such a folder."""
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))

    def recognize(audio: np.ndarray, audio_length: np.ndarray) -> dict[str, Any]:
        serve = model.signatures["serving_default"]  # via the model, which owns the weights
        outputs = serve(audio=tf.constant(audio), audio_length=tf.constant(audio_length))
        return {name: value.numpy() for name, value in outputs.items()}

    return recognize
