"""Assigns the steps of a mixture to its streams, as a pure function of (seed, step).

The first stream takes floor(n * share + phase) of n steps, the second takes its share of the remaining steps in the
same way, and so on. After n steps a stream has its share to within one step for two streams, and within `streams - 1`
steps in general. The seed draws the phases. The steps that a stream took before any step are computed directly, so a
resume costs O(1).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

from data_pipelines.batching.packing import PERIOD, TextPlan, to_quotas
from data_pipelines.batching.plan import BatchPlan
from data_pipelines.core.shuffle import derive_key

_PHASE = 0  # stream of randomness


@dataclasses.dataclass(frozen=True, eq=False)
class MixturePlan:
    """The steps of several plans, interleaved; made by `make_mixture_plan`.

    Attributes:
      quotas: steps per stream in `PERIOD` steps.
    """

    names: tuple[str, ...]
    plans: tuple[BatchPlan | TextPlan, ...]
    quotas: tuple[int, ...]
    seed: int

    @functools.cached_property
    def _cuts(self) -> tuple[tuple[int, int, int], ...]:
        """(quota, phase, steps left for this and later streams) for each stream."""
        cuts, rest = [], PERIOD
        for number, quota in enumerate(self.quotas):
            cuts.append((quota, derive_key(self.seed, _PHASE, number) % rest, rest))
            rest -= quota
        return tuple(cuts)

    def taken(self, step: int) -> tuple[int, ...]:
        """Returns the number of steps before `step` that each stream took."""
        counts = []
        for quota, phase, rest in self._cuts:
            counts.append((step * quota + phase) // rest)
            step -= counts[-1]
        return tuple(counts)

    def place(self, step: int) -> tuple[int, int]:
        """Returns the stream that takes a step and the step within that stream's plan."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        before, after = self.taken(step), self.taken(step + 1)
        stream = next(number for number in range(len(before)) if after[number] > before[number])
        return stream, before[stream]

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
    names: Sequence[str], plans: Sequence[BatchPlan | TextPlan], weights: Sequence[float], seed: int
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
