"""Weight quantisation of trained models to 8 or 4 bits: `jax-speechlm quantize`."""

from pathlib import Path

import jax
from tyro.conf import Positional

from data_pipelines.core.files import folder_bytes
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import at, replace
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.int_weights import Kind, quantize_kernel, to_plain
from jax_speechlm.nn.layers import linear_maps
from jax_speechlm.nn.lora import merge
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.runs import LoadedRun

GROUP = 32
"""Default number of inputs that share a scale in 4 bits."""


def quantize_run(checkpoint: Positional[Path], out: Path, kind: Kind = "int8", group: int = GROUP) -> None:
    """Quantises the kernels of a trained model's linear maps to 8 or 4 bits, for small checkpoints and fast reads.

    The result is used as a run: eval and transcribe compute with the integers, all other commands (probe, align,
    finetuning from it) with the float32 values that they represent. Optimizer state is left out. Embeddings, norms,
    biases and depthwise filters stay float32.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      out: folder to write; it must not contain checkpoints.
      kind: int8: 8-bit weights, a scale for each output. int8_dynamic: 8-bit inputs as well, rounded token by
        token at run time. int4: 4-bit weights, a scale for each `group` inputs of an output.
      group: of int4; even.
    """
    if group < 2 or group % 2:
        raise ValueError(f"--group {group}: a byte holds two weights, so it must be even")
    run = LoadedRun.read(checkpoint, on_host=True)
    source, experiment, params = run.checkpoint, run.experiment, run.params
    if "quantized" in run.meta:
        raise CheckpointError(f"{source}: is already quantized: name the run that it was made from")
    if lora := getattr(experiment.model, "lora", None):
        params, _ = merge(params, lora)
    objective = experiment.objective.build(experiment.model, experiment.frontend, run.tokenizer)
    rounded = quantize(objective.make, params, kind, group)
    plain, kernels = to_plain(rounded)
    written = ckpt.write(out, plain, run.meta | {"quantized": kernels, "quantized_from": str(source)})
    sizes = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6 for tree in (params, plain))
    print("{}: {} kernels as {}, parameters {:.2f} MB -> {:.2f} MB".format(written, len(kernels), kind, *sizes))
    print(
        f"on disk: {folder_bytes(source) / 1e6:.2f} MB, training state included -> {folder_bytes(written) / 1e6:.2f} MB"
    )


def quantize(make: functional.MakeModule, params: Params, kind: Kind, group: int = GROUP) -> Params:
    """Quantises every linear map's kernel of a module; absent kernels are skipped, other leaves are the same arrays."""
    declared = functional.declare(make)
    module = functional.bind(declared.graphdef, declared.shapes)
    for path, linear in linear_maps(module):
        names = [*path.split("/"), "kernel"]
        kernel = at(params, names)
        if kernel is not None:
            stacked = at(declared.axes, names)[0] == "layers"
            params = replace(params, names, quantize_kernel(kernel, linear.num_in, kind, stacked=stacked, group=group))
    return params
