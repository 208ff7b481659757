"""Flags with which XLA compiles faster: programs of tests run for an instant."""

import importlib.metadata

UNOPTIMISED = "--xla_backend_optimization_level=0"

PLAIN = UNOPTIMISED
"""Without fusion emitters too: half of the time that is left. Sums are then rounded otherwise in one program than in
another of the same computation; what compares programs to the last bit is compiled with `UNOPTIMISED`."""
if importlib.metadata.version("jaxlib").startswith("0.10."):  # an unknown flag is fatal, and 0.12 knows it no more
    PLAIN += " --xla_cpu_use_fusion_emitters=false"


def on_devices(number: int, flags: str = PLAIN) -> str:
    """Flags and so many virtual devices, as `XLA_FLAGS` takes them."""
    return f"{flags} --xla_force_host_platform_device_count={number}"
