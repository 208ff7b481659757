"""What accelerators can do, by their makers' figures, and how they are put together: the one table of both."""

import difflib
import math
import re
from typing import NamedTuple

GIB, GB, TERA = 2**30, 1e9, 1e12


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      platform: "tpu", "cuda" or "cpu".
      kind: how JAX's `device_kind` begins.
      flops: dense bf16 FLOP/s.
      hbm: bytes of main memory.
      hbm_bandwidth: bytes/s of main memory.
      link_bandwidth: bytes/s that a device sends along one mesh axis inside a slice or node, by a ring in both
        directions.
      network_bandwidth: bytes/s that a device sends to other slices or nodes.
      node: devices that share a host (TPU) or the fast links (GPU).
    """

    platform: str
    kind: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    node: int


# TPU: peak, HBM and its bandwidth from cloud.google.com/tpu/docs (one page a version); the bandwidth of a ring in both
# directions along a torus axis and of the network from "How to Scale Your Model" (Austin et al. 2025,
# jax-ml.github.io/scaling-book), chapter 2.
# GPU: NVIDIA's data sheets for A100 80GB SXM, H100 SXM, H200 SXM and DGX B200, dense figures; NVLink in one direction;
# the network at one adapter a GPU as in DGX systems: 200 Gb/s for A100, 400 Gb/s for the others.
# CPU: no maker's figures but a yardstick, for no `device_kind` begins so: float32 products of the two cores that
# docs/benchmarks.md was measured on, a small laptop's memory, one channel of DDR4-2666 (JEDEC JESD79-4), a gigabit.
CHIPS = {
    "v4": Chip("tpu", "TPU v4", 275 * TERA, 32 * GIB, 1228 * GB, 90 * GB, 6.25 * GB, 4),
    "v5e": Chip("tpu", "TPU v5 lite", 197 * TERA, 16 * GIB, 819 * GB, 90 * GB, 3.125 * GB, 4),
    "v5p": Chip("tpu", "TPU v5", 459 * TERA, 95 * GIB, 2765 * GB, 180 * GB, 6.25 * GB, 4),
    "v6e": Chip("tpu", "TPU v6 lite", 918 * TERA, 32 * GIB, 1640 * GB, 180 * GB, 12.5 * GB, 4),
    "a100": Chip("cuda", "NVIDIA A100", 312 * TERA, 80 * GB, 2039 * GB, 300 * GB, 25 * GB, 8),
    "h100": Chip("cuda", "NVIDIA H100", 989 * TERA, 80 * GB, 3350 * GB, 450 * GB, 50 * GB, 8),
    "h200": Chip("cuda", "NVIDIA H200", 989 * TERA, 141 * GB, 4800 * GB, 450 * GB, 50 * GB, 8),
    "b200": Chip("cuda", "NVIDIA B200", 2250 * TERA, 180 * GB, 8000 * GB, 900 * GB, 50 * GB, 8),
    "cpu": Chip("cpu", "a nominal CPU", 0.2 * TERA, 8 * GIB, 21.3 * GB, 21.3 * GB, 0.125 * GB, 64),
}

# Slices of the two-dimensional torus of v5e and v6e, by chips.
_PLANES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}


class Topology(NamedTuple):
    """What a job runs on.

    Attributes:
      name: as the cloud sells it: "v5e-256", "v5p-512", "h100-64"; "cpu-1" for a machine without accelerators.
      chip: its key in `CHIPS`.
      shape: chips along each axis of a slice's torus, or (nodes, devices of a node).
      slices: TPU slices that the network joins.
    """

    name: str
    chip: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def spec(self) -> Chip:
        return CHIPS[self.chip]

    @property
    def devices_per_slice(self) -> int:
        return math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        return self.devices_per_slice * self.slices


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a device by what JAX calls it, or None for CPUs and unknown ones."""
    # The longest match: "TPU v5 lite" also begins with "TPU v5".
    found = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(found, key=lambda chip: len(chip.kind), default=None)


def topology(name: str, slices: int | None = None) -> Topology:
    """A topology by its name: "v5e-256", or "2xv5p-512" for two slices; `slices` says the same outright.

    The number behind v4 and v5p counts TensorCores, of which a chip has two, as Google's names do; behind all others it
    counts chips or GPUs, or the devices that a CPU is cut into.

    Raises:
      ValueError: the name is unknown, or nothing of that size is sold; the message says what is.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*)-(\d+)", name.lower())
    chip, number = (match.group(2), int(match.group(3))) if match else (name, 0)
    slices = slices or int((match and match.group(1)) or 1)
    if chip not in CHIPS or not number:
        near = difflib.get_close_matches(chip, CHIPS, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]}-{number or 16}?" if near else ""
        raise ValueError(f"no topology is named {name!r}.{hint} Names are CHIP-NUMBER, of {', '.join(CHIPS)}")
    if slices > 1 and CHIPS[chip].platform != "tpu":
        raise ValueError(
            f"{name}: only TPUs have slices; give the number of all devices as one, {chip}-{number * slices}"
        )
    return Topology(f"{chip}-{number}", chip, _shape(name, chip, number), slices)


def _shape(name: str, chip: str, number: int) -> tuple[int, ...]:
    spec = CHIPS[chip]
    if spec.platform != "tpu":
        if number > spec.node and number % spec.node:
            raise ValueError(f"{name}: nodes have {spec.node} devices; take a multiple of it")
        return (max(number // spec.node, 1), min(number, spec.node))
    if chip in ("v5e", "v6e"):
        if number not in _PLANES:
            raise ValueError(f"{name}: slices of {chip} have {', '.join(map(str, _PLANES))} chips")
        return tuple(int(side) for side in _PLANES[number].split("x"))
    chips = number // 2
    if number < 8 or chips & (chips - 1) or number % 2:
        raise ValueError(f"{name}: {chip} is counted in TensorCores, 8, 16, 32, ...; two of them are a chip")
    exponent = chips.bit_length() - 1
    sides = sorted(2 ** (exponent // 3 + (place < exponent % 3)) for place in range(3))
    return (2, 2, 1) if chips == 4 else tuple(sides)
