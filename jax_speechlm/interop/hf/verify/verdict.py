"""Whether an exported folder is the checkpoint that it was made from.

Two checks. `read_back` needs nothing but this project: our own reader has to find the very parameters, bit for bit, and
the settings. `against_transformers.compare` runs transformers on the folder, beside us, on the same audio and texts; it
is taken where torch and transformers are installed.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.core.errors import is_panic
from jax_speechlm.inference.checkpoint import Trained
from jax_speechlm.interop import folders
from jax_speechlm.interop.hf import registry
from jax_speechlm.interop.hf.registry import Package


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
      name: what.
      result: what was found, in words.
      passed: whether it is as it has to be.
    """

    name: str
    result: str
    passed: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of checking a folder.

    Attributes:
      against: what the folder was opened with.
      is_full: whether that was transformers.
      checks: what was looked at.
    """

    against: str
    is_full: bool
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def line(self) -> str:
        """One line for people."""
        if self.failed:
            return f"FAILED against {self.against}: {_listed(self.failed)}"
        if self.is_full:
            return f"equal, against {self.against}: {_listed(self.checks)}"
        return f"not opened by transformers yet; equal, against {self.against}: {_listed(self.checks)}"

    def to_json(self) -> dict[str, Any]:
        """As `jax_speechlm.json` keeps it; `read_by` says what read the folder, and of which version."""
        read_by = folders.versions(("transformers", "torch") if self.is_full else ("jax_speechlm",))
        return dataclasses.asdict(self) | {"passed": not self.failed, "read_by": read_by}


def _listed(checks: Sequence[Check]) -> str:
    return "; ".join(f"{each.name}: {each.result}" for each in checks)


def transformers_is_here() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def check_folder(
    folder: Path,
    run: Trained,
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


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check whose errors are its result: what cannot be read or run has not passed."""
    try:
        return check()
    except BaseException as error:  # safetensors, tokenizers and torch each raise their own
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        return Check(name, f"{type(error).__name__}: {error}", False)


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
