"""The device mesh and the table from logical axis names to mesh axes, from which all shardings derive."""

from collections.abc import Sequence
from math import prod

import jax
import numpy as np
import pydantic
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from jax_speechlm.core.config import Config
from jax_speechlm.core.tree import Tree
from jax_speechlm.parallel import hardware

MESH_AXES = ("replica", "data", "fsdp", "sequence", "tensor")

BATCH_AXES = ("replica", "data", "fsdp")
"""Mesh axes that the rows of a batch are sharded over."""

TOKEN_AXES = (*BATCH_AXES, "sequence")
"""Mesh axes that the tokens or frames of a batch are sharded over: by rows, and by time within a row."""

RULES: dict[str | None, str | None] = {
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    None: None,
}
"""Logical axis -> mesh axis for parameters. Axes that are not listed ("layers", ...) are replicated."""


class MeshShape(Config):
    """Devices along each axis of the mesh; `data` of -1 takes all devices that the other axes leave."""

    replica: pydantic.PositiveInt = 1
    data: int = pydantic.Field(-1, ge=-1)
    fsdp: pydantic.PositiveInt = 1
    sequence: pydantic.PositiveInt = 1
    tensor: pydantic.PositiveInt = 1


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh with axes `MESH_AXES` over `devices`, by default all.

    Raises:
      ValueError: the product of the axes is not the number of devices, or `sequence` x `tensor` spans hosts: each host
        reads its own rows, while the devices along these axes process the same rows.
      DeviceError: JAX finds no device of the requested platform.
    """
    devices = hardware.devices() if devices is None else devices
    sizes = [getattr(shape, axis) for axis in MESH_AXES]
    same_rows = shape.sequence * shape.tensor
    if shape.data == -1:
        sizes[MESH_AXES.index("data")] = len(devices) // (shape.replica * shape.fsdp * same_rows)
    if prod(sizes) != len(devices):
        named = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise ValueError(f"a mesh of {named} does not use exactly the {len(devices)} available devices; set mesh.*")
    per_host = len(devices) // _num_hosts(devices)
    if per_host % same_rows:
        raise ValueError(
            f"mesh.sequence={shape.sequence} x mesh.tensor={shape.tensor} must divide the {per_host} devices of a host"
        )
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _num_hosts(devices: Sequence[jax.Device]) -> int:
    return len({device.process_index for device in devices})


def partition_spec(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Returns the partitioning of an array by logical axes; dimensions not divisible by a mesh axis are replicated."""
    spec: list[str | None] = []
    for name, size in zip(axes, shape, strict=True):
        axis = RULES.get(name)
        usable = axis is not None and axis not in spec and size % mesh.shape[axis] == 0
        spec.append(axis if usable else None)
    return PartitionSpec(*spec)


def param_shardings(mesh: Mesh, axes: Tree, shapes: Tree) -> Tree:
    """Returns the sharding of every parameter, as a dict of the same structure."""
    return jax.tree.map(
        lambda shape, names: NamedSharding(mesh, partition_spec(mesh, names, shape.shape)), shapes, axes
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over `BATCH_AXES`, other dimensions whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch_dim(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """Constrains x to the sharding of a batch: rows over `BATCH_AXES`, the rest whole; identity without a mesh."""
    return _constrain(x, None)


def shard_batch_and_time(x: Shaped[Array, "batch time ..."]) -> Shaped[Array, "batch time ..."]:
    """Constrains x like `shard_batch_dim`, with time sharded over "sequence" if that divides it.

    Applied to the residual stream, it makes the compiler gather a layer's parameters over "fsdp". Without it the
    compiler shards hidden states over that axis as parameters are, and reduces activations over devices, which for
    usual batches are many times larger than parameters.
    """
    return _constrain(x, "sequence")


def _constrain(x: Array, time: str | None) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % prod(mesh.shape[axis] for axis in BATCH_AXES):
        return x
    divides = time and x.shape[1] % mesh.shape[time] == 0
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *([time] if divides else [])))


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the current mesh, whose devices may be abstract, or of JAX."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else {"cuda": "gpu"}.get(device.platform, device.platform)


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns the global batch of this host's arrays [rows of this host, ...]: the rows of all hosts in host order."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
