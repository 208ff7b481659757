"""Results of comparing a folder with a checkpoint: one `Check` per comparison, and a `Verdict` over all of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.core.errors import is_panic
from jax_speechlm.interop import folders


class Differs(Exception):
    """The two sides of a comparison differ; the message names the place."""


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one comparison: a summary, or the first difference or error."""

    name: str
    result: str
    passed: bool

    @property
    def line(self) -> str:
        """One line of a progress report."""
        return f"  {'ok' if self.passed else 'NO':<3} {self.name}: {self.result}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The results of all comparisons of a folder, in order, against a reader: transformers if `is_full`."""

    against: str
    is_full: bool
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def line(self) -> str:
        """One line that summarises the verdict."""
        if self.failed:
            return f"FAILED against {self.against}: {_listed(self.failed)}"
        prefix = "" if self.is_full else "not opened by transformers yet; "
        return f"{prefix}equal, against {self.against}: {_listed(self.checks)}"

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of `jax_speechlm.json`; `read_by` holds the versions of the reader's packages."""
        read_by = folders.versions(("transformers", "torch") if self.is_full else ("jax_speechlm",))
        return dataclasses.asdict(self) | {"passed": not self.failed, "read_by": read_by}


def _listed(checks: Sequence[Check]) -> str:
    return "; ".join(f"{check.name}: {check.result}" for check in checks)


def guarded(name: str, compare: Callable[[], str]) -> Check:
    """Runs a comparison. A difference or an error fails the check, with the message as its result.

    Args:
      compare: returns a summary of the comparison; raises `Differs` at a difference.
    """
    try:
        return Check(name, compare(), True)
    except Differs as difference:
        return Check(name, str(difference), False)
    except BaseException as error:  # safetensors, tokenizers and torch each raise their own
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        return Check(name, f"{type(error).__name__}: {error}", False)


def expect_equal(subject: str, value: Any, expected: Any) -> None:
    """Raises `Differs` unless the folder's value equals the checkpoint's, `expected`."""
    if value != expected:
        raise Differs(f"{subject} is {_short(value)}, not {_short(expected)}")


def _short(value: Any) -> str:
    return repr(value) if not isinstance(value, list) or len(value) <= 40 else f"{len(value)} ids from {value[:20]}"
