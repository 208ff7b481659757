"""Compares the plans of `recipes/validation` with the published durations of a step.

    python benchmarks/plan_validation.py [RECIPE ...]

Compiles each recipe for its topology (from seconds to eight minutes on a core; the compiled programs are kept) and
prints a table in Markdown. Needs the extra `plan`, and `cuda` for the H100.
"""

import importlib
import os
import sys
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # compiling for a TPU must not search for one on this machine

from jax_speechlm.parallel.chips import topology
from jax_speechlm.planning.ahead_of_time import PlanningError
from jax_speechlm.planning.plan import make_plan
from jax_speechlm.recipes import registry


class Comparison(NamedTuple):
    """Seconds of a step: as published, the plan's bound and its estimate."""

    measured: float
    best: float
    estimate: float

    @property
    def error(self) -> float:
        """Relative error of the estimate."""
        return self.estimate / self.measured - 1


def recipes() -> list[str]:
    """Returns the names of the recipes that reproduce published runs."""
    return [name for name in registry.names() if name.startswith("validation/")]


def compare(name: str) -> Comparison:
    """Plans a recipe and compares it with the published duration.

    Raises:
      PlanningError: the compiler is not installed, or the step does not fit.
    """
    experiment = registry.load(name)
    recipe = importlib.import_module(f"jax_speechlm.recipes.{name.replace('/', '.')}")
    options = getattr(recipe, "COMPILER_OPTIONS", {})  # the published run's, not those that a run here would have
    (estimate,) = make_plan(experiment, topology(experiment.topology), compiler_options=options).estimates
    if estimate is None:
        raise PlanningError(f"{name} does not fit into the memory of {experiment.topology}")
    return Comparison(recipe.SECONDS, estimate.best, estimate.seconds)


def main() -> None:
    print("| recipe | published, s | best, s | estimate, s | error of the estimate |\n|---|---:|---:|---:|---:|")
    for name in sys.argv[1:] or recipes():
        try:
            comparison = compare(name)
        except PlanningError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        print(
            f"| `{name}` | {comparison.measured:.2f} | {comparison.best:.2f} | {comparison.estimate:.2f} "
            f"| {comparison.error:+.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
