"""Whether an exported folder is the checkpoint that it was made from.

Two checks. `read_back` needs nothing but this project: our own reader has to find the very parameters, bit for bit, and
the settings. `compare.compare` runs transformers on the folder, beside us, on the same audio and texts; it is taken
where torch and transformers are installed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.interop import folders
from jax_speechlm.interop.hf import registry
from jax_speechlm.interop.hf.registry import Package
from jax_speechlm.interop.hf.verify.verdict import Check, Verdict, guarded, transformers_is_here


def check_folder(
    folder: Path,
    run: LoadedRun,
    made: Package,
    audio: Sequence[Path] = (),
    texts: Sequence[str] = (),
    tell: Callable[[Check], None] = lambda check: None,
) -> Verdict:
    """Checks a folder with all that is installed.

    Args:
      made: what `run` is in Hugging Face's terms.
      audio, texts: what to compare on besides inputs of our own; only transformers hears and reads them.
      tell: called with each check when it is done.

    Raises:
      AudioError: a file of `audio` cannot be read.
    """
    found = _told(read_back(folder, made), tell)
    if not all(check.passed for check in found) or not transformers_is_here():
        return Verdict("our own reading of the folder", False, tuple(found))
    import transformers

    from jax_speechlm.interop.hf.verify import compare

    found += _told(compare.compare(folder, run, made, audio, texts), tell)
    return Verdict(f"transformers {transformers.__version__}", True, tuple(found))


def read_back(folder: Path, made: Package) -> Iterator[Check]:
    """Our own reading of a folder against the checkpoint."""
    yield guarded("parameters", lambda: _parameters(folder, made))
    yield guarded("settings", lambda: _settings(folder, made))


def _told(checks: Iterable[Check], tell: Callable[[Check], None]) -> list[Check]:
    found = []
    for check in checks:
        tell(check)
        found.append(check)
    return found


def _parameters(folder: Path, made: Package) -> Check:
    trees = made.params, registry.read_model(folder).params
    one, other = (dict(jax.tree.leaves_with_path(tree)) for tree in trees)
    if one.keys() != other.keys():
        differing = jax.tree_util.keystr(min(one.keys() ^ other.keys(), key=str))
        return Check("parameters", f"{differing} is on one side only", False)
    for path, array in one.items():
        found = np.asarray(other[path], np.float32)
        ours = np.asarray(array, np.float32)  # an imported run may keep them as bfloat16
        if found.shape != ours.shape or not np.array_equal(found.view(np.uint32), ours.view(np.uint32)):
            return Check("parameters", f"{jax.tree_util.keystr(path)} differs", False)
    return Check("parameters", f"{sum(array.size for array in one.values()):,}, bit for bit", True)


def _settings(folder: Path, made: Package) -> Check:
    files = {"config.json": made.config} | made.files
    for name, value in files.items():
        if folders.read_file(folder, name) != value:
            return Check("settings", f"{name} is not what the checkpoint gives", False)
    return Check("settings", f"{len(files)} files", True)
