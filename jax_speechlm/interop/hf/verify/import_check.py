"""Whether an imported run is the folder that it was made of.

Always: the run, written as a folder again, has the folder's arrays bit for bit. Where torch and transformers are
installed: both hear the same audio or read the same text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.interop.hf import bert, parakeet, transformer, weights
from jax_speechlm.interop.hf.registry import package
from jax_speechlm.interop.hf.verify.verdict import Check, Verdict, guarded, transformers_is_here
from jax_speechlm.nn.functional import Params

_NOT_OURS = "masked_spec_embed"  # Hugging Face's own filler of masked frames, for training alone


def check_import(
    folder: Path, run: LoadedRun, sources: Params, dtype: Any, audio: Sequence[Path] = (), texts: Sequence[str] = ()
) -> Verdict:
    """Checks a run that was read back from its checkpoint with all that is installed.

    Args:
      sources: where its parameters were read from.
      dtype: what they were rounded to.
      audio, texts: what to compare on besides inputs of our own.
    """
    found = [
        guarded("checkpoint", lambda: _checkpoint(run, sources, dtype)),
        guarded("parameters", lambda: _written_again(folder, run, dtype)),
    ]
    if not all(check.passed for check in found) or not transformers_is_here():
        return Verdict("the folder's own arrays", False, tuple(found))
    import transformers

    from jax_speechlm.interop.hf.verify import compare

    found += compare.compare(folder, run, package(run), audio, texts, np.dtype(dtype).name)
    return Verdict(f"transformers {transformers.__version__}", True, tuple(found))


def _checkpoint(run: LoadedRun, sources: Params, dtype: Any) -> Check:
    """What the checkpoint holds is what the files do: one parameter after the other."""
    one, other = (dict(jax.tree.leaves_with_path(tree)) for tree in (sources, run.params))
    if one.keys() != other.keys():
        return Check("checkpoint", "it has other parameters than the folder", False)
    for path, source in one.items():
        if not _equal(source.read(dtype=dtype), np.asarray(other[path])):
            return Check("checkpoint", f"{jax.tree_util.keystr(path)} differs", False)
    return Check("checkpoint", f"{sum(leaf.size for leaf in other.values()):,} parameters as they were read", True)


def _written_again(folder: Path, run: LoadedRun, dtype: Any) -> Check:
    """The other way round, by the code that exports, which puts every id back where it was."""
    theirs = weights.read_weights(folder)
    made = package(run)
    ours = made.arrays
    if made.architecture.startswith("Parakeet"):  # its batch norms became scales and offsets
        theirs, ours = parakeet.folded(theirs), parakeet.folded(ours)
    if made.architecture == "Wav2Vec2BertForSequenceClassification":  # its projection became a part of the head
        theirs = {name: value for name, value in theirs.items() if not name.startswith(("projector", "classifier"))}
    if made.architecture.startswith(("Bert", "Roberta")):  # names of old, and parts for other uses
        theirs = bert.used(theirs)
    tied = transformer.TIED - ours.keys()
    count = 0
    for name, value in theirs.items():
        if name in tied or name.endswith(_NOT_OURS):
            continue
        if name not in ours:
            return Check("parameters", f"{name} is missing from what would be exported", False)
        if not _equal(value.astype(dtype).astype(np.float32), ours[name]):
            return Check("parameters", f"{name} would be exported with other values", False)
        count += value.size
    return Check("parameters", f"{count:,} would be exported bit for bit, under the same ids", True)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
