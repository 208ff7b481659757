"""Flags with which XLA compiles in half the time or less: programs of tests run for an instant."""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # an unknown flag is fatal, and 0.12 knows it no more
    FLAGS += " --xla_cpu_use_fusion_emitters=false"


def on_devices(number: int) -> str:
    """Those and so many virtual devices, as `XLA_FLAGS` takes them."""
    return f"{FLAGS} --xla_force_host_platform_device_count={number}"
