"""The result of comparing a folder with a checkpoint: one Check a comparison, a Verdict over them."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.core.errors import is_panic
from jax_speechlm.interop import folders


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


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check whose errors are its result: what cannot be read or run has not passed."""
    try:
        return check()
    except BaseException as error:  # safetensors, tokenizers and torch each raise their own
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        return Check(name, f"{type(error).__name__}: {error}", False)
