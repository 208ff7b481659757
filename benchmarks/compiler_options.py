"""Estimates a step under candidates of compiler options, ahead of time, for `parallel/compiler_options.py`.

    python benchmarks/compiler_options.py [TOPOLOGY or RECIPE ...]

Compiles the 8 B language model of `scaling/` for each topology (fully sharded parameters, one row of 4,096 tokens a
device), or a recipe's longest batch shape, with the compiler's defaults and with each candidate: one to three minutes
for TPUs, fifteen seconds for H100; the compiled programs are kept. Prints a table in Markdown. Needs the extra `plan`,
and `cuda` for GPUs.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # compiling for a TPU must not search for one on this machine

from jax_speechlm.parallel.chips import GIB, Topology, topology
from jax_speechlm.parallel.compiler_options import COLLECTIVES_ON_SPARSE_CORES, NO_COLLECTIVE_MATMUL
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.planning.ahead_of_time import PlanningError
from jax_speechlm.planning.fit import with_remat
from jax_speechlm.planning.plan import RunPlan, fits, make_plan
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment

TARGETS = ("v5e-16", "v6e-8", "scaling/lm_8b_v5p512", "scaling/lm_8b_h100x64")

_PIPELINED = {
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
}

Candidates = dict[str, Mapping[str, Any]]

_TPU: Candidates = {"collective matmul off": NO_COLLECTIVE_MATMUL}
_WITH_SPARSE_CORES: Candidates = _TPU | {
    "collectives on SparseCores": COLLECTIVES_ON_SPARSE_CORES,
    "both": NO_COLLECTIVE_MATMUL | COLLECTIVES_ON_SPARSE_CORES,
}
_GPU: Candidates = {
    "latency-hiding scheduler": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "pipelined collectives": _PIPELINED,
    "loops unrolled by two": {"xla_gpu_enable_while_loop_double_buffering": True},
    "larger combined collectives": {
        "xla_gpu_all_gather_combine_threshold_bytes": 128 * 2**20,
        "xla_gpu_all_reduce_combine_threshold_bytes": 128 * 2**20,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 64 * 2**20,
    },
    "four collectives at a time": {"xla_gpu_experimental_parallel_collective_overlap_limit": 4},
}


def candidates(target: Topology) -> Candidates:
    """Returns the candidates for a topology's chips by name; v5e has no SparseCores."""
    if target.spec.platform == "cuda":
        return _GPU
    return _TPU if target.chip == "v5e" else _WITH_SPARSE_CORES


def language_model(target: Topology) -> Experiment:
    """Returns the 8 B language model with fully sharded parameters, recomputed layers and a row a device."""
    experiment, devices = registry.load("scaling/lm_8b_v5p512"), target.num_devices
    return experiment.replace(
        model=with_remat(experiment.model, "full"),
        data=experiment.data.replace(tokens_per_batch=devices * experiment.data.context),
        mesh=MeshShape(data=1, fsdp=devices),
        topology=target.name,
    )


def sweep(name: str, vocab_size: int | None) -> None:
    """Prints the estimates of a step under the compiler's defaults and each candidate.

    Args:
      name: of a recipe, or of a topology for the language model.
    """
    experiment = registry.load(name) if "/" in name else language_model(topology(name))
    target = topology(experiment.topology)
    print(f"\n`{name}`\n\n| options | GiB a chip | estimate, ms | change |\n|---|---:|---:|---:|")
    defaults = None
    for label, options in {"the compiler's defaults": {}, **candidates(target)}.items():
        try:
            plan = make_plan(experiment, target, vocab_size=vocab_size, longest_only=True, compiler_options=options)
        except PlanningError as error:
            print(f"| {label} | | {error} | |", flush=True)
            continue
        defaults = defaults or _seconds(plan)
        print(f"| {label} | {_row(plan, defaults)} |", flush=True)


def _seconds(plan: RunPlan) -> float | None:
    return plan.estimates[-1].seconds if plan.estimates[-1] else None


def _row(plan: RunPlan, defaults: float | None) -> str:
    step, seconds = plan.steps[-1], _seconds(plan)
    gib = f"{step.memory.total / GIB:.1f}"
    if seconds is None or not fits(step, plan.topology):
        return f"{gib} | does not fit | "
    return f"{gib} | {seconds * 1e3:,.0f} | {seconds / (defaults or seconds) - 1:+.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=TARGETS)
    parser.add_argument("--vocab-size", type=int, help="as of `jax-speechlm plan`")
    arguments = parser.parse_args()
    for name in arguments.targets:
        sweep(name, arguments.vocab_size)


if __name__ == "__main__":
    main()
