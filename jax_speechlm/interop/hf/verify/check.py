"""Checks of exported folders and imported runs with everything that is installed.

The first comparisons need only this project: its own reader returns the same parameters, bit for bit. Where torch and
transformers are installed, `table.compare` then runs the folder in transformers and compares the outputs.
"""

import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_speechlm.interop import folders
from jax_speechlm.interop.hf import (
    fastspeech2,
    nemotron,
    parakeet,
    registry,
    transformer,
    wav2vec2,
    wav_tokenizer,
    weights,
    whisper,
)
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf.mapping import TensorSource
from jax_speechlm.interop.hf.registry import Package
from jax_speechlm.interop.hf.text_settings import family_of
from jax_speechlm.interop.hf.verify.verdict import Check, Differs, Verdict, guarded
from jax_speechlm.nn.functional import Params
from jax_speechlm.training.runs import LoadedRun

_TRAINING_ONLY = "masked_spec_embed"  # Hugging Face's filler of masked frames


def check_export(
    folder: Path, run: LoadedRun, made: Package, *inputs: Sequence[Any], vocoder: LoadedRun | None = None
) -> Verdict:
    """Checks an exported folder against its checkpoint, which is `made` in Hugging Face's terms; prints every result.

    `inputs` are audio files and texts of the comparison with transformers, in addition to built-in ones; `vocoder`
    is what a voice is played with, read from an exported folder.
    """
    own = {"parameters": partial(_same_parameters, folder, made), "settings": partial(_same_settings, folder, made)}
    return _check("our own reading of the folder", own, folder, run, made, *inputs, vocoder=vocoder)


def check_import(folder: Path, run: LoadedRun, sources: Params, dtype: Any, *inputs: Sequence[Any]) -> Verdict:
    """Checks a run, as read from its checkpoint, against the folder that it was imported from; prints every result.

    The parameters were read from `sources` (nested dict of `TensorSource`) and stored in `dtype`. For `inputs` see
    `check_export`.
    """
    own = {
        "checkpoint": lambda: f"{_require_same(run.params, sources, dtype):,} parameters as they were read",
        "parameters": partial(_same_when_exported, folder, run, dtype),
    }
    return _check("the folder's own arrays", own, folder, run, None, *inputs, np.dtype(dtype).name)


def transformers_is_installed() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def _check(
    reader: str,
    own: dict[str, Callable[[], str]],
    folder: Path,
    run: LoadedRun,
    made: Package | None,
    *inputs: Any,
    vocoder: LoadedRun | None = None,
) -> Verdict:
    checks: list[Check] = []

    def add(check: Check) -> None:
        print(check.line, file=sys.stderr, flush=True)
        checks.append(check)

    for name, comparison in own.items():
        add(guarded(name, comparison))
    if not all(check.passed for check in checks) or not transformers_is_installed():
        return Verdict(reader, False, tuple(checks))
    import transformers

    from jax_speechlm.interop.hf.verify.table import compare

    made = made or registry.package(run)
    with _openable(folder, made) as opened:
        for check in compare(opened, run, made, *inputs, vocoder=vocoder):
            add(check)
    return Verdict(f"transformers {transformers.__version__}", True, tuple(checks))


@contextlib.contextmanager
def _openable(folder: Path, made: Package) -> Iterator[Path]:
    """Yields a folder that transformers opens: of one that a Flax class wrote, what would be exported."""
    if not weights.is_flax(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as exported:
        registry.write_model(Path(exported), made)
        yield Path(exported)


def _same_parameters(folder: Path, made: Package) -> str:
    params = jax.tree.map(lambda array: np.asarray(array, np.float32), made.params)
    return f"{_require_same(params, registry.read_model(folder).params, np.float32):,}, bit for bit"


def _same_settings(folder: Path, made: Package) -> str:
    files = {"config.json": made.config} | made.files
    for name, value in files.items():
        if folders.read_file(folder, name) != value:
            raise Differs(f"{name} is not what the checkpoint gives")
    return f"{len(files)} files"


def _require_same(params: Params, expected: Params, dtype: Any) -> int:
    """Requires equal parameters, read one at a time; `expected` is converted to `dtype`. Returns their number."""
    arrays, others = (dict(jax.tree.leaves_with_path(tree)) for tree in (params, expected))
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
    """Exports the run again, which returns every id to its old row, and compares with the folder's arrays."""
    in_folder, made = weights.read_weights(folder), registry.package(run)
    exported = made.arrays
    if made.architecture.startswith("Parakeet"):  # its batch norms became scales and offsets
        in_folder, exported = parakeet.folded(in_folder), parakeet.folded(exported)
    if made.architecture == nemotron.ARCHITECTURE:  # the two biases of its LSTMs became one
        in_folder, exported = nemotron.folded(in_folder), nemotron.folded(exported)
    if made.architecture == fastspeech2.MODEL:
        in_folder, exported = fastspeech2.folded(in_folder), fastspeech2.folded(exported)
    if made.architecture == wav_tokenizer.MODEL:  # its weight norms became kernels
        in_folder, exported = wav_tokenizer.folded(in_folder), wav_tokenizer.folded(exported)
    if made.architecture in wav2vec2.ARCHITECTURES:  # old names
        in_folder = wav2vec2.renamed(in_folder)
    if "projector" not in made.params and "projector.weight" in in_folder and "head" in made.params:  # became one
        in_folder = {name: x for name, x in in_folder.items() if not name.startswith(("projector", "classifier"))}
    twice = {whisper.TIED}
    if made.architecture in families.MODEL_TYPES:  # old names, and parts for other uses
        config = run.experiment.model
        family, bare = family_of(config), made.architecture in families.ENCODERS.values()
        in_folder, exported = (families.normalized(arrays, family, bare) for arrays in (in_folder, exported))
        twice = transformer.tied_names(config)
        if not any("pooler." in name for name in exported):
            in_folder = families.without_pooler(in_folder, family)
    tied = twice - exported.keys()
    compared = {name: x for name, x in in_folder.items() if name not in tied and not name.endswith(_TRAINING_ONLY)}
    for name, value in compared.items():
        if name not in exported:
            raise Differs(f"{name} is missing from what would be exported")
        if not _same_bits(value.astype(dtype).astype(np.float32), exported[name]):
            raise Differs(f"{name} would be exported with other values")
    return f"{sum(x.size for x in compared.values()):,} would be exported bit for bit, under the same ids"


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
