"""`jax-speechlm export RUN --to TARGET`: the targets and their functions.

A target's function parses the rest of the command line, so each target has its own options. It is imported on use.
"""

import argparse
import importlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

Target = Literal["hf", "stablehlo", "saved_model", "litert", "onnx"]


class ExportTarget(NamedTuple):
    """The function that exports to a target, as "module:name", and one line of help."""

    run: str
    summary: str


EXPORT_TARGETS: dict[Target, ExportTarget] = {
    "hf": ExportTarget(
        "jax_speechlm.interop.hf.export:export_run",
        "a folder that plain transformers opens: safetensors, config, tokenizer, front end, model card",
    ),
    "stablehlo": ExportTarget(
        "jax_speechlm.interop.runtimes.stablehlo:export_run",
        "a recognizer for plain JAX on CPU, GPU and TPU, from samples to tokens",
    ),
    "saved_model": ExportTarget(
        "jax_speechlm.interop.runtimes.saved_model:export_run", "the same for plain TensorFlow"
    ),
    "litert": ExportTarget("jax_speechlm.interop.runtimes.litert:export_run", "the same for LiteRT: phones and boards"),
    "onnx": ExportTarget("jax_speechlm.interop.runtimes.onnx:export_run", "the same for onnxruntime"),
}


def export(argv: Sequence[str], prog: str) -> None:
    """Runs one target's function on the rest of a command line."""
    import tyro

    from jax_speechlm.parallel.hardware import cache_compilations

    cache_compilations()
    parser = argparse.ArgumentParser(
        prog=prog,
        add_help=False,
        allow_abbrev=False,
        description="Turns a trained checkpoint into a format that others read.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="targets:\n" + "\n".join(f"  {target:<12} {maker.summary}" for target, maker in EXPORT_TARGETS.items()),
    )
    parser.add_argument("--to", choices=get_args(Target), default="hf", help="the target (default: %(default)s)")
    known, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        print(parser.format_help(), f"\nThe options of --to {known.to}:\n")
    module, function = EXPORT_TARGETS[known.to].run.split(":")
    tyro.cli(getattr(importlib.import_module(module), function), prog=f"{prog} --to {known.to}", args=rest)
