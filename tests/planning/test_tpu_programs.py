"""Counts from programs of the TPU compiler, with its own forms of collectives and loops, against counts by hand."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_speechlm.nn.attention.dot import attend
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.chips import topology
from jax_speechlm.parallel.mesh import BATCH_AXES, MeshShape
from jax_speechlm.planning import costs, hlo, links, schedule
from jax_speechlm.planning.ahead_of_time import compile_lowered, devices_of, in_mesh_order

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

ROWS, SPEC = PartitionSpec(BATCH_AXES), PartitionSpec("fsdp")


def placed(name, shape):
    """Returns a mesh over a topology, and the topology with the devices in the mesh's order."""
    devices = devices_of(topology(name))
    mesh = meshes.make_mesh(shape, devices)
    return mesh, in_mesh_order(topology(name), devices, mesh)


def counted(name, shape, function, *arrays, out=None):
    """Compiles a function of (shape, type, sharding) for a topology; returns (costs, estimate, program)."""
    mesh, target = placed(name, shape)
    arguments = [jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec)) for dims, dtype, spec in arrays]
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, out_shardings=None if out is None else NamedSharding(mesh, out)).lower(*arguments)
        module = hlo.parse(compile_lowered(lowered, "tpu")[1])
    return costs.count(module, dict(mesh.shape)), schedule.seconds(module, dict(mesh.shape), target), module


def product(x, y):
    return x.T @ y


def test_an_all_reduce_of_which_a_fusion_keeps_a_slice_is_a_reduce_scatter():
    rows = 64 * 512
    found, seconds, module = counted(
        "v5e-64",
        MeshShape(data=4, fsdp=16),
        product,
        ((rows, 1024), jnp.bfloat16, ROWS),
        ((rows, 2048), jnp.bfloat16, ROWS),
        out=SPEC,
    )
    assert any("all-reduce-scatter" in name for name in module.computations)
    scatter, summed = found.collectives
    assert scatter[:5] == ("reduce-scatter", "fsdp", 16, 1, 1024 * 2048 * 2 * 15 / 16)
    assert summed[:5] == ("all-reduce", "data", 4, 1, 2 * 1024 * 2048 * 2 / 16 * 3 / 4)
    assert found.flops == 2 * 512 * 1024 * 2048
    assert seconds > found.flops / 197e12 + scatter.sent / 90e9


def test_a_loop_that_steps_by_two_runs_half_as_often():
    """The compiler gathers the second factor piece by piece, two a trip from either side, beside the products."""
    found, seconds, module = counted(
        "v5e-16",
        MeshShape(data=1, fsdp=16),
        lambda x, w: x @ w,
        ((32, 2048, 1024), jnp.bfloat16, SPEC),
        ((1024, 2048), jnp.bfloat16, SPEC),
        out=SPEC,
    )
    assert any(op.opcode == "while" for op in module.computations[module.entry])
    assert not found.unknown_loops
    assert found.flops == 2 * 2 * 2048 * 1024 * 2048
    (passed,) = found.collectives
    assert passed[:4] == ("collective-permute", "fsdp", 16, 17)  # the last pieces of the last trip included
    assert passed.sent == 17 * 1024 * 2048 * 2 / 16
    assert seconds > max(found.flops / 197e12, 8 * passed.sent / 17 / 45e9)


def test_collectives_along_an_axis_of_the_mesh_have_the_links_of_a_plane():
    """Host after host, sixteen chips of a v5p-128 would be a block of 4 x 2 x 2: 1 + 1/2 + 1/2 rings, shared by two."""
    name, shape = "v5p-128", MeshShape(data=4, fsdp=16)
    found, *_ = counted(
        name,
        shape,
        lambda x: x * 2,
        ((4096, 4096), jnp.bfloat16, SPEC),
        out=PartitionSpec(),
    )
    (gathered,) = found.collectives
    assert gathered[:5] == ("all-gather", "fsdp", 16, 1, 4096**2 * 2 * 15 / 16)
    assert links.seconds(gathered, placed(name, shape)[1]) == gathered.sent / (2 * 180e9)


def test_a_collective_on_the_sparse_cores_counts():
    rows = 16 * 512
    found, _, module = counted(
        "tpu7x-16",
        MeshShape(data=1, fsdp=16),
        product,
        ((rows, 1024), jnp.bfloat16, ROWS),
        ((rows, 2048), jnp.bfloat16, ROWS),
        out=SPEC,
    )
    assert any(op.opcode == "async-start" for op in module.computations[module.entry])
    (scatter,) = found.collectives
    assert scatter[:5] == ("reduce-scatter", "fsdp", 16, 1, 1024 * 2048 * 2 * 15 / 16)


@pytest.mark.parametrize(
    ("causal", "window", "share"),
    [(True, None, 10 / 16), (False, None, 1.0), (True, 256, 7 / 16), (False, 256, 10 / 16)],
)
def test_attention_counts_the_blocks_that_it_computes(causal, window, share):
    """Four blocks of 512 tokens, forwards and backwards."""
    rows, tokens, heads, width = 2, 2048, 4, 128

    def gradient(x, segment):
        def total(x):
            return jnp.sum(attend(x, x, x, segment, causal=causal, window=window, kernel="splash").astype(jnp.float32))

        return jax.grad(total)(x)

    found, seconds, _ = counted(
        "v5e-1",
        MeshShape(data=1),
        gradient,
        ((rows, tokens, heads, width), jnp.bfloat16, ROWS),
        ((rows, tokens), jnp.int32, ROWS),
    )
    assert not found.unknown_calls
    product = 2 * rows * heads * tokens**2 * width
    assert found.flops == pytest.approx((2 + 3 + 4) * product * share)
    assert seconds > found.flops / 197e12
