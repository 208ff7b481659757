"""Specifications of accelerators, from their manufacturers, and topologies built from them."""

import difflib
import math
import os
import re
from typing import NamedTuple

import numpy as np

GIB, GB, TERA = 2**30, 1e9, 1e12


class Chip(NamedTuple):
    """Specification of an accelerator, for each of its devices.

    Attributes:
      platform: "tpu", "cuda" or "cpu".
      kind: prefix of JAX's `device_kind`.
      flops: dense bf16 FLOP/s.
      hbm: bytes of main memory.
      hbm_bandwidth: bytes/s of main memory.
      link_bandwidth: bytes/s that a device sends in both directions of a ring along one axis of a slice's torus, or to
        its node.
      network_bandwidth: bytes/s that a device sends to other slices or nodes.
      node: devices of a host (TPU) or of the group with fast links (GPU).
      clock: cycles/s of a TensorCore.
      cores: devices of a chip.
    """

    platform: str
    kind: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    node: int
    clock: float = 0.0
    cores: int = 1

    @property
    def usable(self) -> float:
        """Bytes of main memory that a program may use."""
        share = _USABLE[self.platform]
        if self.platform == "cuda":
            share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", share))
        return self.hbm * share


# The share of main memory that JAX's allocator gives a program. On GPUs it is JAX's default, which
# XLA_PYTHON_CLIENT_MEM_FRACTION replaces; the CUDA context and NCCL's buffers take the rest (docs.jax.dev, "GPU memory
# allocation"). The TPU compiler reserves about as much as here.
_USABLE = {"tpu": 0.98, "cuda": 0.75, "cpu": 0.98}

# TPU: peak, HBM and its bandwidth from cloud.google.com/tpu/docs (one page a version); a ring along a torus axis and
# the network from "How to Scale Your Model" (Austin et al. 2025, jax-ml.github.io/scaling-book), chapter 2: 0.9 of the
# links' nominal rate, and for TPU7x 0.9 of its page's 100 GB/s a link and direction. The clock is the one at which the
# matrix units (four of 128 x 128 a core, of 256 x 256 from v6e on) reach the peak. TPU7x has no joint program for the
# two cores of a chip: each is a device, with half of the chip's memory and links.
# GPU: NVIDIA's data sheets for A100 80GB SXM, H100 SXM, PCIe and NVL, H200 SXM, DGX B200 and GB200 NVL72, dense
# figures; NVLink in one direction, PCIe 5.0 x16 for the cards; the network at one adapter a GPU as in DGX systems: 200
# Gb/s for A100, 400 Gb/s for the others.
# CPU: nominal figures, whose kind matches no `device_kind`: float32 products of the two cores that docs/benchmarks.md
# was measured on, a small laptop's memory, one channel of DDR4-2666 (JEDEC JESD79-4), a gigabit network.
CHIPS = {
    "v4": Chip("tpu", "TPU v4", 275 * TERA, 32 * GIB, 1228 * GB, 90 * GB, 6.25 * GB, 4, 1.05e9),
    "v5e": Chip("tpu", "TPU v5 lite", 197 * TERA, 16 * GIB, 819 * GB, 90 * GB, 3.125 * GB, 4, 1.5e9),
    "v5p": Chip("tpu", "TPU v5", 459 * TERA, 95 * GIB, 2765 * GB, 180 * GB, 6.25 * GB, 4, 1.75e9),
    "v6e": Chip("tpu", "TPU v6 lite", 918 * TERA, 32 * GIB, 1640 * GB, 180 * GB, 12.5 * GB, 4, 1.75e9),
    "tpu7x": Chip("tpu", "TPU7x", 1153.5 * TERA, 96 * GIB, 3690 * GB, 90 * GB, 6.25 * GB, 8, 2.2e9, 2),
    "a100": Chip("cuda", "NVIDIA A100", 312 * TERA, 80 * GB, 2039 * GB, 300 * GB, 25 * GB, 8),
    "h100": Chip("cuda", "NVIDIA H100", 989 * TERA, 80 * GB, 3350 * GB, 450 * GB, 50 * GB, 8),
    "h100pcie": Chip("cuda", "NVIDIA H100 PCIe", 756 * TERA, 80 * GB, 2000 * GB, 64 * GB, 50 * GB, 8),
    "h100nvl": Chip("cuda", "NVIDIA H100 NVL", 835 * TERA, 94 * GB, 3900 * GB, 64 * GB, 50 * GB, 8),
    "h200": Chip("cuda", "NVIDIA H200", 989 * TERA, 141 * GB, 4800 * GB, 450 * GB, 50 * GB, 8),
    "b200": Chip("cuda", "NVIDIA B200", 2250 * TERA, 180 * GB, 8000 * GB, 900 * GB, 50 * GB, 8),
    "gb200": Chip("cuda", "NVIDIA GB200", 2500 * TERA, 186 * GB, 8000 * GB, 900 * GB, 50 * GB, 72),
    "cpu": Chip("cpu", "a nominal CPU", 0.2 * TERA, 8 * GIB, 21.3 * GB, 21.3 * GB, 0.125 * GB, 64),
}

