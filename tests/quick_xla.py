"""Flags with which XLA compiles faster: programs of tests run for an instant, so LLVM need not optimise them."""


def on_devices(number: int) -> str:
    """Those and so many virtual devices, as `XLA_FLAGS` takes them."""
    return f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={number}"
