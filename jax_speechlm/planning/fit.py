"""Search for the fastest settings that fit: mesh, rematerialisation and batch size."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from jax_speechlm.core.config import Config
from jax_speechlm.nn.functional import Remat
from jax_speechlm.parallel.chips import GIB, Topology
from jax_speechlm.parallel.mesh import MESH_AXES, MeshShape
from jax_speechlm.planning.ahead_of_time import CompilerError
from jax_speechlm.planning.plan import RunPlan, make_plan
from jax_speechlm.recipes.experiment import Experiment

REMATS: tuple[Remat, ...] = ("none", "dots", "full")
AnyConfig = TypeVar("AnyConfig", bound=Config)
_STATE_BYTES = 16  # a float32 parameter, its gradient and Adam's moments
_SHARERS = {"tensor": (1, 2, 4, 8, 16), "sequence": (2, 4, 8)}
"""Devices that share rows, by the axis that they are along."""


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
    """Tries remat policies, then meshes, the policies again on the best mesh, then batch sizes.

    Each stage starts from the best of the previous ones. Only the longest batch shape of a candidate is compiled: it
    needs most memory and most time. Where `max_compiles` is too few for all, stages leave two to each later one.

    Args:
      max_compiles: most candidates to compile.

    Returns:
      Every candidate, the fastest that fits first, candidates that do not fit last.
    """
    trials: dict[str, Trial] = {}
    params, compiles, allowed = None, 0, max_compiles

    def attempt(candidate: Experiment) -> Trial:
        nonlocal params, compiles
        name = _settings(candidate)
        if name in trials:
            return trials[name]
        if params is not None and (why := _too_large(params, candidate, topology)):
            trials[name] = Trial(name, candidate, None, math.inf, why)
            return trials[name]
        if compiles >= allowed:
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
    stages = (_remats, _meshes, _remats, _batches)
    for stage, candidates in enumerate(stages, 1):
        later = 2 * (len(stages) - stage) if stage > 1 else 0
        allowed = min(max(max_compiles - later, compiles + 1), max_compiles)
        for candidate in candidates(best.experiment, topology):
            best = min(best, attempt(candidate), key=lambda trial: trial.seconds_per_unit)
    return sorted(trials.values(), key=lambda trial: trial.seconds_per_unit)


def _meshes(experiment: Experiment, topology: Topology) -> Iterator[Experiment]:
    """Yields the experiment on every mesh whose devices that share rows are in one slice of TPUs or one node."""
    per_slice = topology.devices_per_slice
    linked = per_slice if topology.spec.platform == "tpu" else topology.spec.node
    for axis, size in ((axis, size) for axis, sizes in _SHARERS.items() for size in sizes):
        if size > linked or per_slice % size:
            continue
        spread = per_slice // size
        for fsdp in sorted({spread, 64, 16, 4, 1} & set(range(1, spread + 1)), reverse=True):
            if spread % fsdp == 0:
                sizes = {"replica": topology.slices, "data": spread // fsdp, "fsdp": fsdp, axis: size}
                yield experiment.replace(mesh=MeshShape(**sizes))


def _remats(experiment: Experiment, topology: Topology) -> Iterator[Experiment]:
    del topology
    for remat in REMATS:
        yield experiment.replace(model=with_remat(experiment.model, remat))


def with_remat(config: AnyConfig, remat: Remat) -> AnyConfig:
    """Returns the config of a model with a remat policy for all stacks of layers in it."""
    parts = {name: getattr(config, name) for name in type(config).model_fields}
    changes = {name: with_remat(part, remat) for name, part in parts.items() if isinstance(part, Config)}
    return config.replace(**changes, **({"remat": remat} if "remat" in parts else {}))


def _remat_options(config: Config, path: str = "--model") -> Iterator[str]:
    for name in type(config).model_fields:
        part = getattr(config, name)
        if name == "remat":
            yield f"{path}.remat {part}"
        elif isinstance(part, Config):
            yield from _remat_options(part, f"{path}.{name}")


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
    return " ".join((axes, *_remat_options(experiment.model), *sizes))
