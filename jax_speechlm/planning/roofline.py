"""Rooflines: least time of a step on compute, memory and links, from its counted costs (Williams et al. 2009)."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from jax_speechlm.parallel.chips import Topology
from jax_speechlm.planning.ahead_of_time import Step
from jax_speechlm.planning.costs import Collective
from jax_speechlm.planning.workload import Workload


class Estimate(NamedTuple):
    """Seconds of one step on each resource, and derived figures.

    No program reaches its roofline: `best` is a lower bound of the time, and so `mfu` an upper bound. `serial` is the
    time without any overlap.

    Attributes:
      compute, memory: seconds at the chip's peak.
      links: seconds on the links between devices, by mesh axes.
      best: the largest of compute, memory and the sum of links: complete overlap.
      serial: their sum.
      bound: "compute", "memory" or "links": the resource that determines `best`.
      mfu: share of the peak used by the model's own arithmetic in a step of `best` seconds.
    """

    compute: float
    memory: float
    links: dict[str, float]
    best: float
    serial: float
    bound: str
    mfu: float


class Rate(NamedTuple):
    """Average over the batch shapes of an epoch.

    Attributes:
      step_seconds: of the average step, at best.
      serial_seconds: of the average step without overlap.
      mfu: at best.
      per_hour: hours of audio, or tokens, of training data processed in an hour, at best.
    """

    step_seconds: float
    serial_seconds: float
    mfu: float
    per_hour: float


def estimate(step: Step, topology: Topology, mesh: dict[str, int]) -> Estimate:
    """Computes the roofline of a compiled step."""
    chip = topology.spec
    compute = step.costs.flops / chip.flops
    memory = step.costs.bytes / chip.hbm_bandwidth
    links: dict[str, float] = defaultdict(float)
    for collective in step.costs.collectives:
        links[collective.axes] += collective.sent / bandwidth(collective, topology, mesh)
    parts = {"compute": compute, "memory": memory, "links": sum(links.values())}
    bound = max(parts, key=parts.get)
    best = parts[bound]
    mfu = step.model_flops / (best * topology.num_devices * chip.flops) if best else math.nan
    return Estimate(compute, memory, dict(links), best, sum(parts.values()), bound, mfu)


def bandwidth(collective: Collective, topology: Topology, mesh: dict[str, int]) -> float:
    """Returns the bytes/s that a device sends in a collective: over the network if groups span slices or nodes.

    Device i of the mesh is device i of the job, host after host, so a group that spans several axes covers a contiguous
    range of devices.
    """
    chip = topology.spec
    group = topology.devices_per_slice if chip.platform == "tpu" else min(chip.node, topology.num_devices)
    sizes, names = list(mesh.values()), list(mesh)
    used = [axis for axis, name in enumerate(names) if name in collective.axes.split("+")]
    if not used:  # no axes of the mesh: take the worst
        return chip.network_bandwidth if topology.num_devices > group else chip.link_bandwidth
    stretch = math.prod(sizes[used[0] :])
    return chip.network_bandwidth if stretch > group else chip.link_bandwidth


def average(steps: Sequence[Step], estimates: Sequence[Estimate], load: Workload, topology: Topology) -> Rate:
    """Averages steps over an epoch, weighted by the frequency of their shapes."""
    shares = [step.shape.share for step in steps]
    seconds = sum(share * estimate.best for share, estimate in zip(shares, estimates, strict=True))
    serial = sum(share * estimate.serial for share, estimate in zip(shares, estimates, strict=True))
    flops = sum(share * step.model_flops for share, step in zip(shares, steps, strict=True))
    counted = [step.shape for step in steps if step.shape.unit == load.unit]
    padded = sum(shape.share * shape.rows * shape.length for shape in counted)
    useful = padded * load.useful / (load.sample_rate * 3600 if load.unit == "samples" else 1)
    return Rate(
        seconds, serial, flops / (seconds * topology.num_devices * topology.spec.flops), useful / seconds * 3600
    )
