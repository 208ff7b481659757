"""Flags with which XLA compiles faster: programs of tests run for an instant, so LLVM need not optimise them."""

import importlib.metadata

LLVM = "--xla_backend_optimization_level=0"
# The older way of making code for the CPU: half the time. Only this version of XLA has the choice; others end the
# process at a flag that they do not know.
KNOWN = importlib.metadata.version("jaxlib").startswith("0.10.")
OLDER = "--xla_cpu_use_fusion_emitters=false" if KNOWN else ""


def on_devices(number: int, *, partitions_alike: bool = False) -> str:
    """Those and so many virtual devices, as `XLA_FLAGS` takes them.

    Args:
      partitions_alike: programs give the same bits on a device of each of two processes as on two devices of one.
        The older way rounds otherwise there.
    """
    return " ".join((LLVM, *([OLDER] * (not partitions_alike)), f"--xla_force_host_platform_device_count={number}"))