# Slices of the two-dimensional torus of v5e and v6e, by number of chips.
_PLANE_CHIPS = ("v5e", "v6e")
_PLANES = {math.prod(shape): shape for shape in ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))}


class Topology(NamedTuple):
    """The devices of a job.

    Attributes:
      name: as cloud providers name it: "v5e-256", "v5p-512", "h100-64"; "cpu-1" for a machine without accelerators.
      chip: key in `CHIPS`.
      shape: chips along each axis of a slice's torus, or (nodes, devices per node).
      slices: TPU slices, connected by the network.
      order: the devices in the order of a program's mesh; None for host after host.
    """

    name: str
    chip: str
    shape: tuple[int, ...]
    slices: int = 1
    order: tuple[int, ...] | None = None

    @property
    def spec(self) -> Chip:
        return CHIPS[self.chip]

    @property
    def devices_per_slice(self) -> int:
        return math.prod(self.shape) * self.spec.cores

    @property
    def num_devices(self) -> int:
        return self.devices_per_slice * self.slices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """For each axis of a TPU slice, whether its two ends are linked.

        v5e and v6e have those links only along an axis of 16; the others where all axes are multiples of 4.
        """
        if self.chip in _PLANE_CHIPS:
            return tuple(side == 16 for side in self.shape)
        return (all(side % 4 == 0 for side in self.shape),) * len(self.shape)

    def place(self, device: int) -> tuple[int, ...]:
        """Returns (slice, coordinates in its torus, core) of a TPU, (node, number in it) of any other device.

        Devices are numbered in `order`, which counts them host after host; a TPU host holds 2 x 2 chips.
        """
        device = device if self.order is None else self.order[device]
        if self.spec.platform != "tpu":
            return divmod(device, self.shape[1])
        slice_index, device = divmod(device, self.devices_per_slice)
        device, core = divmod(device, self.spec.cores)
        sides = [min(side, 2) for side in self.shape[:2]] + [1] * (len(self.shape) - 2)
        host, inside = divmod(device, math.prod(sides))
        hosts = [side // at_host for side, at_host in zip(self.shape, sides, strict=True)]
        first, offset = np.unravel_index(host, hosts, order="F"), np.unravel_index(inside, sides, order="F")
        return (slice_index, *(int(a) * side + int(b) for a, b, side in zip(first, offset, sides, strict=True)), core)


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip with JAX's name `device_kind`, or None for CPUs and unknown devices."""
    # The longest match, because "TPU v5 lite" also starts with "TPU v5".
    matches = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(matches, key=lambda chip: len(chip.kind), default=None)


def topology(name: str, slices: int | None = None) -> Topology:
    """Parses the name of a topology, such as "v5e-256", or "2xv5p-512" for two slices.

    As in Google's names, the number after v4, v5p and tpu7x counts TensorCores, of which a chip has two. Other numbers
    count chips, GPUs, or the devices that a CPU is divided into.

    Args:
      slices: number of slices, instead of a prefix of the name.

    Raises:
      ValueError: the name is unknown, or the size is not available; the message lists what is.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*)-(\d+)", name.lower())
    chip, count = (match.group(2), int(match.group(3))) if match else (name, 0)
    slices = slices or int((match and match.group(1)) or 1)
    if chip not in CHIPS or not count:
        near = difflib.get_close_matches(chip, CHIPS, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]}-{count or 16}?" if near else ""
        raise ValueError(f"unknown topology {name!r}.{hint} Names are CHIP-NUMBER, with a chip of {', '.join(CHIPS)}")
    if slices > 1 and CHIPS[chip].platform != "tpu":
        raise ValueError(f"{name}: only TPUs have slices; give the number of all devices, {chip}-{count * slices}")
    return Topology(f"{chip}-{count}", chip, _shape(name, chip, count), slices)


def _shape(name: str, chip: str, count: int) -> tuple[int, ...]:
    spec = CHIPS[chip]
    if spec.platform != "tpu":
        if count > spec.node and count % spec.node:
            raise ValueError(f"{name}: nodes have {spec.node} devices; use a multiple of {spec.node}")
        return (max(count // spec.node, 1), min(count, spec.node))
    if chip in _PLANE_CHIPS:
        if count not in _PLANES:
            raise ValueError(f"{name}: slices of {chip} have {', '.join(map(str, _PLANES))} chips")
        return _PLANES[count]
    chips = count // 2
    if count < 8 or chips & (chips - 1) or count % 2:
        raise ValueError(f"{name}: {chip} is counted in TensorCores, two a chip: use 8, 16, 32, ...")
    exponent = chips.bit_length() - 1
    sides = sorted(2 ** (exponent // 3 + (side < exponent % 3)) for side in range(3))
    return (2, 2, 1) if chips == 4 else tuple(sides)
