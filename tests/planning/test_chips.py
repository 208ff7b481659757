"""Names of topologies, as clouds sell them."""

import importlib.util
import re
from unittest import mock

import jax
import pytest

from jax_speechlm.parallel import hardware
from jax_speechlm.parallel.chips import CHIPS, find_chip, topology
from jax_speechlm.planning import gpu
from jax_speechlm.planning.ahead_of_time import devices_of


@pytest.mark.parametrize(
    ("name", "shape", "devices"),
    [
        ("v5e-1", (1, 1), 1),
        ("v5e-16", (4, 4), 16),
        ("v5e-256", (16, 16), 256),
        ("v6e-8", (2, 4), 8),
        ("v5p-8", (2, 2, 1), 4),
        ("v5p-16", (2, 2, 2), 8),
        ("v5p-512", (4, 8, 8), 256),
        ("v4-4096", (8, 16, 16), 2048),
        ("tpu7x-8", (2, 2, 1), 8),
        ("tpu7x-128", (4, 4, 4), 128),
        ("gb200-144", (2, 72), 144),
        ("H100-64", (8, 8), 64),
        ("h100-4", (1, 4), 4),
        ("cpu-1", (1, 1), 1),
        ("cpu-8", (1, 8), 8),
    ],
)
def test_a_name_has_a_shape(name, shape, devices):
    found = topology(name)
    assert (found.shape, found.num_devices) == (shape, devices)


def test_slices_multiply_devices():
    assert topology("2xv5p-512") == topology("v5p-512", slices=2)
    assert topology("2xv5p-512").num_devices == 512
    assert topology("2xv5p-512", slices=4).num_devices == 1024


@pytest.mark.parametrize(
    ("name", "slices", "said"),
    [
        ("v5e", None, "Names are CHIP-NUMBER"),
        ("v7-16", None, "Did you mean v"),
        ("v5e-12", None, "slices of v5e have 1, 4, 8"),
        ("v5p-12", None, "counted in TensorCores"),
        ("h100-12", None, "nodes have 8 devices"),
        ("h100-8", 2, "h100-16"),
        ("cpu-1", 2, "only TPUs have slices"),
    ],
)
def test_other_names_are_errors_that_help(name, slices, said):
    with pytest.raises(ValueError, match=said):
        topology(name, slices)


@pytest.mark.parametrize(
    ("name", "per_clock"),
    [
        ("a100", 2048), ("h100", 4096), ("h100pcie", 4096), ("h100nvl", 4096), ("h200", 4096), ("b200", 8192),
        ("gb200", 8192),
    ],
)  # fmt: skip
def test_a_gpus_peak_is_that_of_its_multiprocessors(name, per_clock):
    """FLOP of dense bf16 products a clock and multiprocessor by NVIDIA's white papers; peaks lie below top clock."""
    text = gpu.target_config(name)
    cores, clock = (float(re.search(rf"{key}: ([\d.]+)", text).group(1)) for key in ("core_count", "clock_rate_ghz"))
    assert (0.86 if name == "h100nvl" else 0.92) < CHIPS[name].flops / (cores * clock * 1e9 * per_clock) <= 1.001
    assert f"device_memory_size: {int(CHIPS[name].hbm)}" in text


def test_a_device_kind_finds_its_chip():
    assert find_chip("TPU v5 lite") is CHIPS["v5e"]
    assert find_chip("TPU v5") is CHIPS["v5p"]
    assert find_chip("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert find_chip("NVIDIA H100 PCIe") is CHIPS["h100pcie"]
    assert find_chip("NVIDIA H100 NVL") is CHIPS["h100nvl"]
    assert find_chip("TPU7x") is CHIPS["tpu7x"]
    assert find_chip("cpu") is None  # its speed is measured


@pytest.mark.parametrize("name", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_a_tpus_clock_reaches_its_peak(name):
    """Four matrix units a core: 128 x 128, from v6e on 256 x 256; v4 and v5p have two cores a device."""
    side, cores = (256 if name in ("v6e", "tpu7x") else 128), 2 if name in ("v4", "v5p") else 1
    assert CHIPS[name].flops / (2 * 4 * cores * side**2 * CHIPS[name].clock) == pytest.approx(1, rel=0.005)


def test_the_devices_of_an_unknown_chip_add_up(monkeypatch):
    """CPU devices of one process share its cores, other devices do not."""
    monkeypatch.setattr(hardware, "matmul_flops", lambda: 1e12)

    def devices(platform, processes):
        def device(number, process):
            return mock.Mock(jax.Device, id=number, process_index=process, device_kind="new", platform=platform)

        return [device(*numbers) for numbers in enumerate(processes)]

    assert hardware.peak_flops(devices("gpu", [0, 0, 1, 1])) == 4e12
    assert hardware.peak_flops(devices("cpu", [0, 0, 1, 1])) == 2e12


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("name", ["v5e-8", "v6e-256", "v5p-512", "v5p-8", "v4-64", "tpu7x-16", "2xv5p-16"])
def test_devices_are_where_the_compiler_has_them(name):
    target = topology(name)
    devices = devices_of(target)
    assert len(devices) == target.num_devices
    for number, device in enumerate(devices):
        coordinates = (*device.coords[: len(target.shape)], device.core_on_chip)
        assert target.place(number) == (device.slice_index if target.slices > 1 else 0, *coordinates)
