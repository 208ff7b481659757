"""`jax-speechlm plan`: memory needs, a bound and an estimate of the speed of a run, before renting the hardware."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jax_speechlm.parallel.chips import Topology
from jax_speechlm.planning import ahead_of_time, roofline
from jax_speechlm.planning.ahead_of_time import Compiler, PlanningError, Step
from jax_speechlm.planning.roofline import Estimate, Rate
from jax_speechlm.planning.workload import Shape, Workload, workload
from jax_speechlm.recipes.experiment import Experiment


class RunPlan(NamedTuple):
    """Memory and speed of an experiment on a topology.

    Attributes:
      experiment: the experiment.
      topology: the target.
      mesh: devices along each axis.
      params: number of parameters of the model.
      load: the batches.
      steps: one for each compiled batch shape.
      estimates: bound and estimate of their time; None for a step that does not fit.
      rate: the average over an epoch; None if a step does not fit or not every shape was compiled.
    """

    experiment: Experiment
    topology: Topology
    mesh: dict[str, int]
    params: int
    load: Workload
    steps: tuple[Step, ...]
    estimates: tuple[Estimate | None, ...]
    rate: Rate | None

    @property
    def fits(self) -> bool:
        """Returns whether every compiled step fits into the devices' main memory."""
        return all(fits(step, self.topology) for step in self.steps)

    @property
    def fullest(self) -> Step:
        """Returns the step that needs most memory."""
        return max(self.steps, key=lambda step: step.memory.total)


def fits(step: Step, topology: Topology) -> bool:
    """Returns whether a step fits into the main memory of every device."""
    return step.costs is not None and step.memory.total <= topology.spec.usable


def make_plan(
    experiment: Experiment,
    topology: Topology,
    *,
    vocab_size: int | None = None,
    longest_only: bool = False,
    compiler_options: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> RunPlan:
    """Compiles an experiment's train step for a topology, batch shape by batch shape.

    Args:
      vocab_size: ids of the tokenizer, if the experiment's own is not on this machine; see `workload`.
      longest_only: compile only the shape with the longest rows, which usually needs most memory.
      compiler_options: instead of a run's own, which are `parallel.compiler_options`.
      progress: called with a description of each compilation.

    Returns:
      The plan.

    Raises:
      PlanningError: the compiler for the topology is not installed.
      ValueError: the mesh does not use the topology's devices, or batches do not divide among them.
    """
    load = workload(experiment, vocab_size)
    devices = ahead_of_time.devices_of(topology)
    if len(devices) != topology.num_devices:
        raise PlanningError(f"{topology.name}: the compiler knows {len(devices)} devices, not {topology.num_devices}")
    compiler = Compiler(experiment, load, devices, compiler_options)
    shapes = load.shapes[-1:] if longest_only else load.shapes
    steps = []
    for count, shape in enumerate(shapes, 1):
        progress(f"compiling for {topology.name}, shape {count} of {len(shapes)}: {describe_shape(shape, load)}")
        steps.append(compiler.compile(shape))
    target = ahead_of_time.in_mesh_order(topology, devices, compiler.mesh)
    return _with_rates(experiment, target, compiler, load, steps)


def _with_rates(
    experiment: Experiment, topology: Topology, compiler: Compiler, load: Workload, steps: Sequence[Step]
) -> RunPlan:
    mesh = dict(compiler.mesh.shape)
    estimates = [roofline.estimate(step, topology, mesh) if step.costs else None for step in steps]
    complete = all(estimates) and len(steps) == len(load.shapes)
    rate = roofline.average(steps, estimates, load, topology) if complete else None
    params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(compiler.trainer.shapes.params))
    return RunPlan(experiment, topology, mesh, params, load, tuple(steps), tuple(estimates), rate)


def describe_shape(shape: Shape, load: Workload) -> str:
    """Returns a batch shape as text, such as "7 x 6.80 s"."""
    length = f"{shape.length} tokens" if shape.unit == "tokens" else f"{shape.length / load.sample_rate:.2f} s"
    return f"{shape.stream} {shape.rows} x {length}".strip()
