"""Set-up of every test: the CPU platform with 8 virtual devices, and jaxtyping's shape checks on."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu or a CUDA plugin may be installed; the tests are written for the CPU
# 8 devices to shard over; programs run for an instant, so LLVM need not optimise them
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Many tests build the same small programs: compile each once a session, whichever worker needs it first.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jax-cache-"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="user-cache-")  # of plans: none from another day
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from jaxtyping import install_import_hook

install_import_hook("jax_speechlm", "beartype.beartype")
