"""One mesh and one table: logical axis names -> mesh axes. Everything about sharding derives from here."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import numpy as np
import pydantic
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from jax_speechlm.core.config import Config
from jax_speechlm.parallel import hardware

Tree = dict[str, Any]  # a nested dict

MESH_AXES = ("replica", "data", "fsdp", "sequence", "tensor")

BATCH_AXES = ("replica", "data", "fsdp")
"""The mesh axes that a batch's rows are spread over."""

TOKEN_AXES = (*BATCH_AXES, "sequence")
"""The mesh axes that a batch's tokens or frames are spread over: by rows, and by time within a row."""

RULES: dict[str | None, str | None] = {
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    None: None,
}
"""Logical axis -> mesh axis for parameters. A name that is not listed here ("layers", ...) is replicated."""


class MeshShape(Config):
    """How many devices along each axis of the mesh; `data` takes what the others leave over where it is -1."""

    replica: pydantic.PositiveInt = 1
    data: int = pydantic.Field(-1, ge=-1)
    fsdp: pydantic.PositiveInt = 1
    sequence: pydantic.PositiveInt = 1
    tensor: pydantic.PositiveInt = 1


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices (or of those given) with axes `MESH_AXES`.

    Raises:
      ValueError: the product of the axes is not the number of devices, or `sequence` x `tensor` spans hosts: each host
        reads rows of its own, and the devices along these axes work on the same rows.
      DeviceError: JAX finds no device of the platform that was asked for.
    """
    devices = hardware.devices() if devices is None else devices
    sizes = [getattr(shape, axis) for axis in MESH_AXES]
    same_rows = shape.sequence * shape.tensor
    if shape.data == -1:
        sizes[MESH_AXES.index("data")] = len(devices) // (shape.replica * shape.fsdp * same_rows)
    if prod(sizes) != len(devices):
        named = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise ValueError(f"a mesh of {named} does not use exactly the {len(devices)} devices there are; set mesh.*")
    per_host = len(devices) // _num_hosts(devices)
    if per_host % same_rows:
        raise ValueError(
            f"mesh.sequence={shape.sequence} x mesh.tensor={shape.tensor} must divide the {per_host} devices of a host"
        )
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _num_hosts(devices: Sequence[jax.Device]) -> int:
    return len({device.process_index for device in devices})


def partition_spec(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Where an array with these logical axes lies. A dimension that its mesh axis does not divide is replicated."""
    spec: list[str | None] = []
    for name, size in zip(axes, shape, strict=True):
        axis = RULES.get(name)
        usable = axis is not None and axis not in spec and size % mesh.shape[axis] == 0
        spec.append(axis if usable else None)
    return PartitionSpec(*spec)


def param_shardings(mesh: Mesh, axes: Tree, shapes: Tree) -> Tree:
    """The sharding of each parameter, as a dict of the same structure."""
    return jax.tree.map(
        lambda shape, names: NamedSharding(mesh, partition_spec(mesh, names, shape.shape)), shapes, axes
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `BATCH_AXES`, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch_dim(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """x with its rows on the devices that have the batch's rows, and everything else of a row whole.

    No value changes, and nothing happens where no mesh is set.
    """
    return constrain(x, 1)


def shard_batch_and_time(x: Shaped[Array, "batch time ..."]) -> Shaped[Array, "batch time ..."]:
    """The same, and each row's time spread over "sequence" where that divides it.

    What the residual stream passes through, so that the compiler gathers a layer's parameters over "fsdp", as is meant.
    Left alone it spreads hidden states over that axis as parameters are, and sums activations over devices, which for a
    batch worth training on are many times larger.
    """
    return constrain(x, 2)


def constrain(x: Array, dims: int) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % prod(mesh.shape[axis] for axis in BATCH_AXES):
        return x
    divides = dims > 1 and x.shape[1] % mesh.shape["sequence"] == 0
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *(["sequence"] if divides else [])))


def platform() -> str:
    """What a function is compiled for, "cpu", "gpu" or "tpu": the mesh in force, whose devices need not be here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else {"cuda": "gpu"}.get(device.platform, device.platform)


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this host's rows of a global batch on its devices.

    Args:
      batch: arrays [rows of this host, ...]; the hosts' rows, in host order, make the global batch.
    """
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
