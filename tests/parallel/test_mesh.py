"""Names become placements by one table."""

import dataclasses
import importlib.util
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.chips import topology
from jax_speechlm.parallel.mesh import MeshShape, make_mesh, partition_spec, shard_batch
from jax_speechlm.planning.ahead_of_time import devices_of
from jax_speechlm.training.loop import train
from tests.training import tiny


def test_data_takes_the_devices_that_are_left():
    left = {"replica": 1, "data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert dict(make_mesh(MeshShape(fsdp=2, tensor=2)).shape) == left
    assert make_mesh(MeshShape(sequence=4)).shape["data"] == 2


def test_a_mesh_must_use_every_device():
    with pytest.raises(ValueError, match="does not use exactly the 8 available devices"):
        make_mesh(MeshShape(data=3))


def described(nodes, per_process=1, platform="gpu"):
    """Devices of processes, each of the node in the list."""
    return [
        mock.Mock(jax.Device, id=number, process_index=number // per_process, slice_index=node, platform=platform)
        for number, node in enumerate(node for node in nodes for _ in range(per_process))
    ]


@pytest.fixture
def any_mesh(monkeypatch):
    """Replaces JAX's class, which takes real devices only."""
    monkeypatch.setattr(meshes, "Mesh", lambda devices, axes, **_: mock.Mock(
        Mesh, devices=devices, shape=dict(zip(axes, devices.shape, strict=True)), empty=False
    ))  # fmt: skip


def test_devices_that_share_rows_lie_in_one_node(any_mesh):
    eight = described([0] * 4 + [1] * 4)
    make_mesh(MeshShape(sequence=2, tensor=2), eight)
    with pytest.raises(ValueError, match=r"mesh.sequence=4 x mesh.tensor=2 must divide the 4 devices of a node"):
        make_mesh(MeshShape(sequence=4, tensor=2), eight)


def test_a_node_is_a_node_however_its_processes_are_numbered(any_mesh):
    """As by Slurm with one process a GPU, numbered over the nodes in turn."""
    mesh = make_mesh(MeshShape(fsdp=2, tensor=4), described([0, 1] * 4))
    assert [{device.slice_index for device in group} for group in mesh.devices.reshape(2, 4)] == [{0}, {1}]


def test_processes_read_the_rows_of_their_devices(any_mesh, monkeypatch):
    def groups(shape, devices):
        monkeypatch.setattr(jax.sharding, "get_mesh", lambda: make_mesh(shape, devices))
        found = {}
        for device in devices:
            monkeypatch.setattr(jax, "process_index", lambda process=device.process_index: process)
            found[device.process_index] = meshes.row_group()
        return [found[process] for process in sorted(found)]

    assert groups(MeshShape(fsdp=4), described([0, 0, 1, 1])) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert groups(MeshShape(tensor=2), described([0, 1, 0, 1])) == [(0, 2), (1, 2), (0, 2), (1, 2)]
    assert groups(MeshShape(tensor=4), described([0, 0, 1, 1], per_process=2)) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert groups(MeshShape(tensor=2), described([0, 1], per_process=4)) == [(0, 2), (1, 2)]
    with pytest.raises(ValueError, match="a part of their rows only"):
        groups(MeshShape(tensor=3), described([0, 0, 0], per_process=2))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("name", "shape", "axis", "sides"),
    [
        ("v5p-512", MeshShape(data=4, fsdp=64), "fsdp", (1, 8, 8)),  # host after host it would be 4 x 8 x 2
        ("v5p-512", MeshShape(data=4, fsdp=64), "data", (4, 1, 1)),
        ("v5e-16", MeshShape(data=4, fsdp=4), "fsdp", (4, 1)),
        ("v5p-128", MeshShape(fsdp=16, tensor=4), "tensor", (4, 1, 1)),
        ("v5p-128", MeshShape(fsdp=16, tensor=4), "fsdp", (1, 4, 4)),
        ("v5p-128", MeshShape(fsdp=8, tensor=8), "tensor", (4, 2, 1)),  # a part of an axis
        ("2xv5p-128", MeshShape(replica=2, fsdp=16, tensor=4), "fsdp", (1, 4, 4)),
        ("2xv5p-128", MeshShape(data=8, fsdp=16), "fsdp", (4, 4, 1)),
    ],
)
def test_axes_follow_the_torus(name, shape, axis, sides):
    mesh = make_mesh(shape, devices_of(topology(name)))
    groups = np.moveaxis(mesh.devices, meshes.MESH_AXES.index(axis), -1)
    for group in groups.reshape(-1, mesh.shape[axis]):
        places = np.array([device.coords[: len(sides)] for device in group])
        assert tuple(len(set(column)) for column in places.T) == sides
        assert len({getattr(device, "slice_index", 0) for device in group}) == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_one_axis_over_a_small_slice_is_a_ring():
    devices = make_mesh(MeshShape(fsdp=16), devices_of(topology("v5e-16"))).devices.reshape(-1)
    places = np.array([device.coords for device in [*devices, devices[0]]])
    assert (np.abs(np.diff(places, axis=0)).sum(1) == 1).all()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_replicas_are_slices_and_tensor_stays_in_one():
    slices = devices_of(topology("2xv5p-128"))
    mesh = make_mesh(MeshShape(replica=2, fsdp=64), slices)
    assert [{device.slice_index for device in replica.flat} for replica in mesh.devices] == [{0}, {1}]
    with pytest.raises(ValueError, match=r"mesh\.sequence=1 x mesh.tensor=128 must divide the 64 devices of a slice"):
        make_mesh(MeshShape(data=1, tensor=128), slices)


def test_rules_place_names_and_replicate_what_does_not_divide():
    mesh = make_mesh(MeshShape(fsdp=2, tensor=4))
    assert partition_spec(mesh, ("layers", "embed", "mlp"), (3, 8, 16)) == PartitionSpec(None, "fsdp", "tensor")
    assert partition_spec(mesh, ("embed", "vocab"), (8, 29)) == PartitionSpec("fsdp", None)
    assert partition_spec(mesh, ("heads", "mlp"), (4, 4)) == PartitionSpec("tensor", None)  # an axis is used once


def test_rows_are_spread_and_nothing_is_lost():
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    rows = np.arange(8 * 3, dtype=np.int16).reshape(8, 3)
    sharded = shard_batch(mesh, {"audio": rows})["audio"]
    assert sharded.addressable_shards[0].data.shape == (2, 3)
    assert np.array_equal(jax.device_get(sharded), rows)


def test_rows_that_do_not_divide_are_refused_before_training(tmp_path):
    """Those of validation too, whose first batch would come after many steps."""
    experiment = tiny.experiment("ctc")
    source = tiny.source(experiment)
    odd = dataclasses.replace(source.dev_plan.buckets[0], batch_size=12)
    spoiled = dataclasses.replace(source, dev_plan=dataclasses.replace(source.dev_plan, buckets=(odd,)))
    with pytest.raises(ValueError, match=r"a batch of 12 rows does not divide among the 8 data shards.*-multiple 8"):
        train(experiment, tmp_path / "run", spoiled)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["ctc", "joint"])
def test_plans_know_their_batch_sizes(objective):
    source = tiny.source(tiny.experiment(objective))
    rows = {len(next(iter(batch.values()))) for batch in source.batches(0, 12)}
    assert rows <= source.plan.batch_sizes
