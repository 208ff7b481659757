"""Time of a collective on the links of a topology.

A TPU slice is a torus: a ring along an axis with linked ends moves data in both directions, a line only in one, and a
group over several axes uses the links of all (Austin et al. 2025, "How to Scale Your Model", chapters 2 and 3). GPUs of
a node are on a switch. Rings across nodes enter each node through all adapters of the group's GPUs in it.
"""

import itertools
import math
from collections import Counter

from jax_speechlm.parallel.chips import Topology
from jax_speechlm.planning.collectives import Collective


def seconds(collective: Collective, topology: Topology, one_ring: bool = False) -> float:
    """Returns the least time of all runs of a collective.

    Args:
      one_ring: whether it runs as a single ring, whatever axes the group has.
    """
    chip, places = topology.spec, [topology.place(device) for device in collective.devices]
    groups = Counter(place[0] for place in places)  # devices in each slice or node
    exchanges = "all-to-all" in collective.kind
    if len(groups) > 1:
        if chip.platform == "tpu" or collective.kind == "collective-permute":
            return collective.sent / chip.network_bandwidth
        if exchanges:
            outside = collective.sent * len(places) / (len(places) - 1) * (1 - 1 / len(groups))
            return max(collective.sent / chip.link_bandwidth, outside / chip.network_bandwidth)
        adapters = min(groups.values())
        return collective.sent / min(chip.link_bandwidth, adapters * chip.network_bandwidth)
    if chip.platform != "tpu":
        return collective.sent / chip.link_bandwidth
    link = chip.link_bandwidth * len({place[-1] for place in places})  # devices of a chip share its links
    if collective.kind == "collective-permute":
        return collective.sent * _busiest(places, topology) / link
    shares, travels = [], []
    for axis, (side, wraps) in enumerate(zip(topology.shape, topology.wraps, strict=True), 1):
        at = sorted({place[axis] for place in places})
        if len(at) == 1:
            continue
        stride = min(b - a for a, b in itertools.pairwise(at))  # groups in between use the same links
        shares.append((1.0 if wraps and len(at) * stride == side else 0.5) / stride)
        travels.append(len(at) / 4 / shares[-1])  # on a ring every chunk travels a quarter of it
    if not shares:  # the two cores of one chip, whose link is six times as fast (docs.cloud.google.com/tpu/docs/tpu7x)
        return collective.sent / (6 * link)
    if exchanges:
        return collective.sent * len(places) / (len(places) - 1) * max(travels) / link
    if one_ring:  # through a block of several axes it closes, and moves data in both directions
        return collective.sent / (link * (max(shares) if len(shares) == 1 else 2 * min(*shares, 0.5)))
    return collective.sent / (link * sum(shares))


def _busiest(places: list[tuple[int, ...]], topology: Topology) -> float:
    """Returns how many messages of a chain of devices the busiest link carries, along one axis after the other."""
    loads: Counter = Counter()
    for source, target in itertools.pairwise(places):
        at = list(source)
        for axis, (side, wraps) in enumerate(zip(topology.shape, topology.wraps, strict=True), 1):
            distance = target[axis] - at[axis]
            if wraps and abs(distance) > side / 2:
                distance -= int(math.copysign(side, distance))
            step = 1 if distance > 0 else -1
            for _ in range(abs(distance)):
                loads[(*at, axis, step)] += 1
                at[axis] = (at[axis] + step) % side
    return max(loads.values(), default=1) / len({place[-1] for place in places})
