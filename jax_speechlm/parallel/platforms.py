"""Settings of JAX, made before it starts and without importing it: its platforms, and its cache of programs."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_TPU_VARIABLES = ("TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_GOOGLE_PCI_VENDOR = "0x1ae0"


def skip_absent_tpu() -> None:
    """Keeps JAX from initialising a TPU if libtpu, the TPU compiler, is installed but no TPU is attached.

    JAX would try, print the TPU runtime's errors, and fall back to another platform. An explicit JAX_PLATFORMS, or
    JAX's own setting of that name, is kept.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None or tpu_is_attached():
        return
    _set("jax_platforms", "cuda,cpu" if _has_cuda() else "cpu")


def cache_compilations() -> None:
    """Caches compiled programs on disk, so that later runs of the same model start in seconds.

    The folder is `$JAX_COMPILATION_CACHE_DIR`, or `default_compilation_cache`; for some runs that of the run
    (`compilation_cache.compilation_cache_of`).
    """
    _set("jax_compilation_cache_dir", str(default_compilation_cache()))


def default_compilation_cache() -> Path:
    """Returns the user's folder of compiled programs: `compiled` in `data_pipelines.core.paths.cache_dir`."""
    from data_pipelines.core.paths import cache_dir  # late: it imports fsspec, which `jax-speechlm --help` needs not

    return cache_dir() / "compiled"


def _set(name: str, value: str) -> None:
    """Sets a setting of JAX, unless it is set: in the environment, which JAX reads at its import, or in its config."""
    if "jax" not in sys.modules:
        os.environ.setdefault(name.upper(), value)
        return
    import jax

    if getattr(jax.config, name) is None:
        jax.config.update(name, value)


def tpu_is_attached(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether device files, the PCI bus or the variables of a TPU host show a TPU."""
    if any(environment.get(name) for name in _TPU_VARIABLES):
        return True
    if any(root.glob("dev/accel*")) or any(root.glob("dev/vfio/[0-9]*")):
        return True
    vendors = root.glob("sys/bus/pci/devices/*/vendor")
    devices = [vendor.parent for vendor in vendors if vendor.read_text().strip() == _GOOGLE_PCI_VENDOR]
    # Google's virtual machines have disks and network cards of this vendor too, PCI classes 01 and 02.
    return any(not (device / "class").read_text().startswith(("0x01", "0x02")) for device in devices)


def _has_cuda() -> bool:
    plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return plugin and any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))
