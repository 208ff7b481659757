"""Compiler options of a chip: in the train step of a run and of a plan, and accepted by the compiler."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_speechlm.parallel import compiler_options
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.chips import CHIPS, find_chip, topology
from jax_speechlm.parallel.compiler_options import OPTIONS, options_for
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.planning import hlo, schedule
from jax_speechlm.planning.ahead_of_time import compile_lowered, devices_of

COMPILERS = {"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(compiler_options, "OPTIONS", {"h100": {"xla_gpu_a": True, "xla_gpu_b": 2}})
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        monkeypatch.delenv(name, raising=False)


def test_devices_get_the_options_of_their_chip_and_no_other(table):
    assert options_for("NVIDIA H100 80GB HBM3") == {"xla_gpu_a": True, "xla_gpu_b": 2}
    for kind in ("NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "TPU v5p", "cpu", "a chip of next year"):
        assert options_for(kind) == {}


@pytest.mark.parametrize("variable", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
def test_a_flag_of_the_user_has_precedence(table, monkeypatch, variable):
    monkeypatch.setenv(variable, "--xla_other=1 --xla_gpu_a=false")
    assert options_for("NVIDIA H100 80GB HBM3") == {"xla_gpu_b": 2}


def test_the_table_names_known_chips():
    assert set(OPTIONS) <= set(CHIPS)
    prefixes = {"tpu": ("xla_tpu_", "xla_jf_", "xla_enable_"), "cuda": ("xla_gpu_",)}
    for chip, options in OPTIONS.items():
        assert all(name.startswith(prefixes[CHIPS[chip].platform]) for name in options), chip


def compiled(target, options, function, *arrays):
    """Returns the program of a function of (shape, sharding) on a mesh that shards all along fsdp."""
    devices = devices_of(target)
    mesh = meshes.make_mesh(MeshShape(data=1, fsdp=len(devices)), devices)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)) for shape, spec in arrays
    ]
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, compiler_options=options).lower(*arguments)
        return hlo.parse(compile_lowered(lowered, devices[0].platform)[1]), dict(mesh.shape)


@pytest.fixture
def flags_of_the_cpu_alone(monkeypatch):
    """Keeps the tests' flags from the TPU compiler, which does not know them."""
    jax.devices()  # has read them by then
    monkeypatch.delenv("XLA_FLAGS", raising=False)


SIZES = {"v5e": "v5e-4", "v5p": "v5p-8", "v6e": "v6e-4"}


@pytest.mark.usefixtures("flags_of_the_cpu_alone")
@pytest.mark.parametrize("chip", OPTIONS)
def test_the_compiler_accepts_the_options_of_a_chip(chip):
    spec = CHIPS[chip]
    if importlib.util.find_spec(COMPILERS[spec.platform]) is None:
        pytest.skip(f"{COMPILERS[spec.platform]} is not installed")
    target = topology(SIZES.get(chip, f"{chip}-8"))
    assert find_chip(devices_of(target)[0].device_kind) == spec
    module, _ = compiled(target, dict(OPTIONS[chip]), lambda x: x @ x, ((1024, 1024), PartitionSpec("fsdp")))
    assert module.computations


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.usefixtures("flags_of_the_cpu_alone")
def test_layers_on_v5e_are_faster_by_the_estimate_with_its_options():
    """By default each layer's parameters are gathered piece by piece, and sums of products written as often."""
    target = topology("v5e-16")

    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (meshes.shard_batch_dim(jnp.tanh(x @ w)), None), x, weights)[0]

    arrays = ((16 * 2048, 2048), PartitionSpec("fsdp")), ((6, 2048, 2048), PartitionSpec(None, "fsdp"))
    by_default, chosen = (
        schedule.seconds(*compiled(target, options, layers, *arrays), target) for options in ({}, dict(OPTIONS["v5e"]))
    )
    assert chosen < 0.9 * by_default
