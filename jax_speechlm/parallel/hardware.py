"""The devices of this machine and their peak performance."""

import functools
import os
import time

import jax
import jax.numpy as jnp

from data_pipelines.core.errors import UserError
from jax_speechlm.parallel.chips import find_chip


class DeviceError(UserError):
    """JAX finds no device of the requested platform; the message names the platform and the remedy."""


def devices() -> list[jax.Device]:
    """Returns the devices of all processes, of the platform that JAX_PLATFORMS names or JAX chooses.

    Raises:
      DeviceError: the platform has no device.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX raises AssertionError for a plugin without a device
        requested = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms or ""
        reason = (str(error).strip().splitlines() or ["no such device"])[0]
        raise DeviceError(
            f"JAX_PLATFORMS={requested}: JAX cannot use that platform here ({reason}). Unset JAX_PLATFORMS to use what "
            "this machine has, or set it to cpu; GPUs need pip install -e '.[cuda]', TPUs pip install -e '.[tpu]'."
        ) from error


def peak_flops(devices: list[jax.Device]) -> float:
    """Returns the dense bf16 FLOP/s of all devices together.

    A device of unknown kind is measured with a float32 matmul. The CPU devices of a process share its cores.
    """
    if chip := find_chip(devices[0].device_kind):
        return chip.flops * len(devices)
    on_cpu = devices[0].platform == "cpu"
    return matmul_flops() * len({device.process_index if on_cpu else device.id for device in devices})


@functools.cache
def matmul_flops(size: int = 1536, repeats: int = 3) -> float:
    """Measures the FLOP/s of the fastest of `repeats` float32 [size, size] matmuls on the default device."""
    a = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        multiply(a, a).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
