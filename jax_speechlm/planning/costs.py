"""Costs of one run of a compiled program on a device: arithmetic, memory traffic and collectives.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count, and a scanned model is one loop. So
the costs are counted from the program's instructions here, each times the trip counts of the enclosing loops.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jax_speechlm.nn.attention.dot import VISIBLE_SHARE
from jax_speechlm.planning import collectives
from jax_speechlm.planning.collectives import Collective
from jax_speechlm.planning.hlo import Computation, Instruction, Module, Shape, numbers
from jax_speechlm.planning.loops import trip_count

# Without traffic of their own: names for existing arrays, or the second half of an instruction already counted.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "optimization-barrier", "copy-done", "slice-done", "async-done", "async-update", "send", "recv",
    "send-done", "recv-done",
} | {f"{name}-done" for name in collectives.KINDS}  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")  # of the TPU compiler


class Costs(NamedTuple):
    """Costs per device of one run of a program.

    Attributes:
      flops: of matrix products and convolutions only; a multiply-add is two.
      bytes: read from and written to main memory.
      collectives: by kind and axes, in descending order of bytes sent.
      unknown_loops: loops with an unreadable trip count; their bodies are counted once.
      unknown_calls: targets of custom calls of unknown arithmetic, with their number of runs.
    """

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...] = ()
    unknown_calls: tuple[tuple[str, float], ...] = ()


def count(module: Module, mesh: Mapping[str, int]) -> Costs:
    """Counts a program's costs.

    Args:
      module: from `hlo.parse`, compiled for a mesh.
      mesh: sizes of its axes, in order; device i of the program is the i-th of the mesh.

    Returns:
      Costs per device.
    """
    counter = _Counter(module, mesh)
    counter.walk(module.computations[module.entry], 1.0, fused=False)
    return counter.costs()


def of_instruction(op: Instruction, computation: Computation, module: Module, mesh: Mapping[str, int]) -> Costs:
    """Counts the costs of one instruction, with all that it calls."""
    counter = _Counter(module, mesh)
    counter.visit(op, computation, 1.0, fused=False)
    return counter.costs()


class _Counter:
    def __init__(self, module: Module, mesh: Mapping[str, int]):
        self._module = module
        self._mesh = {axis: size for axis, size in mesh.items() if size > 1} or {"": 1}
        self._flops = self._bytes = 0.0
        self._collectives: dict[tuple[str, str, int], Collective] = {}
        self._loops: list[str] = []
        self._calls: dict[str, float] = defaultdict(float)
        self._channels: set[tuple[str, str, str | None, float]] = set()

    def costs(self) -> Costs:
        found = sorted(self._collectives.values(), key=lambda collective: -collective.sent)
        return Costs(self._flops, self._bytes, tuple(found), tuple(self._loops), tuple(self._calls.items()))

    def walk(self, computation: Computation, times: float, fused: bool) -> None:
        for op in computation:
            self.visit(op, computation, times, fused)

    def visit(self, op: Instruction, computation: Computation, times: float, fused: bool) -> None:
        opcode, module = op.opcode, self._module
        if opcode == "while":
            trips = trip_count(module, op, computation)
            if trips is None:
                self._loops.append(op.name)
            self.walk(module.called(op, "body"), times * (1 if trips is None else trips), fused)
            return
        if opcode == "conditional":
            self._dearest_branch(op, times, fused)
            return
        if opcode == "dot":
            self._flops += times * dot_flops(op, computation)
        elif opcode == "convolution":
            self._flops += times * convolution_flops(op, computation)
        elif opcode == "custom-call":
            self._custom_call(op, computation, times)
        elif opcode == "send" and "_xla_megascale_transfer_type" in op.attributes:
            self._add(collectives.between_slices(op, computation, self._mesh), times)
        elif opcode.removesuffix("-start") in collectives.KINDS:
            self._collective(op, computation, times, fused)
        if opcode in ("call", "async-start"):
            self.walk(module.called(op, "calls" if op.attribute("calls") else "to_apply"), times, fused)
        elif opcode == "fusion":
            inner = module.called(op, "calls")
            self.walk(inner, times, fused=True)
            if not fused:
                self._bytes += times * _fusion_bytes(op, computation, inner)
        elif not fused and opcode not in _FREE and _target(op) not in _FREE_CALLS:
            self._bytes += times * _bytes(op, computation)

    def _dearest_branch(self, op: Instruction, times: float, fused: bool) -> None:
        counted = []
        for branch in branches(op, self._module):
            other = _Counter(self._module, self._mesh)
            other.walk(branch, times, fused)
            counted.append(other)
        if not counted:
            return
        dearest = max(counted, key=lambda other: (other._flops, other._bytes))
        self._flops += dearest._flops
        self._bytes += dearest._bytes
        self._loops += dearest._loops
        for collective in dearest._collectives.values():
            self._add(collective, 1.0)
        for target, often in dearest._calls.items():
            self._calls[target] += often

    def _custom_call(self, op: Instruction, computation: Computation, times: float) -> None:
        target = _target(op)
        # A collective that the TPU's SparseCores run is in a computation that a custom call names.
        for name in re.findall(r"%([\w.\-]+)", op.attribute("called_computations") or ""):
            self.walk(self._module.computations[name], times, fused=True)
        if "gemm" in target or "matmul" in target:
            self._flops += times * _gemm_flops(op, computation)
        elif known := re.search(r'"flops":"?(\d+)', op.attributes):  # a Pallas kernel that states its cost
            self._flops += times * int(known.group(1))
        elif (flops := attention_flops(op, computation)) is not None:
            self._flops += times * flops
        elif target == "tpu_custom_call" or "cudnn" in target or "fmha" in target:
            self._calls[target] += times

    def _collective(self, op: Instruction, computation: Computation, times: float, fused: bool) -> None:
        # The parts of one asynchronous collective are in several fusions and share a channel. Elsewhere the channel
        # identifies nothing: all collectives of `shard_map` share one.
        part = op.opcode, op.attribute("replica_groups"), op.attribute("channel_id"), times
        if fused and part in self._channels:
            return
        self._channels.add(part)
        if (collective := collectives.read(op, computation, self._mesh, fused)) is not None:
            self._add(collective, times)

    def _add(self, collective: Collective, times: float) -> None:
        key = collective[:3]
        so_far = self._collectives.get(key, collective._replace(times=0, sent=0))
        self._collectives[key] = so_far._replace(
            times=so_far.times + times * collective.times, sent=so_far.sent + times * collective.sent
        )


def _target(op: Instruction) -> str:
    return (op.attribute("custom_call_target") or "").strip('"') if op.opcode == "custom-call" else ""


def branches(op: Instruction, module: Module) -> list[Computation]:
    """Returns the computations among which a `conditional` chooses."""
    names = re.findall(r"%([\w.\-]+)", op.attribute("branch_computations") or "")
    either = (op.attribute("true_computation"), op.attribute("false_computation"))
    return [module.computations[name] for name in (*names, *(name.lstrip("%") for name in either if name))]


def dot_flops(op: Instruction, computation: Computation) -> float:
    """Returns 2 * elements of the result * elements summed over."""
    left = _operand(op.operands[0], computation).shapes[0]
    summed = numbers(op.attribute("lhs_contracting_dims") or "")
    return 2.0 * op.shapes[0].size * math.prod(left.dims[dim] for dim in summed)


def convolution_flops(op: Instruction, computation: Computation) -> float:
    """Returns 2 * multiply-adds, without products with padding and with the holes of a dilation.

    On TPU every matrix product is a convolution, batched ones with the batch as a dilated spatial dimension, of which
    only the diagonal is real.
    """
    image, kernel = (_operand(name, computation).shapes[0].dims for name in op.operands[:2])
    labels_in, labels_kernel, labels_out = re.split(r"_|->", op.attribute("dim_labels"))
    window = _window(op.attribute("window") or "{}")
    total = 2.0 * kernel[labels_kernel.index("i")] * op.shapes[0].dims[labels_out.index("f")]
    total *= op.shapes[0].dims[labels_out.index("b")]
    for dim in range(sum(label.isdigit() for label in labels_in)):
        total *= _products(
            image[labels_in.index(str(dim))],
            kernel[labels_kernel.index(str(dim))],
            op.shapes[0].dims[labels_out.index(str(dim))],
            **{name: values[dim] for name, values in window.items()},
        )
    return total


def _window(text: str) -> dict[str, list[int]]:
    named = dict(re.findall(r"(\w+)=([\w\-]+)", text))
    window = {}
    for name, key in (("stride", "stride"), ("dilate_in", "lhs_dilate"), ("dilate_kernel", "rhs_dilate")):
        if key in named:
            window[name] = [int(size) for size in named[key].split("x")]
    if "pad" in named:
        window["pad"] = [int(both.split("_")[0]) for both in named["pad"].split("x")]
    return window


def _products(
    size: int, taps: int, out: int, stride: int = 1, dilate_in: int = 1, dilate_kernel: int = 1, pad: int = 0
) -> int:
    """Returns the number of (output, tap) pairs along one spatial dimension that meet an input element."""
    position = np.arange(out)[:, None] * stride + np.arange(taps)[None, :] * dilate_kernel - pad
    inside = (position >= 0) & (position <= (size - 1) * dilate_in) & (position % dilate_in == 0)
    return int(inside.sum())


# Products of queries x keys x head_dim that each of splash attention's kernels does.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def attention_flops(op: Instruction, computation: Computation) -> float | None:
    """Returns the FLOPs of a fused attention kernel (splash on TPU, cuDNN's); None for anything else.

    Such kernels are opaque to XLA. Splash computes the blocks of which `nn.attention.dot` states the share in the name
    of the call, cuDNN's those of 128 x 128 that a causal mask leaves.
    """
    shapes = [_operand(name, computation).shapes[0] for name in op.operands]
    if "__cudnn$fmha" in op.attributes:
        products = 5 if "Backward" in (op.attribute("custom_call_target") or "") else 2
        scores = re.search(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]', op.attributes)
        if scores is None:
            return None
        dims = numbers(scores.group(1))
        blocks = -(-dims[-1] // 128)
        share = (blocks + 1) / (2 * blocks) if re.search(r'"mask_type": ?"\w*CAUSAL', op.attributes) else 1.0
        return 2.0 * products * math.prod(dims) * shapes[0].dims[-1] * share
    products = next((count for name, count in _SPLASH.items() if op.name.startswith(name)), None)
    if products is None:
        return None
    queries, keys = [shape.dims for shape in shapes if shape.dtype in ("bf16", "f32") and len(shape.dims) > 2][:2]
    share = re.search(rf"{VISIBLE_SHARE}([\d.]+)", op.attributes)
    return 2.0 * products * math.prod(queries) * keys[-2] * (float(share.group(1)) if share else 1.0)


def _gemm_flops(op: Instruction, computation: Computation) -> float:
    left = _operand(op.operands[0], computation).shapes[0]
    match = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', op.attributes)
    summed = numbers(match.group(1)) if match else [len(left.dims) - 1]
    return 2.0 * op.shapes[0].size * math.prod(left.dims[dim] for dim in summed)


def _operand(name: str, computation: Computation) -> Instruction:
    return computation.instructions[name]


def _in_hbm(shapes: Sequence[Shape]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _bytes(op: Instruction, computation: Computation) -> int:
    """Returns the main memory traffic of an instruction outside a fusion."""
    operands = [_operand(name, computation).shapes for name in op.operands]
    written = _in_hbm(op.shapes)
    if op.opcode in ("copy-start", "slice-start", "async-start"):  # the result names source and destination
        return _in_hbm(op.shapes[:2])
    if op.opcode in ("dynamic-slice", "slice", "gather"):
        return written + (op.bytes if operands[0][0].in_hbm else 0)
    if op.opcode == "dynamic-update-slice":  # in place
        update = sum(shape.bytes for shape in operands[1])
        return update * (operands[1][0].in_hbm + op.shapes[0].in_hbm)
    if op.opcode in ("broadcast", "iota"):
        return written
    return written + sum(_in_hbm(shapes) for shapes in operands)


def _fusion_bytes(op: Instruction, computation: Computation, inner: Computation) -> int:
    """Returns the main memory traffic of a fusion; of arrays that it slices or updates in place, only the part used."""
    total = 0
    for parameter in inner:
        if parameter.opcode != "parameter":
            continue
        operand = _operand(op.operands[int(parameter.argument)], computation)
        users = list(inner.uses(parameter.name))
        if users and all(user.opcode in ("dynamic-slice", "slice") for _, user in users):
            total += sum(user.bytes for _, user in users) if all(s.in_hbm for s in operand.shapes) else 0
        elif users and all(user.opcode == "dynamic-update-slice" and user.operands[0] == name for name, user in users):
            continue
        else:
            total += _in_hbm(operand.shapes)
    root = inner.instructions[inner.root]
    results = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(op.shapes):
        return total + _in_hbm(op.shapes)
    for result, shape in zip(results, op.shapes, strict=True):
        while result.opcode in ("bitcast", "copy") and result.operands:
            result = inner.instructions[result.operands[0]]
        if shape.in_hbm:
            updates = result.opcode == "dynamic-update-slice"
            total += inner.instructions[result.operands[1]].bytes if updates else shape.bytes
    return total
