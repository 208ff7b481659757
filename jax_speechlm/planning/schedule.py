"""Estimate of a step's time: the compiled program's instructions, in the order of its schedule.

An instruction takes the cycles that the TPU compiler estimates for it. Where there is no such estimate (kernels,
programs for GPUs) it takes the longer of its arithmetic and its memory traffic. A synchronous collective takes its time
on the links. An asynchronous one, or a copy, runs beside the instructions between its start and its end, and delays the
program by what is left of it at its end.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

from jax_speechlm.parallel.chips import Topology
from jax_speechlm.planning import collectives, costs, links
from jax_speechlm.planning.hlo import Computation, Instruction, Module
from jax_speechlm.planning.loops import trip_count

_UNKNOWN = 2**62  # the compiler's mark of an instruction without an estimate is 2^63 - 1

MATMUL_SHARE = {"tpu": 1.0, "cuda": 0.56, "cpu": 1.0}
"""Share of the peak that instructions without an estimate reach. GPUs: with it, the estimate of Llama 2 7B on one node
of 8 H100 is MaxText's measurement, 492 TFLOP/s a GPU (MaxText/configs/a3/llama_2_7b, 1vm.sh)."""


def seconds(module: Module, mesh: Mapping[str, int], topology: Topology) -> float:
    """Estimates the time of one run of a program.

    Args:
      module: compiled for the mesh.
      mesh: sizes of its axes, in order.
      topology: of its devices.

    Returns:
      Seconds.
    """
    return _Schedule(module, mesh, topology).run(module.computations[module.entry])


class _Schedule:
    def __init__(self, module: Module, mesh: Mapping[str, int], topology: Topology):
        self._module, self._topology = module, topology
        self._mesh = {axis: size for axis, size in mesh.items() if size > 1} or {"": 1}

    def run(self, computation: Computation) -> float:
        """Returns the duration of a computation."""
        time = 0.0
        free: dict[str, float] = defaultdict(float)  # when each resource is free
        ends: dict[str, float] = {}  # of asynchronous instructions, by name or by channel
        for op in computation:
            opcode = op.opcode
            if opcode == "while":
                trips = trip_count(self._module, op, computation)
                time += (1 if trips is None else trips) * self.run(self._module.called(op, "body"))
            elif opcode == "conditional":
                time += max((self.run(branch) for branch in costs.branches(op, self._module)), default=0.0)
            elif opcode == "call":
                time += self.run(self._module.called(op, "to_apply"))
            elif opcode.endswith(("-done", "-update")) or opcode == "recv-done":
                end = max((ends.get(name, 0.0) for name in op.operands), default=0.0)
                if opcode.endswith("-update"):
                    ends[op.name] = end
                else:
                    time = max(time, end)
            elif opcode.endswith("-start") or opcode == "send":
                resource, duration = self._asynchronous(op, computation)
                ends[op.name] = free[resource] = max(time, free[resource]) + duration
            else:
                time = self._synchronous(op, computation, time, free, ends)
        return time

    def _asynchronous(self, op: Instruction, computation: Computation) -> tuple[str, float]:
        """Returns the resource that an asynchronous instruction occupies, and for how long."""
        work = costs.of_instruction(op, computation, self._module, self._mesh)
        for collective in work.collectives:
            duration = links.seconds(collective, self._topology, _is_one_ring(op))
            if collective.kind == "collective-permute":  # one direction of the links; the other may be in use as well
                return f"{collective.axes} {collective.devices[:2]}", 2 * duration
            return collective.axes, duration
        return "memory", work.bytes / self._topology.spec.hbm_bandwidth

    def _synchronous(
        self, op: Instruction, computation: Computation, time: float, free: dict[str, float], ends: dict[str, float]
    ) -> float:
        """Returns the time after an instruction that the program waits for."""
        work = costs.of_instruction(op, computation, self._module, self._mesh)
        after = time + self._duration(op, work)
        if not work.collectives:
            return after
        # Several fusions run a collective step by step beside their products: the first starts it, the last ends it.
        parts = list(self._module.called(op, "calls")) if op.opcode == "fusion" else []
        targets = {part.attribute("custom_call_target") for part in parts if part.opcode == "custom-call"}
        channel = next((part.attribute("channel_id") for part in parts if _is_collective(part)), None)
        if channel in ends:
            return max(after, ends[channel]) if '"AsyncCollectiveDone"' in targets else after
        one_ring = any(map(_is_one_ring, (op, *parts)))
        exchange = sum(links.seconds(collective, self._topology, one_ring) for collective in work.collectives)
        axes = work.collectives[0].axes
        free[axes] = max(time, free[axes]) + exchange
        if '"AsyncCollectiveStart"' in targets:
            ends[channel] = free[axes]
            return after
        return free[axes] + after - time

    def _duration(self, op: Instruction, work: costs.Costs) -> float:
        chip = self._topology.spec
        cycles = re.search(r'"estimated_cycles":"(\d+)"', op.attributes)
        if chip.clock and cycles and 0 < int(cycles.group(1)) < _UNKNOWN:
            return int(cycles.group(1)) / chip.clock
        compute = work.flops / (chip.flops * MATMUL_SHARE[chip.platform])
        return max(compute, 0.0 if work.collectives else work.bytes / chip.hbm_bandwidth)


def _is_collective(op: Instruction) -> bool:
    return op.opcode.removesuffix("-start") in collectives.KINDS


def _is_one_ring(op: Instruction) -> bool:
    """Returns whether the TPU compiler runs a collective as a single ring."""
    return re.search(r'"emitter":"1D|"strategy":"\w*(?:1DRing|StrategyRing)', op.attributes) is not None
