"""The device mesh and the table from logical axis names to mesh axes, from which all shardings derive."""

from collections.abc import Iterable, Sequence
from math import gcd, prod

import jax
import numpy as np
import pydantic
from jax.experimental import mesh_utils
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

    On TPUs the axes follow those of the slice's torus as far as their sizes allow, the last ones first. Between slices,
    and between nodes of GPUs, lie the first axes. Processes of one node may share rows.

    Raises:
      ValueError: the product of the axes is not the number of devices, or `sequence` x `tensor` spans nodes or slices.
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
    nodes = _nodes(devices)
    arranged = _arranged(sizes, nodes)
    if any(len({_node(device) for device in group}) > 1 for group in arranged.reshape(-1, same_rows)):
        smallest = min(map(len, nodes))
        kind = "slice" if devices[0].platform == "tpu" else "node"
        raise ValueError(
            f"mesh.sequence={shape.sequence} x mesh.tensor={shape.tensor} must divide the {smallest} devices of "
            f"a {kind}"
        )
    mesh = Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    groups = set(_row_shards(mesh).values())
    if len({len(group) for group in groups}) > 1 or sum(map(len, groups)) != len(arranged.reshape(-1, same_rows)):
        raise ValueError(
            f"mesh.sequence={shape.sequence} x mesh.tensor={shape.tensor}: processes would share a part of their rows "
            "only; choose sizes that divide the devices of a process, or are multiples of them"
        )
    return mesh


def _node(device: jax.Device) -> int:
    """Returns the number of a device's node, or slice of TPUs."""
    if device.platform == "gpu" and device.client.runtime_type == "compile_only_runtime":  # described, for a plan
        return device.process_index
    return getattr(device, "slice_index", 0)  # JAX tells nodes apart by the boot id of their kernel


def _nodes(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    by_node: dict[int, list[jax.Device]] = {}
    for device in devices:  # launchers may number the processes of a node one after the other, or of all nodes in turn
        by_node.setdefault(_node(device), []).append(device)
    return [by_node[node] for node in sorted(by_node)]


def _arranged(sizes: list[int], nodes: list[list[jax.Device]]) -> np.ndarray:
    """Returns the devices in the shape of the mesh, so that neighbours along an axis are near each other."""
    devices = [device for node in nodes for device in node]
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(sizes)
    if len(nodes) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    across, left = [], len(nodes)
    for size in sizes:
        across.append(gcd(size, left))
        left //= across[-1]
    within = [size // slices for size, slices in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def _row_shards(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """Returns for each process the numbers of the shards of a batch, of `BATCH_AXES`, that its devices have."""
    shards: dict[int, set[int]] = {}
    for number, group in enumerate(mesh.devices.reshape(prod(mesh.shape[axis] for axis in BATCH_AXES), -1)):
        for device in group:
            shards.setdefault(device.process_index, set()).add(number)
    return {process: tuple(sorted(numbers)) for process, numbers in shards.items()}


def row_group() -> tuple[int, int]:
    """Returns the number of this process's group in the current mesh, and how many groups there are.

    The processes of a group share the rows of a batch, because `sequence` or `tensor` extends over them: each of them
    reads the same rows. Without a mesh every process is a group.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.process_index(), jax.process_count()
    shards = _row_shards(mesh)
    groups = sorted(set(shards.values()))
    return groups.index(shards[jax.process_index()]), len(groups)


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


def require_whole_shards(mesh: Mesh, batch_sizes: Iterable[int]) -> None:
    """Checks that batches of these numbers of rows divide among the data shards of a mesh.

    Raises:
      ValueError: one does not; the message gives the remedy.
    """
    shards = prod(mesh.shape[axis] for axis in BATCH_AXES)
    for rows in batch_sizes:
        if rows % shards:
            raise ValueError(
                f"a batch of {rows} rows does not divide among the {shards} data shards of the mesh: set "
                f"--data.batch-multiple {shards} for speech, or a multiple of {shards} rows per batch for text"
            )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over `BATCH_AXES`, other dimensions whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch_dim(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """Constrains x to the sharding of a batch: rows over `BATCH_AXES`, the rest whole; identity without a mesh."""
    return _constrain(x)


def shard_batch_and_time(x: Shaped[Array, "batch time ..."]) -> Shaped[Array, "batch time ..."]:
    """Constrains x like `shard_batch_dim`, with time sharded over "sequence" if that divides it.

    Applied to the residual stream, it makes the compiler gather a layer's parameters over "fsdp". Without it the
    compiler shards hidden states over that axis as parameters are, and reduces activations over devices, which for
    usual batches are many times larger than parameters.
    """
    return _constrain(x, "sequence")


def shard_residual(x: Shaped[Array, "batch time ..."]) -> Shaped[Array, "batch time ..."]:
    """Constrains a residual stream like `shard_batch_and_time`, with time sharded over "tensor" too if that divides it.

    Between the pairs of linear maps whose inner width is sharded over "tensor", each device then keeps and normalises
    its part of time only (Korthikanti et al. 2022, section 4.2). `gather_residual` leads into such a pair, and
    `scatter_residual` out of it. Where "sequence" shards time already, "tensor" does not: the compiler would gather
    whole rows between the two shardings.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return _constrain(x, "sequence", *(("tensor",) if mesh.empty or mesh.shape["sequence"] == 1 else ()))


@jax.custom_vjp
def gather_residual(x: Shaped[Array, "batch time ..."]) -> Shaped[Array, "batch time ..."]:
    """Undoes `shard_residual`'s sharding over "tensor"; the gradient, partial sums, is summed in that sharding."""
    return shard_batch_and_time(x)


@jax.custom_vjp
def scatter_residual(x: Shaped[Array, "batch time ..."]) -> Shaped[Array, "batch time ..."]:
    """Sums x, partial sums over "tensor", in `shard_residual`'s sharding; its gradient is gathered."""
    return shard_residual(x)


# Constraints alone leave gradients as they are, and the compiler then gathers parameters over "tensor" instead.
gather_residual.defvjp(lambda x: (shard_batch_and_time(x), None), lambda _, gradient: (shard_residual(gradient),))
scatter_residual.defvjp(lambda x: (shard_residual(x), None), lambda _, gradient: (shard_batch_and_time(gradient),))


def _constrain(x: Array, *time: str) -> Array:
    """Shards rows over `BATCH_AXES`, and time over as many of the axes `time`, from the first, as divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % prod(mesh.shape[axis] for axis in BATCH_AXES):
        return x
    while time and x.shape[1] % prod(mesh.shape[axis] for axis in time):
        time = time[:-1]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *([time] if time else [])))


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the current mesh, whose devices may be abstract, or of JAX."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else {"cuda": "gpu"}.get(device.platform, device.platform)


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns the global batch of this process's arrays [rows of its group, ...] (see `row_group`).

    The order of the global batch's rows depends on the mesh.
    """
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
