"""Search for the fastest settings that fit: mesh, rematerialisation and batch size."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jax_speechlm.parallel.chips import GIB, Topology
from jax_speechlm.parallel.mesh import MESH_AXES, MeshShape
from jax_speechlm.planning.ahead_of_time import CompilerError
from jax_speechlm.planning.plan import RunPlan, make_plan
from jax_speechlm.recipes.experiment import Experiment

REMATS = ("none", "dots", "full")
_STATE_BYTES = 16  # a float32 parameter, its gradient and Adam's moments


class Trial(NamedTuple):
    """One candidate and its result.

    Attributes:
      settings: its settings as command line options.
      experiment: the whole experiment.
      plan: of its longest batch shape; None if it was not compiled.
      seconds_per_unit: estimated chip-seconds for a second of audio or a token; infinite if it does not fit.
      why: the reason for its exclusion, or empty.
    """

    settings: str
    experiment: Experiment
    plan: RunPlan | None
    seconds_per_unit: float
    why: str


def fit(
    experiment: Experiment,
    topology: Topology,
    *,
    vocab_size: int | None = None,
    max_compiles: int = 12,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Trial]:
    """Tries meshes, then remat policies, then batch sizes, each with the best of the previous stage.

    Only the longest batch shape of a candidate is compiled: it needs most memory and most time.

    Args:
      max_compiles: most candidates to compile.

    Returns:
      Every candidate, the fastest that fits first, candidates that do not fit last.
    """
    trials: dict[str, Trial] = {}
    params, compiles = None, 0

    def attempt(candidate: Experiment) -> Trial:
        nonlocal params, compiles
        name = _settings(candidate)
        if name in trials:
            return trials[name]
        if params is not None and (why := _too_large(params, candidate, topology)):
            trials[name] = Trial(name, candidate, None, math.inf, why)
            return trials[name]
        if compiles >= max_compiles:
            return Trial(name, candidate, None, math.inf, "not tried: --max-compiles reached")
        progress(f"trying {name}")
        try:
            plan = make_plan(candidate, topology, vocab_size=vocab_size, longest_only=True)
        except (ValueError, CompilerError) as error:
            compiles += isinstance(error, CompilerError)
            trials[name] = Trial(name, candidate, None, math.inf, str(error))
            return trials[name]
        params = plan.params
        compiles += 1
        step, estimate = plan.steps[0], plan.estimates[0]
        if plan.fits:
            amount = step.shape.rows * step.shape.length
            trials[name] = Trial(name, candidate, plan, estimate.seconds * topology.num_devices / amount, "")
        else:
            need = "more than there is" if math.isinf(step.memory.total) else f"{step.memory.total / GIB:.1f} GiB"
            why = f"needs {need} of {topology.spec.usable / GIB:.0f} GiB a chip"
            trials[name] = Trial(name, candidate, plan, math.inf, why)
        return trials[name]

    best = attempt(experiment)
    for candidates in (_meshes, _remats, _batches):
        for candidate in candidates(best.experiment, topology):
            best = min(best, attempt(candidate), key=lambda trial: trial.seconds_per_unit)
    return sorted(trials.values(), key=lambda trial: trial.seconds_per_unit)


def _meshes(experiment: Experiment, topology: Topology) -> Iterator[Experiment]:
    per_slice, host = topology.devices_per_slice, topology.spec.node
    for axis, size in (("tensor", 1), ("tensor", 2), ("tensor", 4), ("tensor", 8), ("sequence", 2), ("sequence", 4)):
        if size > host or per_slice % size:
            continue
        spread = per_slice // size
        for fsdp in sorted({spread, 64, 16, 4, 1} & set(range(1, spread + 1)), reverse=True):
            if spread % fsdp == 0:
                sizes = {"replica": topology.slices, "data": spread // fsdp, "fsdp": fsdp, axis: size}
                yield experiment.replace(mesh=MeshShape(**sizes))


def _remats(experiment: Experiment, topology: Topology) -> Iterator[Experiment]:
    del topology
    for remat in REMATS:
        yield experiment.replace(model=experiment.model.replace(remat=remat))


def _batches(experiment: Experiment, topology: Topology) -> Iterator[Experiment]:
    del topology
    data = experiment.data
    for factor in (2.0, 0.5, 4.0, 0.25):
        yield experiment.replace(data=data.scaled(factor))


def _too_large(params: int, experiment: Experiment, topology: Topology) -> str:
    """Returns why the state alone cannot fit, or nothing. Parameters are at best spread evenly over fsdp and tensor."""
    spread = experiment.mesh.fsdp * experiment.mesh.tensor
    state = params * _STATE_BYTES / spread
    if state <= topology.spec.usable:
        return ""
    return f"parameters, gradients and Adam alone need {state / GIB:.0f} of {topology.spec.usable / GIB:.0f} GiB a chip"


def _settings(experiment: Experiment) -> str:
    mesh = experiment.mesh
    axes = " ".join(f"--mesh.{axis} {getattr(mesh, axis)}" for axis in MESH_AXES)
    sizes = (
        f"--data.{name} {size if isinstance(size, int) else f'{size:g}'}"
        for name, size in experiment.data.sizes.items()
    )
    return f"{axes} --model.remat {experiment.model.remat} {' '.join(sizes)}"
