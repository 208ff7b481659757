"""Accounts for a run's wall time over all its restarts; the share of productive steps is its goodput."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KINDS = ("start", "compile", "input", "step", "validate", "checkpoint", "lost")
"""start: until the first batch, with restoring; compile: steps that were compiled first; input: waiting for batches;
step: the rest of the loop, which is waiting for the device; validate, checkpoint: validating and saving; lost: steps
repeated after a restart, and the time between the starts."""


class GoodputTracker:
    """Seconds of wall time by kind since the first start of a run.

    Exactly one kind is active at any time, so the kinds add up to the wall time.
    """

    def __init__(self, began: float, log: Path, clock: Callable[[], float] = time.time):
        """Continues the account of earlier starts, logged as the part "goodput" in `log`, the run's metrics.jsonl.

        `began` is the time of this start by `clock`, which counts seconds continuously across processes.
        """
        self._clock = clock
        self._spent = dict.fromkeys(KINDS, 0.0)
        self._earlier = _last(log)
        if self._earlier:
            self._spent |= {kind: self._earlier[f"{kind}_seconds"] for kind in KINDS}
            self._spent["lost"] += max(0.0, began - self._earlier["time"])
        self._kind, self._since = "start", began

    def resume(self, step: int) -> None:
        """Starts the steps at `step`: moves the estimated time of later steps, which are repeated, to `lost`."""
        if self._earlier and self._earlier["step"] > step:
            again = self._spent["step"] * (1 - step / self._earlier["step"])
            self._spent["step"] -= again
            self._spent["lost"] += again
        self._switch("step")

    @contextlib.contextmanager
    def paying_for(self, kind: str) -> Iterator[None]:
        """Attributes the time in this context to a kind."""
        before = self._switch(kind)
        yield
        self._switch(before)

    @contextlib.contextmanager
    def stepping(self, programs: Callable[[], int]) -> Iterator[None]:
        """Attributes a step to `compile` if it increases the number of compiled `programs`."""
        known = programs()
        self._switch("step")
        yield
        if programs() > known:
            self._kind = "compile"
            self._switch("step")

    def figures(self) -> dict[str, float]:
        """Returns the seconds per kind so far, and the share of `step`."""
        self._switch(self._kind)
        total = sum(self._spent.values())
        return {f"{kind}_seconds": self._spent[kind] for kind in KINDS} | {
            "goodput": self._spent["step"] / max(total, 1e-9)
        }

    def _switch(self, kind: str) -> str:
        now = self._clock()
        self._spent[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before


def describe(figures: dict[str, float]) -> str:
    """Formats the shares of a run's wall time as one line."""
    total = max(sum(figures[f"{kind}_seconds"] for kind in KINDS), 1e-9)
    others = [kind for kind in KINDS if kind != "step" and figures[f"{kind}_seconds"] / total >= 0.0005]
    parts = ", ".join(f"{kind} {figures[f'{kind}_seconds'] / total:.1%}" for kind in others)
    return f"goodput {figures['goodput']:.1%} of {total / 60:.1f} minutes" + (f" ({parts})" if parts else "")


def _last(log: Path) -> dict[str, Any] | None:
    """Returns the newest account in a run's log, or None. Ignores incomplete lines."""
    if not log.exists():
        return None
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if '"part": "goodput"' in line:
            with contextlib.suppress(ValueError):
                return json.loads(line)
    return None
