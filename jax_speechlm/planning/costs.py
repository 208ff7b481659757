"""Costs of one run of a compiled program on a device: arithmetic, memory traffic and collectives.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count, and a scanned model is one loop. So
the costs are counted from the program's instructions here, each times the trip counts of the enclosing loops.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jax_speechlm.planning.hlo import Computation, Instruction, Module, Shape

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

# Without traffic of their own: names for existing arrays, or the second half of an instruction already counted.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "optimization-barrier", "copy-done", "slice-done", "async-done", "async-update", "send", "recv",
    "send-done", "recv-done",
} | {f"{name}-done" for name in COLLECTIVES}  # fmt: skip

_ORDER = r"\[[\d,]+\](?:T\([\d,]+\))?"  # an iota, reshaped and transposed


class Collective(NamedTuple):
    """Collectives of one kind along one part of the mesh, over one run of the program.

    Attributes:
      kind: "all-gather", ...
      axes: mesh axes along which the devices of a group differ, "data" or "data+fsdp"; "?" for groups of another form.
      size: devices of a group.
      times: number of runs.
      sent: bytes that each device sends, by the ring algorithms.
    """

    kind: str
    axes: str
    size: int
    times: float
    sent: float


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
    return _Counter(module, mesh).count()


def trip_count(module: Module, loop: Instruction) -> int | None:
    """Returns how often a `while` runs its body; None unless its condition compares with a constant."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known.group(1))
    condition = module.computations[loop.attribute("condition").lstrip("%")]
    compare = condition.instructions[condition.root]
    arguments = list(compare.operands)
    scope = condition
    if compare.opcode == "fusion":
        inner = module.computations[compare.attribute("calls").lstrip("%")]
        outer = {op.name: arguments[int(op.argument)] for op in inner if op.opcode == "parameter"}
        compare, scope = inner.instructions[inner.root], inner
        arguments = list(compare.operands)
    else:
        outer = {}
    if compare.opcode != "compare" or compare.attribute("direction") not in ("LT", "GT"):
        return None
    for name in arguments:
        op = scope.instructions.get(name)
        if op is not None and op.opcode == "parameter" and name in outer:
            op = condition.instructions.get(outer[name])
        if op is not None and op.opcode == "constant" and re.fullmatch(r"-?\d+", op.argument.strip()):
            return max(int(op.argument), 0)  # JAX counts from 0 by 1
    return None


