"""Set-up of every test: the CPU platform with 8 virtual devices, and jaxtyping's shape checks on."""

import ctypes
import gc
import os
import tempfile
from pathlib import Path

from tests import quick_xla

os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu or a CUDA plugin may be installed; the tests are written for the CPU
os.environ["XLA_FLAGS"] = quick_xla.on_devices(8)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Many tests build the same small programs: compile each once a session, whichever worker needs it first.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jax-cache-"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="user-cache-")  # of plans: none from another day
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jax_speechlm", "beartype.beartype")

# The same draws every time: a change fails for what it did. `--hypothesis-profile=anew` looks further.
# No deadlines: the first draw compiles, and the machine may be busy.
hypothesis.settings.register_profile("anew", deadline=None)
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_configure() -> None:
    """Sets the reference of MFU on CPUs: timing a matmul takes seconds of every run, compiled as tests are."""
    from jax_speechlm.parallel import hardware

    hardware.matmul_flops = _matmul_flops


def _matmul_flops() -> float:
    return 1e11


@pytest.fixture(autouse=True, scope="module")
def _free_programs_after_a_module():
    """Frees compiled programs past 1.5 GB: a worker that runs a thousand tests would keep more."""
    yield
    _free_programs(gigabytes=1.5, maps=20_000)


@pytest.fixture(autouse=True)
def _free_programs_after_a_test():
    """Frees them within a module that compiles very many, such as that of the objectives' contracts."""
    yield
    _free_programs(gigabytes=4, maps=30_000)


def _free_programs(gigabytes: float, maps: int) -> None:
    """Frees compiled programs past so much memory or so many memory maps.

    Linux gives a process 65,530 maps; past that XLA crashes.
    """
    pages, held = Path("/proc/self/statm"), Path("/proc/self/maps")
    if not pages.exists():
        return
    resident = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    # Maps come with memory, and counting them takes milliseconds.
    if resident > gigabytes or (resident > 1 and held.read_bytes().count(b"\n") > maps):
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else the C library keeps what was freed
