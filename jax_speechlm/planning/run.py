"""The command `jax-speechlm plan`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_pipelines.core.errors import DataError
from jax_speechlm.parallel.chips import GIB
from jax_speechlm.parallel.chips import topology as find_topology
from jax_speechlm.planning import report
from jax_speechlm.planning.ahead_of_time import PlanningError
from jax_speechlm.planning.fit import Trial, fit
from jax_speechlm.planning.plan import RunPlan, make_plan
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment


def run_plan(
    experiment: Experiment,
    slices: int | None,
    out: Path,
    *,
    longest_only: bool = False,
    search: bool = False,
    max_compiles: int = 12,
    price: float | None = None,
    vocab_size: int | None = None,
) -> int:
    """Plans, prints, writes `plan.json` and `plan.html`. Returns the exit status: 0 if the run fits, otherwise 3."""
    if experiment.topology is None:
        raise ValueError("this experiment names no topology: add --topology v5e-256, v5p-512, h100-64, ...")
    target = find_topology(experiment.topology, slices)
    if slices is not None:
        experiment = experiment.replace(mesh=experiment.mesh.replace(replica=target.slices))
    console = Console(highlight=False)
    progress = Console(stderr=True, highlight=False).log
    if search:
        trials = fit(experiment, target, vocab_size=vocab_size, max_compiles=max_compiles, progress=progress)
        console.print(_trials(trials))
        if trials[0].why:
            console.print("No candidate fits: use more chips or a smaller model.")
            return 3
        experiment = trials[0].experiment
        console.print(f"The fastest that fits: {trials[0].settings}")
    plan = make_plan(experiment, target, vocab_size=vocab_size, longest_only=longest_only, progress=progress)
    report.show(plan, price, console)
    report.save(plan, out, price)
    console.print(f"{out / 'plan.html'}, {out / 'plan.json'}")
    return 0 if plan.fits else 3


def _trials(trials: Sequence[Trial]) -> Table:
    table = Table(title="Candidates, at the longest batch shape", title_justify="left")
    for column in ("settings", "estimated ms", "MFU", "best ms", "GiB a chip", "of the fastest's time", ""):
        table.add_column(column, justify="left" if column in ("settings", "") else "right")
    for trial in trials:
        if trial.plan is None or trial.why:
            table.add_row(trial.settings, "", "", "", "", "", trial.why)
            continue
        estimate = trial.plan.estimates[0]
        ratio = trial.seconds_per_unit / trials[0].seconds_per_unit
        table.add_row(
            trial.settings,
            f"{estimate.seconds * 1e3:.1f}",
            f"{estimate.mfu:.0%}",
            f"{estimate.best * 1e3:.1f} ({estimate.bound})",
            f"{trial.plan.fullest.memory.total / GIB:.1f}",
            f"{ratio:.2f}",
            "",
        )
    return table


def plan_shipped(out: Path, progress: Callable[[str], None]) -> str:
    """Plans every shipped experiment that names a target, at its longest batch shape.

    Those of `validation/` are left out: benchmarks/plan_validation.py plans them, with the published runs' compiler
    options.

    Returns:
      A table in Markdown.
    """
    lines = [
        "| experiment | target | mesh | longest shape | GiB a chip | best, ms | estimate, ms | MFU | an hour |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in registry.names():
        experiment = registry.load(name)
        if experiment.topology is None or name.startswith("validation/"):
            continue
        target = find_topology(experiment.topology)
        try:
            plan = make_plan(
                experiment, target, longest_only=True, progress=lambda line, name=name: progress(f"{name}: {line}")
            )
        except (PlanningError, DataError) as error:
            progress(f"{name}: left out: {error}")
            continue
        report.save(plan, out / registry.run_name(name))
        lines.append(_row(name, experiment.topology, plan))
    return "\n".join(lines)


def _row(name: str, target: str, plan: RunPlan) -> str:
    step, estimate = plan.steps[-1], plan.estimates[-1]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "1"
    start = f"| `{name}` | {target} | {mesh} | {report.describe_shape(step.shape, plan.load)} "
    memory = f"| {step.memory.total / GIB:.1f} of {plan.topology.spec.usable / GIB:.0f} "
    if estimate is None or not plan.fits:
        return f"{start}{memory}| **does not fit** | | | |"
    amount = step.shape.rows * step.shape.length / estimate.seconds
    is_audio = plan.load.unit == "samples"
    hour = f"{amount / plan.load.sample_rate:,.0f} h of audio" if is_audio else f"{amount * 3.6e-6:,.2f} G tokens"
    times = f"| {estimate.best * 1e3:,.0f} ({estimate.bound}) | {estimate.seconds * 1e3:,.0f} | {estimate.mfu:.0%} "
    return f"{start}{memory}{times}| {hour} |"