class _Counter:
    def __init__(self, module: Module, mesh: Mapping[str, int]):
        self._module = module
        self._mesh = {axis: size for axis, size in mesh.items() if size > 1}
        self._devices = np.arange(math.prod(self._mesh.values())).reshape(tuple(self._mesh.values()))
        self._flops = self._bytes = 0.0
        self._collectives: dict[tuple[str, str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._loops: list[str] = []
        self._calls: dict[str, float] = defaultdict(float)
        self._channels: set[tuple[str, str, str | None, float]] = set()

    def count(self) -> Costs:
        self._walk(self._module.computations[self._module.entry], 1.0, fused=False)
        collectives = [Collective(*key, *values) for key, values in self._collectives.items()]
        collectives.sort(key=lambda collective: -collective.sent)
        return Costs(self._flops, self._bytes, tuple(collectives), tuple(self._loops), tuple(self._calls.items()))

    def _walk(self, computation: Computation, times: float, fused: bool) -> None:
        for op in computation:
            opcode = op.opcode
            if opcode == "while":
                trips = trip_count(self._module, op)
                if trips is None:
                    self._loops.append(op.name)
                self._walk(self._called(op, "body"), times * (1 if trips is None else trips), fused)
                continue
            if opcode == "conditional":
                self._dearest_branch(op, times, fused)
                continue
            if opcode == "dot":
                self._flops += times * dot_flops(op, computation)
            elif opcode == "convolution":
                self._flops += times * convolution_flops(op, computation)
            elif opcode == "custom-call":
                self._custom_call(op, computation, times)
            elif opcode == "send" and "_xla_megascale_transfer_type" in op.attributes:
                self._between_slices(op, computation, times)
            elif (kind := opcode.removesuffix("-start")) in COLLECTIVES:
                self._collective(kind, op, computation, times, fused)
            if opcode in ("call", "async-start"):
                self._walk(self._called(op, "calls" if op.attribute("calls") else "to_apply"), times, fused)
            elif opcode == "fusion":
                inner = self._called(op, "calls")
                self._walk(inner, times, fused=True)
                if not fused:
                    self._bytes += times * _fusion_bytes(op, computation, inner)
            elif not fused and opcode not in _FREE:
                self._bytes += times * _bytes(op, computation)

    def _called(self, op: Instruction, attribute: str) -> Computation:
        return self._module.computations[op.attribute(attribute).lstrip("%")]

    def _dearest_branch(self, op: Instruction, times: float, fused: bool) -> None:
        names = re.findall(r"%([\w.\-]+)", op.attribute("branch_computations") or "")
        either = (op.attribute("true_computation"), op.attribute("false_computation"))
        names += [name.lstrip("%") for name in either if name]
        counted = []
        for name in names:
            other = _Counter(self._module, self._mesh)
            other._walk(self._module.computations[name], times, fused)
            counted.append(other)
        if not counted:
            return
        dearest = max(counted, key=lambda other: (other._flops, other._bytes))
        self._flops += dearest._flops
        self._bytes += dearest._bytes
        self._loops += dearest._loops
        for key, (often, sent) in dearest._collectives.items():
            self._collectives[key][0] += often
            self._collectives[key][1] += sent
        for target, often in dearest._calls.items():
            self._calls[target] += often

    def _custom_call(self, op: Instruction, computation: Computation, times: float) -> None:
        target = (op.attribute("custom_call_target") or "").strip('"')
        if "gemm" in target or "matmul" in target:
            self._flops += times * _gemm_flops(op, computation)
        elif known := re.search(r'"flops":"?(\d+)', op.attributes):  # a Pallas kernel that states its cost
            self._flops += times * int(known.group(1))
        elif (flops := attention_flops(op, computation)) is not None:
            self._flops += times * flops
        elif target == "tpu_custom_call" or "cudnn" in target or "fmha" in target:
            self._calls[target] += times

    def _between_slices(self, op: Instruction, computation: Computation, times: float) -> None:
        """Counts a TPU program's transfer over the network: a `send` to the host of a named collective."""
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', op.attributes).group(1).lower().replace("_", "-")
        size, operand = self._mesh.get("replica", 1), _operand(op.operands[0], computation)
        share = 2 * (size - 1) / size if kind == "all-reduce" else (size - 1) / size
        entry = self._collectives[kind, "replica", size]
        entry[0] += times
        entry[1] += times * operand.bytes * share

    def _collective(self, kind: str, op: Instruction, computation: Computation, times: float, fused: bool) -> None:
        axes, size = self._group(kind, op)
        # The parts of one asynchronous collective are in several fusions and share a channel. Elsewhere the channel
        # identifies nothing: all collectives of `shard_map` share one.
        part = kind, axes, op.attribute("channel_id"), times
        if fused and part in self._channels:
            return
        self._channels.add(part)
        if size == 1:
            return
        into = sum(_operand(name, computation).bytes for name in op.operands if name in computation.instructions)
        out = op.bytes - into if op.opcode.endswith("-start") and kind != "all-reduce" else op.bytes
        sent = {
            "all-reduce": 2 * into * (size - 1) / size,
            "all-gather": out * (size - 1) / size,
            "reduce-scatter": into * (size - 1) / size,
            "collective-permute": into,
        }.get(kind, into * (size - 1) / size)
        entry = self._collectives[kind, axes, size]
        entry[0] += times
        entry[1] += times * sent

    def _group(self, kind: str, op: Instruction) -> tuple[str, int]:
        """Returns (mesh axes along which the devices of a group differ, devices of a group)."""
        if kind == "collective-permute":
            pairs = re.findall(r"\{(\d+),(\d+)\}", op.attribute("source_target_pairs") or "")
            shape = self._devices.shape
            coordinates = [np.unravel_index((int(a), int(b)), shape) for a, b in pairs if a != b]
            differ = [any(np.ptp(pair[axis]) for pair in coordinates) for axis in range(len(shape))]
            size = math.prod(size for size, used in zip(shape, differ, strict=True) if used)
            return "+".join(np.array(list(self._mesh))[differ]) or "?", size if coordinates else 1
        groups = replica_groups(op.attribute("replica_groups") or "", op.attributes, self._devices.size)
        group = groups[0]
        if len(group) == 1:
            return "", 1
        coordinates = np.stack(np.unravel_index(np.asarray(group), self._devices.shape), axis=1)
        differ = [len(set(column)) > 1 for column in coordinates.T]
        whole = math.prod(size for size, used in zip(self._devices.shape, differ, strict=True) if used)
        names = "+".join(name for name, used in zip(self._mesh, differ, strict=True) if used)
        return names if whole == len(group) else f"part of {names}", len(group)


def replica_groups(text: str, attributes: str, num_devices: int) -> list[list[int]]:
    """Parses the device groups of a collective, from any of XLA's three forms.

    `{{0,1},{2,3}}` lists them; `[2,4]<=[4,2]T(1,0)` reshapes and transposes an iota; `mesh['a'=2,'b'=4] {'b'}` names
    axes of a mesh, whose devices may be in another order, `device_ids=([4,2]T(1,0))`. An empty list is one group of all
    devices.

    Returns:
      Device numbers by group.
    """
    if text.startswith("mesh["):
        order = rf"(?:, device_ids=\(({_ORDER}|[\d,]+)\))?"
        match = re.search(rf"replica_groups=mesh\[([^\]]*)\]{order} \{{([^}}]*)\}}", attributes)
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match.group(1))}
        along = set(re.findall(r"'(\w+)'", match.group(3)))
        devices = np.arange(num_devices) if match.group(2) is None else _device_list(match.group(2))
        devices = devices.reshape(tuple(sizes.values()))
        kept = [axis for axis, name in enumerate(sizes) if name not in along]
        moved = [axis for axis, name in enumerate(sizes) if name in along]
        size = math.prod(devices.shape[axis] for axis in moved)
        return devices.transpose(kept + moved).reshape(-1, size).tolist()
    if text.startswith("["):
        match = re.search(rf"replica_groups=\[([\d,]+)\]<=({_ORDER})", attributes)
        return _device_list(match.group(2)).reshape(_numbers(match.group(1))).tolist()
    listed = [_numbers(group) for group in re.findall(r"\{([\d,\s]+)\}", text)]
    return listed or [list(range(num_devices))]


