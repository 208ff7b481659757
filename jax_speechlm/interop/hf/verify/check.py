"""Checks of exported folders and imported runs with everything that is installed.

The first comparisons need only this project: its own reader returns the same parameters, bit for bit. Where torch and
transformers are installed, `table.compare` then runs the folder in transformers and compares the outputs.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.interop import folders
from jax_speechlm.interop.hf import bert, parakeet, registry, transformer, weights
from jax_speechlm.interop.hf.mapping import TensorSource
from jax_speechlm.interop.hf.registry import Package
from jax_speechlm.interop.hf.verify.verdict import Check, Differs, Verdict, guarded
from jax_speechlm.nn.functional import Params

Report = Callable[[Check], None]
"""Called with each result as soon as it is there."""

_TRAINING_ONLY = "masked_spec_embed"  # Hugging Face's filler of masked frames


def check_export(
    folder: Path, run: LoadedRun, made: Package, audio: Sequence[Path], texts: Sequence[str], report: Report
) -> Verdict:
    """Checks an exported folder against its checkpoint.

    Args:
      made: `run` in Hugging Face's terms.
      audio, texts: inputs of the comparison with transformers, in addition to built-in ones.

    Raises:
      AudioError: a file of `audio` cannot be read.
    """
    own = {"parameters": lambda: _same_parameters(folder, made), "settings": lambda: _same_settings(folder, made)}
    return _check("our own reading of the folder", own, report, folder, run, made, audio, texts)


def check_import(
    folder: Path, run: LoadedRun, sources: Params, dtype: Any, audio: Sequence[Path], texts: Sequence[str],
    report: Report,
) -> Verdict:  # fmt: skip
    """Checks a run, as read from its checkpoint, against the folder that it was imported from.

    Args:
      sources: nested dict of `TensorSource`, where the parameters were read from.
      dtype: type of the stored parameters.
      audio, texts: inputs of the comparison with transformers, in addition to built-in ones.

    Raises:
      AudioError: a file of `audio` cannot be read.
    """
    own = {
        "checkpoint": lambda: _same_checkpoint(run, sources, dtype),
        "parameters": lambda: _same_when_exported(folder, run, dtype),
    }
    return _check("the folder's own arrays", own, report, folder, run, None, audio, texts, np.dtype(dtype).name)


def transformers_is_installed() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def _check(
    reader: str, own: dict[str, Callable[[], str]], report: Report, folder: Path, run: LoadedRun, made: Package | None,
    *inputs: Any,
) -> Verdict:  # fmt: skip
    checks = []

    def add(check: Check) -> None:
        report(check)
        checks.append(check)

    for name, comparison in own.items():
        add(guarded(name, comparison))
    if not all(check.passed for check in checks) or not transformers_is_installed():
        return Verdict(reader, False, tuple(checks))
    import transformers

    from jax_speechlm.interop.hf.verify.table import compare

    for check in compare(folder, run, made or registry.package(run), *inputs):
        add(check)
    return Verdict(f"transformers {transformers.__version__}", True, tuple(checks))


def _same_parameters(folder: Path, made: Package) -> str:
    arrays = {path: np.asarray(array, np.float32) for path, array in jax.tree.leaves_with_path(made.params)}
    return f"{_require_same(arrays, registry.read_model(folder).params, np.float32):,}, bit for bit"


def _same_settings(folder: Path, made: Package) -> str:
    files = {"config.json": made.config} | made.files
    for name, value in files.items():
        if folders.read_file(folder, name) != value:
            raise Differs(f"{name} is not what the checkpoint gives")
    return f"{len(files)} files"


def _same_checkpoint(run: LoadedRun, sources: Params, dtype: Any) -> str:
    arrays = dict(jax.tree.leaves_with_path(run.params))
    return f"{_require_same(arrays, sources, dtype):,} parameters as they were read"


def _require_same(arrays: dict[tuple, Any], tree: Params, dtype: Any) -> int:
    """Requires equal parameters, read one at a time. Returns their number.

    Args:
      arrays: parameters by path.
      tree: nested dict of arrays or `TensorSource`; converted to `dtype`.
    """
    others = dict(jax.tree.leaves_with_path(tree))
    if arrays.keys() != others.keys():
        differing = min(map(jax.tree_util.keystr, arrays.keys() ^ others.keys()))
        raise Differs(f"{differing} is on one side only")
    for path, array in arrays.items():
        other = others[path]
        other = other.read(dtype=dtype) if isinstance(other, TensorSource) else np.asarray(other, dtype)
        if not _same_bits(np.asarray(array), other):
            raise Differs(f"{jax.tree_util.keystr(path)} differs")
    return sum(array.size for array in arrays.values())


def _same_when_exported(folder: Path, run: LoadedRun, dtype: Any) -> str:
    """Exports the run again, which returns every id to its old place, and compares with the folder's arrays."""
    theirs, made = weights.read_weights(folder), registry.package(run)
    ours = made.arrays
    if made.architecture.startswith("Parakeet"):  # its batch norms became scales and offsets
        theirs, ours = parakeet.folded(theirs), parakeet.folded(ours)
    if made.architecture == "Wav2Vec2BertForSequenceClassification":  # its projection became a part of the head
        theirs = {name: value for name, value in theirs.items() if not name.startswith(("projector", "classifier"))}
    if made.architecture.startswith(("Bert", "Roberta")):  # old names, and parts for other uses
        theirs = bert.used(theirs)
    tied = transformer.TIED - ours.keys()
    compared = {name: x for name, x in theirs.items() if name not in tied and not name.endswith(_TRAINING_ONLY)}
    for name, value in compared.items():
        if name not in ours:
            raise Differs(f"{name} is missing from what would be exported")
        if not _same_bits(value.astype(dtype).astype(np.float32), ours[name]):
            raise Differs(f"{name} would be exported with other values")
    return f"{sum(x.size for x in compared.values()):,} would be exported bit for bit, under the same ids"


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
