"""`jax-speechlm export RUN --to TARGET`: the targets and their functions.

A target's function parses the rest of the command line, so each target has its own options. It is imported on use.
"""

import pkgutil
from collections.abc import Sequence
from typing import Literal, NamedTuple

import tyro

Target = Literal["hf", "peft", "stablehlo", "saved_model", "litert", "onnx", "word2vec"]


class ExportTarget(NamedTuple):
    """The function that exports to a target, as "module:name", and one line of help."""

    run: str
    summary: str


EXPORT_TARGETS: dict[Target, ExportTarget] = {
    "hf": ExportTarget(
        "jax_speechlm.interop.hf.export:export_run",
        "a folder that plain transformers opens: safetensors, config, tokenizer, front end, model card",
    ),
    "peft": ExportTarget(
        "jax_speechlm.interop.hf.peft:export_adapter", "the LoRA of a run apart from its base, as peft saves adapters"
    ),
    "stablehlo": ExportTarget(
        "jax_speechlm.interop.runtimes.stablehlo:export_run",
        "for plain JAX on CPU, GPU and TPU: a recognizer, from samples to tokens, or a voice, from tokens to samples",
    ),
    "saved_model": ExportTarget(
        "jax_speechlm.interop.runtimes.saved_model:export_run", "a recognizer for plain TensorFlow"
    ),
    "litert": ExportTarget(
        "jax_speechlm.interop.runtimes.litert:export_run", "a recognizer for LiteRT: phones and boards"
    ),
    "onnx": ExportTarget("jax_speechlm.interop.runtimes.onnx:export_run", "a recognizer or a voice for onnxruntime"),
    "word2vec": ExportTarget(
        "jax_speechlm.interop.word2vec:export_run", "vectors of words as a text file, which gensim opens"
    ),
}


def export(argv: Sequence[str], prog: str) -> None:
    """Runs one target's function on the rest of a command line."""
    target, rest = tyro.cli(_target, prog=prog, args=argv, add_help=False, return_unknown_args=True)
    if {"-h", "--help"} & set(rest):
        print("Turns a trained checkpoint into a format that others read.\n\n--to TARGET (default: hf) chooses it:")
        print("\n".join(f"  {name:<12} {summary}" for name, (_, summary) in EXPORT_TARGETS.items()))
        print(f"\nThe options of --to {target}:\n")
    tyro.cli(pkgutil.resolve_name(EXPORT_TARGETS[target].run), prog=f"{prog} --to {target}", args=rest)


def _target(to: Target = "hf") -> Target:
    return to
