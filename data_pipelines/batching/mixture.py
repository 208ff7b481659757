"""Assigns the steps of a mixture to its streams, as a pure function of (seed, step); see `interleaving`."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

from data_pipelines.batching.interleaving import Interleaving
from data_pipelines.batching.packing import PERIOD, TextPlan, to_quotas
from data_pipelines.batching.plan import SpeechPlan


@dataclasses.dataclass(frozen=True, eq=False)
class MixturePlan:
    """The steps of several plans, interleaved; made by `make_mixture_plan`.

    Attributes:
      quotas: steps per stream in `PERIOD` steps.
    """

    names: tuple[str, ...]
    plans: tuple[SpeechPlan | TextPlan, ...]
    quotas: tuple[int, ...]
    seed: int

    @functools.cached_property
    def _interleaving(self) -> Interleaving:
        return Interleaving(self.quotas, self.seed)

    @property
    def batch_sizes(self) -> set[int]:
        """Rows of its global batches."""
        return set().union(*(plan.batch_sizes for plan in self.plans))

    def taken(self, step: int) -> tuple[int, ...]:
        """Returns the number of steps before `step` that each stream took."""
        return self._interleaving.taken(step)

    def place(self, step: int) -> tuple[int, int]:
        """Returns the stream that takes a step and the step within that stream's plan."""
        return self._interleaving.place(step)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the plan; equal only for plans with the same batch at every step."""
        parts = (self.names, self.quotas, self.seed, [plan.fingerprint for plan in self.plans])
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Formats each stream's share of the steps and its plan."""
        parts = zip(self.names, self.quotas, self.plans, strict=True)
        return "\n".join(f"{name}: {quota / PERIOD:.2%} of the steps\n{plan.describe()}" for name, quota, plan in parts)


def make_mixture_plan(
    names: Sequence[str], plans: Sequence[SpeechPlan | TextPlan], weights: Sequence[float], seed: int
) -> MixturePlan:
    """Mixes the steps of several plans.

    Args:
      weights: relative shares of the steps, rounded to 1 in 10,000 and at least that.

    Raises:
      ValueError: weights are not positive, or the numbers of names, plans and weights differ.
    """
    if not len(names) == len(plans) == len(weights):
        raise ValueError(f"{len(names)} streams need as many plans and weights; got {len(plans)} and {len(weights)}")
    return MixturePlan(tuple(names), tuple(plans), to_quotas(weights), seed)