def _device_list(text: str) -> np.ndarray:
    """Parses device numbers: `[4,2]T(1,0)`, an iota reshaped and transposed, or `3,1,0,2`."""
    if not text.startswith("["):
        return np.array(_numbers(text))
    shape, order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    devices = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return (devices.transpose(_numbers(order)) if order else devices).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def dot_flops(op: Instruction, computation: Computation) -> float:
    """Returns 2 * elements of the result * elements summed over."""
    left = _operand(op.operands[0], computation).shapes[0]
    summed = _numbers(op.attribute("lhs_contracting_dims") or "")
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
    """Returns the FLOPs of a fused attention kernel (splash on TPU, cuDNN's), over all pairs; None for anything else.

    Such kernels are opaque to XLA, and their masks are data, so causal attention counts twice its actual arithmetic.
    """
    shapes = [_operand(name, computation).shapes[0] for name in op.operands]
    if "__cudnn$fmha" in op.attributes:
        products = 5 if "Backward" in (op.attribute("custom_call_target") or "") else 2
        scores = re.search(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]', op.attributes)
        return 2.0 * products * math.prod(_numbers(scores.group(1))) * shapes[0].dims[-1] if scores else None
    products = next((count for name, count in _SPLASH.items() if op.name.startswith(name)), None)
    if products is None:
        return None
    queries, keys = [shape.dims for shape in shapes if shape.dtype in ("bf16", "f32") and len(shape.dims) > 2][:2]
    return 2.0 * products * math.prod(queries) * keys[-2]


def _gemm_flops(op: Instruction, computation: Computation) -> float:
    left = _operand(op.operands[0], computation).shapes[0]
    match = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', op.attributes)
    summed = _numbers(match.group(1)) if match else [len(left.dims) - 1]
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
        users = list(_through_bitcasts(parameter, inner))
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


def _through_bitcasts(op: Instruction, computation: Computation) -> Iterator[tuple[str, Instruction]]:
    """Yields (name, user) for every use of a value, also under the names of its bitcasts."""
    for user in computation.users(op.name):
        if user.opcode == "bitcast":
            yield from _through_bitcasts(user, computation)
        else:
            yield op.name, user
