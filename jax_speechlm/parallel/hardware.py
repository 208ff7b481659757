"""What depends on the machine: how fast its devices could be, and where it keeps compiled programs."""

import time

import jax
import jax.numpy as jnp

from data_pipelines.paths import cache_dir
from jax_speechlm.parallel.chips import find_chip


def peak_flops(devices: list[jax.Device]) -> float:
    """Dense bf16 FLOP/s of the devices together; for kinds that `chips` does not know a float32 matmul is timed."""
    chip = find_chip(devices[0].device_kind)
    return chip.flops * len(devices) if chip else matmul_flops()


def matmul_flops(size: int = 1536, repeats: int = 3) -> float:
    """FLOP/s of the fastest of a few float32 [size, size] matmuls on the default device."""
    a = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        multiply(a, a).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def cache_compilations() -> None:
    """Keeps compiled programs on disk, so that a restart, or the same model again, starts in seconds.

    They lie in `$JAX_COMPILATION_CACHE_DIR`, or else in `compiled` of `data_pipelines.paths.cache_dir`.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
