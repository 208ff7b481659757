"""What depends on the machine: how fast its devices could be, and where it keeps compiled programs."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp

# Dense bf16 FLOP/s of one chip, from the makers' data sheets: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and
# NVIDIA's A100, H100, H200 and B200 data sheets, figures without sparsity.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(devices: list[jax.Device]) -> float:
    """FLOP/s of the devices together; for kinds without a table entry (CPUs) a float32 matmul is timed."""
    kind = devices[0].device_kind
    # The longest match: "TPU v5 lite" also begins with "TPU v5".
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if kind.startswith(name):
            return PEAK_FLOPS[name] * len(devices)
    return matmul_flops()


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

    They lie in `$JAX_COMPILATION_CACHE_DIR`, or else in `jax_speechlm/compiled` of the user's cache directory.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "jax_speechlm" / "compiled"))
