"""Distributes steps among streams in exact shares, as a pure function of (seed, step).

The first stream takes floor(n * share + phase) of n steps, the second takes its share of the remaining steps in the
same way, and so on. After n steps a stream has its share to within one step for two streams, and within `streams - 1`
steps in general. The seed draws the phases. The steps that a stream took before any step are computed directly, so a
resume costs O(1).
"""

import dataclasses
import functools

from data_pipelines.core.shuffle import derive_key

_PHASE = 0  # stream of randomness


@dataclasses.dataclass(frozen=True)
class Interleaving:
    """Steps of several streams.

    Attributes:
      quotas: steps of each stream in `sum(quotas)` steps.
      seed: seed of the phases.
    """

    quotas: tuple[int, ...]
    seed: int

    @functools.cached_property
    def _cuts(self) -> tuple[tuple[int, int, int], ...]:
        """(quota, phase, steps left for this and later streams) for each stream."""
        cuts, rest = [], sum(self.quotas)
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
        """Returns the stream that takes a step and the number of steps that it took before."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        before, after = self.taken(step), self.taken(step + 1)
        stream = next(number for number in range(len(before)) if after[number] > before[number])
        return stream, before[stream]
