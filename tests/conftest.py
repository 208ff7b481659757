"""Set-up of every test: the CPU platform with 8 virtual devices, and jaxtyping's shape checks on."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu or a CUDA plugin may be installed; the tests are written for the CPU
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from jaxtyping import install_import_hook

install_import_hook("jax_speechlm", "beartype.beartype")
