"""Time sharded over devices: the communication, and convolutions across shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_speechlm.models.conformer import Conformer, ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformer, FastConformerConfig
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import depthwise
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.planning import collectives, costs, hlo

ROWS, TIME = 4, 64


@pytest.mark.parametrize(("centred", "packed"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("num_frames", "taps"), [(16, 31), (24, 3), (24, 5), (40, 1)])
def test_a_convolution_sees_over_as_many_devices_as_it_must(num_frames, taps, centred, packed):
    rng = np.random.default_rng(0)
    x, kernel, weight = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((2, num_frames, 3), (taps, 3), (2, num_frames, 3))
    )
    ahead = taps // 2 if centred else 0
    segment = jnp.tile(jnp.arange(num_frames) // 11, (2, 1)) if packed else None

    def convolve(inputs, kernel):
        return depthwise(inputs[0], kernel, inputs[1], ahead)

    def both(convolve):
        def total(x, kernel):
            return jnp.vdot(convolve((x, segment), kernel), weight)

        return jax.jit(jax.value_and_grad(total, (0, 1)))

    sides = {"past": taps - 1 - ahead, "future": ahead}
    expected = both(convolve)(x, kernel)
    mesh = meshes.make_mesh(MeshShape(sequence=8))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "sequence")))
        got = both(lambda inputs, kernel: sequence.with_context(convolve, inputs, (kernel,), **sides))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, expected)


def transformer():
    config = TransformerConfig(dim=48, num_layers=3, num_heads=8, num_kv_heads=2, head_dim=8, ffn_dim=40, dropout=0.1)
    return lambda rngs: Transformer(config, 32, rngs=rngs), [((ROWS, TIME), jnp.int32)] * 3


def conformer():
    config = ConformerConfig(input_dim=12, dim=48, num_layers=3, num_heads=8, kernel_size=7, left_max=9)
    return lambda rngs: Conformer(config, rngs=rngs), [((ROWS, TIME, 12), jnp.float32), ((ROWS,), jnp.int32)]


def fast_conformer():
    config = FastConformerConfig(input_dim=16, dim=48, num_layers=3, num_heads=8, kernel_size=7, channels=8)
    arrays = [((ROWS, 8 * TIME, 16), jnp.float32), ((ROWS,), jnp.int32)]
    return lambda rngs: FastConformer(config, rngs=rngs), arrays


@pytest.mark.parametrize(("model", "halos"), [(transformer, 0), (conformer, 3), (fast_conformer, 6)])
@pytest.mark.parametrize(
    "shape", [MeshShape(data=2, sequence=4), MeshShape(data=1, fsdp=2, sequence=2, tensor=2)], ids=str
)
def test_layers_exchange_heads_and_halos_and_gather_no_time(model, halos, shape):
    (make, arrays), mesh = model(), meshes.make_mesh(shape)
    declared = functional.declare(make)

    def loss(params, *arrays):
        return jnp.sum(jnp.sin(jax.tree.leaves(functional.bind(declared.graphdef, params)(*arrays))[0]))

    def abstract(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(abstract, declared.shapes, meshes.param_shardings(mesh, declared.axes, declared.shapes))
    arrays = [jax.ShapeDtypeStruct(*array, sharding=meshes.batch_sharding(mesh)) for array in arrays]
    with jax.set_mesh(mesh):
        module = hlo.parse(jax.jit(jax.grad(loss)).lower(params, *arrays).compile().as_text())

    loops = [each for computation in module.computations.values() for each in computation if each.opcode == "while"]
    layers = [module.computations[loop.attribute("body").lstrip("%")] for loop in loops]
    inside = [op for layer in layers for op in layer if op.opcode.removesuffix("-start") in collectives.KINDS]

    def count(kind):
        return sum(op.opcode.startswith(kind) for op in inside)

    # Forward: queries, keys, values there, their mean back. Backward: the same once more, and all four gradients.
    assert count("all-to-all") == 4 + 8
    assert count("collective-permute") == halos
    # A layer gathers only parameters, or the shard of another axis for a part of time.
    gathered = [result.dims for each in inside if each.opcode.startswith("all-gather") for result in each.shapes]
    assert not any(TIME in dims for dims in gathered), [dims for dims in gathered if TIME in dims]
    along = {each.axes for each in costs.count(module, dict(mesh.shape)).collectives if each.kind == "all-gather"}
    assert "sequence" not in "".join(along)
