"""Ahead-of-time compilation of a run's train step for devices that are not present, by the devices' own compiler."""

import contextlib
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.core.errors import UserError
from jax_speechlm.objectives.base import Objective
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.chips import Topology
from jax_speechlm.planning import compiled, costs, hlo
from jax_speechlm.planning.compiled import Compiled, Memory
from jax_speechlm.planning.loops import trip_count
from jax_speechlm.planning.workload import Shape, Workload
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training.runs import resolve
from jax_speechlm.training.state import Trainer, make_trainer

_UNIT = {"K": 2**10, "M": 2**20, "G": 2**30}


class Step(NamedTuple):
    """One compiled batch shape.

    Attributes:
      shape: of the batch.
      memory: per device.
      program: its instructions; None if compilation ran out of memory.
      costs: of one step, per device; None without a program.
      model_flops: of one step over all devices by the model alone: padding included, recomputation excluded.
      compile_seconds: duration of the compilation when it was run.
    """

    shape: Shape
    memory: Memory
    program: hlo.Module | None
    costs: costs.Costs | None
    model_flops: float
    compile_seconds: float


class PlanningError(UserError):
    """The target cannot be planned for, or a run cannot fit; the message names the remedy."""


# Autotuning needs a real device. Without it matrix products must be cuBLAS's: Triton has no tiles for some lengths.
_UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


class CompilerError(PlanningError):
    """The compiler failed on a program for another reason than memory."""


def devices_of(topology: Topology) -> Sequence[jax.Device]:
    """Returns descriptions of a topology's devices, which need not exist.

    Raises:
      PlanningError: the compiler for the platform is not installed.
    """
    from jax.experimental import topologies

    spec = topology.spec
    if spec.platform == "cpu":
        return _cpus(topology.num_devices)
    try:
        if spec.platform == "tpu":
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not query cloud metadata
            os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # uses no chip: several plans may run at a time
            name = f"{topology.chip}:{'x'.join(map(str, topology.shape))}"
            options = {"num_slices": topology.slices} if topology.slices > 1 else {}
            if topology.chip == "v4":
                options["chip_config_name"] = "megacore"  # one device a chip, as on a v4 machine
            with _quiet():  # it warns that it finds no TPU machine
                return topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices
        from jax_speechlm.planning import gpu

        return gpu.devices(topology)
    except (RuntimeError, NotImplementedError, ModuleNotFoundError) as error:
        package = "libtpu" if spec.platform == "tpu" else "'jax[cuda13]'"
        raise PlanningError(
            f"compiling for {topology.name} needs its compiler, which needs no such device: pip install {package} "
            f"({str(error).splitlines()[0]})"
        ) from error


