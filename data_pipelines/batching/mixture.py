"""Which stream each step of a mixture takes, as a pure function of (seed, step).

The shares are cut one after another: the first stream takes of n steps floor(n * share + phase), the next takes in the
same way of the steps that are left, and so on. Of any n first steps a stream so has its share to within one step where
there are two streams, and to within `streams - 1` steps in general. The seed draws the phases, hence where in the
pattern a run begins. Nothing is replayed: how often each stream was taken before any step is a product and a division
for each, so a resume costs O(1).
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
      names: of the streams.
      plans: what each stream's own steps hold.
      quotas: steps of each stream among `PERIOD`.
      seed: draws where the pattern begins.
    """

    names: tuple[str, ...]
    plans: tuple[BatchPlan | TextPlan, ...]
    quotas: tuple[int, ...]
    seed: int

    @functools.cached_property
    def _cuts(self) -> tuple[tuple[int, int, int], ...]:
        """Of each stream its quota, the phase, and the steps that its quota is out of."""
        cuts, rest = [], PERIOD
        for number, quota in enumerate(self.quotas):
            cuts.append((quota, derive_key(self.seed, _PHASE, number) % rest, rest))
            rest -= quota
        return tuple(cuts)

    def taken(self, step: int) -> tuple[int, ...]:
        """How many of the steps before `step` each stream took."""
        counts = []
        for quota, phase, rest in self._cuts:
            counts.append((step * quota + phase) // rest)
            step -= counts[-1]
        return tuple(counts)

    def place(self, step: int) -> tuple[int, int]:
        """The number of the stream that takes a step, and which of its own steps that is."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        before, after = self.taken(step), self.taken(step + 1)
        stream = next(number for number in range(len(before)) if after[number] > before[number])
        return stream, before[stream]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest that two plans share only if they give the same batch at every step."""
        parts = (self.names, self.quotas, self.seed, [plan.fingerprint for plan in self.plans])
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Each stream's share of the steps, and its own plan."""
        parts = zip(self.names, self.quotas, self.plans, strict=True)
        return "\n".join(f"{name}: {quota / PERIOD:.2%} of the steps\n{plan.describe()}" for name, quota, plan in parts)


def make_mixture_plan(
    names: Sequence[str], plans: Sequence[BatchPlan | TextPlan], weights: Sequence[float], seed: int
) -> MixturePlan:
    """Mixes the steps of several plans.

    Args:
      names: of the streams.
      plans: one a stream; each is taken from its step 0 on.
      weights: share of the steps that each has, in any unit, rounded to 1 in 10,000 and at least that.
      seed: draws where the pattern begins.

    Raises:
      ValueError: weights that are not positive, or not as many as streams.
    """
    if not len(names) == len(plans) == len(weights):
        raise ValueError(f"{len(names)} streams need as many plans and weights; got {len(plans)} and {len(weights)}")
    return MixturePlan(tuple(names), tuple(plans), to_quotas(weights), seed)
