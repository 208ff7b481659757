"""Descriptions of GPUs for XLA's CUDA compiler, which needs none present."""

import os
from collections.abc import Sequence

import jax

from jax_speechlm.parallel.chips import CHIPS, Topology

# Properties that XLA uses for tiling and its cost model. Sources: NVIDIA's architecture white papers (A100,
# H100, Blackwell), the table of technical specifications by compute capability in the CUDA C++ programming guide, and
# for H100 PCIe and GB200 openxla/xla, xla/backends/gpu/target_config/specs.
# (streaming multiprocessors, compute capability, clock in GHz, L2 in MiB, shared memory of a multiprocessor in KiB)
_SPECS = {
    "a100": (108, (8, 0), 1.41, 40, 164),
    "h100": (132, (9, 0), 1.98, 50, 228),
    "h100pcie": (114, (9, 0), 1.755, 50, 228),
    "h100nvl": (132, (9, 0), 1.785, 60, 228),
    "h200": (132, (9, 0), 1.98, 50, 228),
    "b200": (148, (10, 0), 1.965, 126, 228),
    "gb200": (152, (10, 0), 2.062, 129, 228),
}
_BLOCK_RESERVE = 1024  # bytes of shared memory per block that the driver reserves


def devices(topology: Topology) -> Sequence[jax.Device]:
    """Returns descriptions of a topology's GPUs.

    Needs the `cuda` extra, neither a GPU nor a driver.
    """
    from jax.experimental import topologies

    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the check needs a driver
    nodes, per_node = topology.shape
    return topologies.get_topology_desc(
        platform="cuda", target_config=target_config(topology.chip), topology=f"1x{nodes}x{per_node}"
    ).devices


def target_config(chip: str) -> str:
    """Returns a chip as text of XLA's `GpuTargetConfigProto`."""
    cores, (major, minor), clock, cache, shared = _SPECS[chip]
    spec = CHIPS[chip]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared * 1024}
  shared_memory_per_block_optin: {shared * 1024 - _BLOCK_RESERVE}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {64 if chip == "a100" else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(spec.hbm_bandwidth)}
  l2_cache_size: {cache * 2**20}
  clock_rate_ghz: {clock}
  device_memory_size: {int(spec.hbm)}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{spec.kind}"
"""