def _cpus(count: int) -> Sequence[jax.Device]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise PlanningError(
            f"cpu-{count} needs {count} devices, this process has {len(devices)}: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


def in_mesh_order(topology: Topology, devices: Sequence[jax.Device], mesh: Mesh) -> Topology:
    """Returns a topology whose devices, `devices_of` it, are numbered as in the programs of a mesh."""
    number = {device.id: number for number, device in enumerate(devices)}
    return topology._replace(order=tuple(number[device.id] for device in mesh.devices.flat))


class Compiler:
    """Compiles the train step of an experiment on a mesh of devices that need not exist.

    Args:
      options: of the compiler, such as `{"xla_tpu_scoped_vmem_limit_kib": 98304}`; by default a run's own.

    Attributes:
      trainer: its functions and the abstract state.
      mesh: of the devices.
    """

    def __init__(
        self,
        experiment: Experiment,
        load: Workload,
        devices: Sequence[jax.Device],
        options: Mapping[str, Any] | None = None,
    ):
        experiment = resolve(experiment)
        self._experiment, self._load = experiment, load
        self._objective: Objective = experiment.build(load.tokenizer)
        self.mesh: Mesh = meshes.make_mesh(experiment.mesh, devices)
        self.trainer: Trainer = make_trainer(
            self._objective,
            experiment.optimizer,
            experiment.num_steps,
            experiment.seed,
            self.mesh,
            compiler_options=options,
        )

    def lower(self, shape: Shape) -> jax.stages.Lowered:
        """Lowers the step for one batch shape to the input of the compiler."""
        batch = self._load.abstract(shape, self._experiment)
        rows = meshes.batch_sharding(self.mesh)
        batch = {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows) for name, array in batch.items()}
        with jax.set_mesh(self.mesh):
            return self.trainer.step.lower(self.trainer.shapes, batch)

    def memory_needed(self, shape: Shape) -> float:
        """Returns the bytes per device of the step for one batch shape, compiled as in training."""
        try:
            stats = self.lower(shape).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _needed(str(error))
        return float(_total(stats))

    def compile(self, shape: Shape) -> Step:
        """Compiles the step for one batch shape, or reads the program from the cache, and counts its costs.

        Raises:
          ValueError: the rows do not divide among the devices.
          CompilerError: the compiler failed for another reason than memory.
        """
        meshes.require_whole_shards(self.mesh, [shape.rows])
        lowered = self.lower(shape)
        name = compiled.fingerprint(lowered, list(self.mesh.devices.flat), self.trainer.compiler_options)
        result = compiled.recall(name)
        if result is None:
            result = self._compiled(lowered)
            compiled.keep(name, result)
        program = None if result.text is None else hlo.parse(result.text)
        counted = program and costs.count(program, dict(self.mesh.shape))
        return Step(shape, result.memory, program, counted, self._model_flops(shape), result.seconds)

    def _compiled(self, lowered: jax.stages.Lowered) -> Compiled:
        state = self.trainer.shapes
        params = _bytes_per_device(state.params)
        optimizer = _bytes_per_device((state.opt_state, state.ema))
        began = time.perf_counter()
        try:
            with _quiet():
                program, text = compile_lowered(lowered, self.mesh.devices.flat[0].platform)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                reason = str(error).splitlines()[0]
                raise CompilerError(f"the compiler failed, not for lack of memory: {reason}") from error
            needed = _needed(str(error))
            memory = Memory(params, optimizer, 0, 0, needed, 0, params + optimizer + needed)
            return Compiled(memory, None, time.perf_counter() - began)
        seconds = time.perf_counter() - began
        stats = program.memory_analysis()
        memory = Memory(
            params=params,
            optimizer=optimizer,
            batch=stats.argument_size_in_bytes - params - optimizer,
            activations=kept_for_backward(hlo.parse(text)),
            temporary=stats.temp_size_in_bytes,
            program=stats.generated_code_size_in_bytes,
            total=_total(stats),
        )
        return Compiled(memory, text, seconds)

    def _model_flops(self, shape: Shape) -> float:
        return 3 * self._objective.flops(
            self._load.abstract(shape, self._experiment)
        )  # a backward pass costs two forward passes


def compile_lowered(lowered: jax.stages.Lowered, platform: str) -> tuple[jax.stages.Compiled, str]:
    """Returns the program for a platform, and its instructions as text."""
    if platform != "tpu":
        program = lowered.compile(compiler_options=_UNTUNED if platform == "gpu" else {})
        return program, program.as_text()
    # `as_text` of a TPU program goes through a format that loses some asynchronous operations and then fails
    # (libtpu 0.0.52, large vocabularies); the compiler's own dump does not.
    with tempfile.TemporaryDirectory() as folder:
        program = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        (text,) = Path(folder).glob("*after_codegen.txt")
        return program, text.read_text()


def kept_for_backward(module: hlo.Module) -> float:
    """Returns the bytes of the arrays that the forward scan over the layers saves for the backward pass."""
    entry, total = module.computations[module.entry], 0.0
    for loop in entry:
        if loop.opcode != "while" or "transpose(" in loop.attributes or "jvp" not in loop.attributes:
            continue
        trips = trip_count(module, loop, entry)
        body = module.called(loop, "body")
        root = body.instructions[body.root]
        if root.opcode != "tuple" or len(root.operands) != len(loop.shapes):
            continue
        for index, (name, shape) in enumerate(zip(root.operands, loop.shapes, strict=True)):
            value = body.instructions[name]
            passed_on = value.opcode == "get-tuple-element" and value.attribute("index") == str(index)
            if shape.in_hbm and not passed_on and shape.dims and shape.dims[0] == trips:
                total += shape.bytes
    return total


def _total(stats) -> int:
    """Returns the peak bytes of a program. Outputs may alias arguments."""
    new_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + new_outputs + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes


def _bytes_per_device(tree) -> float:
    return float(
        sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize if leaf.ndim else 4
            for leaf in jax.tree.leaves(tree))
    )  # fmt: skip


def _needed(message: str) -> float:
    """Returns the bytes that a program needs, from the compiler's out-of-memory message; infinite if it has none."""
    match = re.search(r"\(?([\d.]+)([KMG])\)? (?:exceeds|of [\d.]+[KMG] hbm)", message)
    return float(match.group(1)) * _UNIT[match.group(2)] if match else math.inf


@contextlib.contextmanager
def _quiet():
    """Redirects stderr to /dev/null: the TPU compiler prints messages there that its exceptions repeat."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
