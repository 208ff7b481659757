"""Collectives of a compiled program: their devices, and the bytes that they move."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jax_speechlm.planning.hlo import Computation, Instruction, numbers

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

_ORDER = r"\[[\d,]+\](?:T\([\d,]+\))?"  # an iota, reshaped and transposed


class Collective(NamedTuple):
    """Collectives of one kind along one part of the mesh, over one run of the program.

    Attributes:
      kind: "all-gather", ...
      axes: mesh axes along which the devices of a group differ, "data" or "data+fsdp"; "?" for groups of another form.
      size: devices of a group.
      times: number of runs.
      sent: bytes that each device sends, by the ring algorithms.
      devices: the first group; of a "collective-permute" a chain, each device of which sends to the next.
    """

    kind: str
    axes: str
    size: int
    times: float
    sent: float
    devices: tuple[int, ...]


def read(op: Instruction, computation: Computation, mesh: Mapping[str, int], fused: bool) -> Collective | None:
    """Reads a collective, or the start of an asynchronous one; None if its groups have a single device.

    Args:
      computation: that it is in.
      mesh: sizes of the axes, in order.
      fused: whether the computation is a fusion's. In one, an all-reduce of which only a slice is used is how the TPU
        compiler writes a reduce-scatter.
    """
    kind = op.opcode.removesuffix("-start")
    devices, axes, size = _chain(op, mesh) if kind == "collective-permute" else _group(op, mesh)
    if size == 1:
        return None
    into = sum(computation.instructions[name].bytes for name in op.operands if name in computation.instructions)
    out = op.bytes - into if op.opcode.endswith("-start") and kind != "all-reduce" else op.bytes
    if fused and kind == "all-reduce" and _only_slices(op, computation):
        kind = "reduce-scatter"
    share = (size - 1) / size
    sent = {"all-reduce": 2 * into * share, "all-gather": out * share, "collective-permute": into}
    return Collective(kind, axes, size, 1, sent.get(kind, into * share), devices)


def between_slices(op: Instruction, computation: Computation, mesh: Mapping[str, int]) -> Collective:
    """Reads a TPU program's transfer over the network: a `send` to the host of a named collective."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', op.attributes).group(1).lower().replace("_", "-")
    size = mesh.get("replica", 1)
    share = (2 if kind == "all-reduce" else 1) * (size - 1) / size
    stride = math.prod(mesh.values()) // size
    sent = computation.instructions[op.operands[0]].bytes * share
    return Collective(kind, "replica", size, 1, sent, tuple(range(0, stride * size, stride)))


def _only_slices(op: Instruction, computation: Computation) -> bool:
    users = [user for _, user in computation.uses(op.name)]
    return bool(users) and all(user.opcode == "dynamic-slice" for user in users)


def _chain(op: Instruction, mesh: Mapping[str, int]) -> tuple[tuple[int, ...], str, int]:
    """Returns (devices in the order in which they send to each other, axes along which they differ, their number)."""
    pairs = re.findall(r"\{(\d+),(\d+)\}", op.attribute("source_target_pairs") or "")
    after = {int(source): int(target) for source, target in pairs if source != target}
    if not after:
        return (), "", 1
    first = min(set(after) - set(after.values()), default=min(after))
    devices = [first]
    while (device := after.get(devices[-1])) is not None:
        devices.append(device)
        if device == first:
            break
    every = np.array(list(after.items()))
    coordinates = np.stack(np.unravel_index(every, tuple(mesh.values())))
    used = [bool(np.ptp(axis, axis=1).any()) for axis in coordinates]
    sizes = [size for size, differs in zip(mesh.values(), used, strict=True) if differs]
    return tuple(devices), "+".join(name for name, differs in zip(mesh, used, strict=True) if differs), math.prod(sizes)


def _group(op: Instruction, mesh: Mapping[str, int]) -> tuple[tuple[int, ...], str, int]:
    """Returns (devices of the first group, mesh axes along which they differ, their number)."""
    shape = tuple(mesh.values())
    group = replica_groups(op.attribute("replica_groups") or "", op.attributes, math.prod(shape))[0]
    coordinates = np.stack(np.unravel_index(np.asarray(group), shape), axis=1)
    used = [len(set(column)) > 1 for column in coordinates.T]
    whole = math.prod(size for size, differs in zip(shape, used, strict=True) if differs)
    names = "+".join(name for name, differs in zip(mesh, used, strict=True) if differs)
    return tuple(group), names if whole == len(group) else f"part of {names}", len(group)


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
        return _device_list(match.group(2)).reshape(numbers(match.group(1))).tolist()
    listed = [numbers(group) for group in re.findall(r"\{([\d,\s]+)\}", text)]
    return listed or [list(range(num_devices))]


def _device_list(text: str) -> np.ndarray:
    """Parses device numbers: `[4,2]T(1,0)`, an iota reshaped and transposed, or `3,1,0,2`."""
    if not text.startswith("["):
        return np.array(numbers(text))
    shape, order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    devices = np.arange(math.prod(numbers(shape))).reshape(numbers(shape))
    return (devices.transpose(numbers(order)) if order else devices).reshape(-1)
