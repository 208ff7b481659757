"""`jax-speechlm plan`."""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # compiling for a TPU must not search for one on this machine

from jax_speechlm.cli.experiment import ExperimentOptions
from jax_speechlm.planning.run import plan_shipped, run_plan
from jax_speechlm.recipes import registry


def plan(
    experiment: ExperimentOptions,
    config: str,
    slices: int | None = None,
    all: bool = False,
    fit: bool = False,
    max_compiles: int = 12,
    longest_only: bool = False,
    price: float | None = None,
    vocab_size: int | None = None,
    out: Path | None = None,
) -> int:
    """Compiles a run's train step for accelerators that are not here. Exit status 3: does not fit.

    In its tables, best is a bound that no step goes below: compute, memory and links at their peaks, all at once.
    Estimate is the compiled program in its order, with the compiler's cycles and the collectives that nothing hides.

    The accelerators are --topology v5e-256, v5p-512, v6e-64, h100-64, ... Every setting of the experiment is an option.

    Args:
      config: a shipped experiment, or a .py or .json file.
      slices: TPU slices that the network joins; sets mesh.replica.
      all: plan every shipped experiment; prints a table in Markdown.
      fit: search mesh, remat and batch for the fastest that fits, by the estimate.
      max_compiles: of --fit.
      longest_only: compile the longest batch shape alone.
      price: of one chip for one hour, in any currency.
      vocab_size: where the tokenizer is not here; by default from its folder's name.
      out: folder of plan.html and plan.json. By default plans/CONFIG-TOPOLOGY.
    """
    if all:
        print(plan_shipped(out or Path("plans"), lambda text: print(text, file=sys.stderr)))
        return 0
    return run_plan(
        experiment,
        slices,
        out or Path("plans") / f"{registry.run_name(config)}-{experiment.topology}",
        longest_only=longest_only,
        search=fit,
        max_compiles=max_compiles,
        price=price,
        vocab_size=vocab_size,
    )
