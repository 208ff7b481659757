"""Bound and estimate of a step's time, from its compiled program.

The bound is the roofline (Williams et al. 2009): least time on compute, memory and links, from the counted costs.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from jax_speechlm.parallel.chips import Topology
from jax_speechlm.planning import links, schedule
from jax_speechlm.planning.ahead_of_time import Step
from jax_speechlm.planning.workload import Workload


class Estimate(NamedTuple):
    """Seconds of one step on each resource, and derived figures.

    Attributes:
      compute, memory: seconds at the chip's peak.
      links: seconds on the links between devices, by mesh axes.
      best: the largest of compute, memory and the sum of links: complete overlap. No program reaches it.
      seconds: expected: the program's instructions in the order of its schedule (`planning.schedule`), at least `best`.
      bound: "compute", "memory" or "links": the resource that determines `best`.
      mfu: share of the peak used by the model's own arithmetic in a step of `seconds`.
      best_mfu: the same in a step of `best` seconds.
    """

    compute: float
    memory: float
    links: dict[str, float]
    best: float
    seconds: float
    bound: str
    mfu: float
    best_mfu: float


class Rate(NamedTuple):
    """Average over the batch shapes of an epoch.

    Attributes:
      best_seconds: bound of the average step.
      step_seconds: estimate of the average step.
      mfu: by the estimate.
      per_hour: hours of audio, or tokens, of training data processed in an hour, by the estimate.
    """

    best_seconds: float
    step_seconds: float
    mfu: float
    per_hour: float


def estimate(step: Step, topology: Topology, mesh: dict[str, int]) -> Estimate:
    """Computes the bound and the estimate of a compiled step."""
    chip = topology.spec
    compute = step.costs.flops / chip.flops
    memory = step.costs.bytes / chip.hbm_bandwidth
    on_links: dict[str, float] = defaultdict(float)
    for collective in step.costs.collectives:
        on_links[collective.axes] += links.seconds(collective, topology)
    parts = {"compute": compute, "memory": memory, "links": sum(on_links.values())}
    bound = max(parts, key=parts.get)
    best = parts[bound]
    seconds = max(best, schedule.seconds(step.program, mesh, topology))
    peak = topology.num_devices * chip.flops
    mfu, best_mfu = (step.model_flops / (time * peak) if time else math.nan for time in (seconds, best))
    return Estimate(compute, memory, dict(on_links), best, seconds, bound, mfu, best_mfu)


def average(steps: Sequence[Step], estimates: Sequence[Estimate], load: Workload, topology: Topology) -> Rate:
    """Averages steps over an epoch, weighted by the frequency of their shapes."""
    shares = [step.shape.share for step in steps]
    best = sum(share * estimate.best for share, estimate in zip(shares, estimates, strict=True))
    seconds = sum(share * estimate.seconds for share, estimate in zip(shares, estimates, strict=True))
    flops = sum(share * step.model_flops for share, step in zip(shares, steps, strict=True))
    counted = [step.shape for step in steps if step.shape.unit == load.unit]
    padded = sum(shape.share * shape.rows * shape.length for shape in counted)
    useful = padded * load.useful / (load.sample_rate * 3600 if load.unit == "samples" else 1)
    mfu = flops / (seconds * topology.num_devices * topology.spec.flops)
    return Rate(best, seconds, mfu, useful / seconds * 3600)
