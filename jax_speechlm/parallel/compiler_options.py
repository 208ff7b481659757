"""The compiler options of the train step for each chip, used by plans and runs alike."""

import os
from collections.abc import Mapping
from types import MappingProxyType

from jax_speechlm.parallel.chips import CHIPS, find_chip

Options = Mapping[str, bool | int | str]

COLLECTIVES_ON_SPARSE_CORES = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
}
"""Collectives run beside the TensorCores' products instead of between them."""

NO_COLLECTIVE_MATMUL = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}
"""Parameters are gathered whole, instead of piece by piece with a part of the product after each, whose sums pass
through main memory."""

OPTIONS: Mapping[str, Options] = MappingProxyType(
    {
        "v5e": NO_COLLECTIVE_MATMUL,
        "v5p": COLLECTIVES_ON_SPARSE_CORES,
        "v6e": NO_COLLECTIVE_MATMUL | COLLECTIVES_ON_SPARSE_CORES,
    }
)
"""Options by chip, a key of `CHIPS`; the compiler's defaults for all others. `benchmarks/compiler_options.py` compiles
candidates ahead of time; an option is kept where the estimate of a step is shorter with it (docs/scaling.md)."""


def options_for(device_kind: str) -> dict[str, bool | int | str]:
    """Returns the compiler options for devices that JAX calls `device_kind`; none for CPUs and unknown devices.

    Flags that the user sets in `XLA_FLAGS` or `LIBTPU_INIT_ARGS` are left out, so that they have effect.
    """
    chip = find_chip(device_kind)
    name = next((name for name, spec in CHIPS.items() if spec == chip), None)
    flags = [os.environ.get(variable, "").split() for variable in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    set_by_user = {flag.lstrip("-").partition("=")[0] for each in flags for flag in each}
    return {option: value for option, value in OPTIONS.get(name, {}).items() if option not in set_by_user}
