"""The options of `jax-speechlm plan`, and what it does with them."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jax_speechlm import configs
from jax_speechlm.experiment import Experiment
from jax_speechlm.parallel.chips import topology as find_topology
from jax_speechlm.planning import report
from jax_speechlm.planning.fit import Trial, fit
from jax_speechlm.planning.plan import Plan, make_plan


def run_plan(
    experiment: Experiment,
    topology: str | None,
    slices: int | None,
    out: Path,
    *,
    longest_only: bool = False,
    search: bool = False,
    max_compiles: int = 12,
    price: float | None = None,
    vocab_size: int = 1024,
) -> int:
    """Plans, prints, writes `plan.json` and `plan.html`. Returns the exit status: 0 where it fits, 3 where not."""
    name = topology or experiment.topology
    if name is None:
        raise ValueError("say what to plan for: --topology v5e-256, v5p-512, h100-64, ...; this experiment names none")
    target = find_topology(name, slices)
    if slices is not None:
        experiment = experiment.replace(mesh=experiment.mesh.replace(replica=target.slices))
    console = Console(highlight=False)
    say = Console(stderr=True, highlight=False).log
    if search:
        trials = fit(experiment, target, vocab_size=vocab_size, max_compiles=max_compiles, progress=say)
        console.print(_trials(trials))
        if trials[0].why:
            console.print("None of them fits: take more chips or a smaller model.")
            return 3
        experiment = trials[0].experiment
        console.print(f"The fastest that fits: {trials[0].settings}")
    plan = make_plan(experiment, target, vocab_size=vocab_size, longest_only=longest_only, progress=say)
    report.show(plan, price, console)
    report.save(plan, out, price)
    console.print(f"{out / 'plan.html'}, {out / 'plan.json'}")
    return 0 if plan.fits else 3


def _trials(trials: Sequence[Trial]) -> Table:
    table = Table(title="What was tried, at the longest batch shape", title_justify="left")
    for column in ("settings", "ms a step", "MFU", "bound by", "GiB a chip", "of the fastest's time", ""):
        table.add_column(column, justify="left" if column in ("settings", "") else "right")
    for trial in trials:
        if trial.plan is None or trial.why:
            table.add_row(trial.settings, "", "", "", "", "", trial.why)
            continue
        estimate = trial.plan.estimates[0]
        ratio = trial.seconds_per_unit / trials[0].seconds_per_unit
        table.add_row(
            trial.settings,
            f"{estimate.best * 1e3:.1f}",
            f"{estimate.mfu:.0%}",
            estimate.bound,
            f"{trial.plan.fullest.memory.total / 2**30:.1f}",
            f"{ratio:.2f}",
            "",
        )
    return table


def shipped_plans(out: Path, longest_only: bool = True) -> list[tuple[str, Plan]]:
    """A plan of every shipped experiment that names a target, for the table in the docs."""
    plans = []
    for name in configs.names():
        experiment = configs.load(name)
        if experiment.topology is None:
            continue
        plan = make_plan(experiment, find_topology(experiment.topology, None), longest_only=longest_only)
        report.save(plan, out / name)
        plans.append((name, plan))
    return plans
