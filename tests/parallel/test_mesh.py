"""Names become placements by one table."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jax_speechlm.parallel.mesh import MeshShape, make_mesh, partition_spec, shard_batch


def test_data_takes_the_devices_that_are_left():
    left = {"replica": 1, "data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert dict(make_mesh(MeshShape(fsdp=2, tensor=2)).shape) == left
    assert make_mesh(MeshShape(sequence=4)).shape["data"] == 2


def test_a_mesh_must_use_every_device():
    with pytest.raises(ValueError, match="does not use exactly the 8 available devices"):
        make_mesh(MeshShape(data=3))


def test_devices_that_share_rows_lie_in_one_host(monkeypatch):
    monkeypatch.setattr("jax_speechlm.parallel.mesh._num_hosts", lambda devices: 2)
    make_mesh(MeshShape(sequence=2, tensor=2))
    with pytest.raises(ValueError, match=r"mesh.sequence=4 x mesh.tensor=2 must divide the 4 devices of a host"):
        make_mesh(MeshShape(sequence=4, tensor=2))


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
