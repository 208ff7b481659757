"""Counts from compiled programs against counts by hand and by formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.planning import collectives, costs, hlo

LAYERS, ROWS, DIM = 7, 16, 32


def compiled(function, *shapes, mesh=None, specs=None):
    """The optimised HLO of a function of float32 arrays."""
    mesh = mesh or meshes.make_mesh(MeshShape(data=1), jax.devices()[:1])
    specs = specs or [PartitionSpec()] * len(shapes)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text()), dict(mesh.shape)


def chain(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]


def test_a_loops_body_counts_as_often_as_it_runs():
    module, mesh = compiled(chain, (ROWS, DIM), (LAYERS, DIM, DIM))
    counted = costs.count(module, mesh)
    assert counted.flops == 2 * ROWS * DIM * DIM * LAYERS
    assert not counted.unknown_loops
    # Every kernel is read once, whatever else is moved.
    assert counted.bytes >= 4 * LAYERS * DIM * DIM


def test_loops_in_loops_multiply():
    def twice(x, kernels):
        return jax.lax.fori_loop(0, 5, lambda i, x: chain(x, kernels), x)

    module, mesh = compiled(twice, (ROWS, DIM), (LAYERS, DIM, DIM))
    assert costs.count(module, mesh).flops == 5 * 2 * ROWS * DIM * DIM * LAYERS


@pytest.mark.parametrize("shape", [((8, 1, 1)), ((1, 8, 1)), ((2, 4, 1))])
def test_shards_share_the_work_and_gather_over_their_axis(shape):
    mesh = meshes.make_mesh(MeshShape(data=shape[0], fsdp=shape[1], tensor=shape[2]))
    specs = [PartitionSpec(meshes.BATCH_AXES), PartitionSpec(None, "fsdp")]

    def loss(x, kernels):
        def body(x, kernel):
            return meshes.shard_batch_dim(jnp.tanh(x @ kernel)), None

        return jnp.sum(jax.lax.scan(body, x, kernels)[0])

    module, sizes = compiled(jax.grad(loss, argnums=1), (64, DIM), (LAYERS, DIM, DIM), mesh=mesh, specs=specs)
    counted = costs.count(module, sizes)
    # Forward, and backward twice; the first layer's input needs no gradient, but the loop computes it.
    assert counted.flops == pytest.approx(3 * 2 * 64 * DIM * DIM * LAYERS / 8)
    gathered = [each for each in counted.collectives if each.kind == "all-gather"]
    if shape[1] == 1:
        assert not gathered
    else:
        assert {each.axes for each in gathered} == {"fsdp"}
        assert sum(each.times for each in gathered) >= LAYERS
        assert all(each.size == shape[1] for each in gathered)
    summed = [each for each in counted.collectives if each.kind in ("all-reduce", "reduce-scatter")]
    assert sum(each.sent for each in summed) > 0


def test_everything_that_a_shard_map_exchanges_counts():
    mesh = meshes.make_mesh(MeshShape(sequence=8))
    ring = [(device, (device + 1) % 8) for device in range(8)]

    def step(x):
        return jnp.tanh(jax.lax.ppermute(x, "sequence", ring))

    def body(x):
        return jax.lax.psum(step(step(x)), "sequence")

    spec = PartitionSpec(None, "sequence")
    exchange = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
    counted = {
        each.kind: each for each in costs.count(*compiled(exchange, (4, 80), mesh=mesh, specs=[spec])).collectives
    }
    ring = counted["collective-permute"]
    assert ring == ("collective-permute", "sequence", 8, 2, 2 * 4 * 10 * 4, (0, 1, 2, 3, 4, 5, 6, 7, 0))
    assert counted["all-reduce"].axes == "sequence"


def brute_force_convolution(x, kernel, padding, lhs_dilation, rhs_dilation, stride):
    """Multiply-adds of a one-dimensional convolution whose input element is there, counted one by one."""
    size, taps = x.shape[1], kernel.shape[0]
    dilated = (size - 1) * lhs_dilation + 1
    reach = (taps - 1) * rhs_dilation + 1
    count = 0
    for start in range(-padding[0], dilated + padding[1] - reach + 1, stride):
        for tap in range(taps):
            place = start + tap * rhs_dilation
            count += 0 <= place < dilated and place % lhs_dilation == 0
    return 2 * count * x.shape[0] * x.shape[2] * kernel.shape[2]


@pytest.mark.parametrize(
    ("padding", "lhs_dilation", "rhs_dilation", "stride"),
    [((0, 0), 1, 1, 1), ((3, 2), 1, 1, 1), ((2, 2), 3, 1, 1), ((0, 4), 1, 2, 1), ((1, 1), 1, 1, 2)],
)
def test_convolutions_count_what_meets_the_input(padding, lhs_dilation, rhs_dilation, stride):
    x, kernel = np.zeros((2, 11, 3), np.float32), np.zeros((4, 3, 5), np.float32)
    function = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride,),
        padding=[padding],
        lhs_dilation=(lhs_dilation,),
        rhs_dilation=(rhs_dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    text = jax.jit(function).lower(x, kernel).as_text("hlo")
    module = hlo.parse(text)
    found = [
        costs.convolution_flops(each, computation)
        for computation in module.computations.values()
        for each in computation
        if each.opcode == "convolution"
    ]
    assert found == [brute_force_convolution(x, kernel, padding, lhs_dilation, rhs_dilation, stride)]


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), use_global_device_ids=true", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x=1", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x=1", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}, x=1", [[3, 1], [2, 0]]),
    ],
)
def test_groups_are_read_in_every_form(attributes, groups):
    text = attributes.partition("=")[2]
    assert collectives.replica_groups(text, attributes, 4) == groups


def test_shapes_have_bytes_and_a_place():
    text = """HloModule m
ENTRY %main (p: f32[2,3]) -> (bf16[8], s4[3]) {
  %p = f32[2,3]{1,0:T(8,128)S(1)} parameter(0)
  %q = (bf16[8]{0}, s4[3]{0}, pred[]) custom-call(%p), custom_call_target="x{y", backend_config={"a":{"b":"}"}}
  ROOT %t = (bf16[8]{0}, s4[3]{0}) tuple(%q, %q)
}
"""
    main = hlo.parse(text).computations["main"]
    assert main.instructions["p"].shapes == (hlo.Shape("f32", (2, 3), False),)
    assert [shape.bytes for shape in main.instructions["q"].shapes] == [16, 2, 1]
    assert main.instructions["q"].attribute("custom_call_target") == '"x{y"'
    assert main.root == "t"
    assert main.instructions["t"].operands == ("q", "q")


def test_an_allocation_moves_nothing():
    text = """HloModule m
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %room = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %n = f32[8]{0} negate(%p)
}
"""
    assert costs.count(hlo.parse(text), {"data": 1}).bytes == 2 * 8 * 4


def test_what_is_no_hlo_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module @jit_step {}")
