"""Names of topologies, as clouds sell them."""

import re

import pytest

from jax_speechlm.parallel.chips import CHIPS, find_chip, topology
from jax_speechlm.planning import gpu


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


@pytest.mark.parametrize(("name", "per_clock"), [("a100", 2048), ("h100", 4096), ("h200", 4096), ("b200", 8192)])
def test_a_gpus_peak_is_that_of_its_multiprocessors(name, per_clock):
    """FLOP of dense bf16 products a clock and multiprocessor by NVIDIA's white papers; peaks lie below top clock."""
    text = gpu.target_config(name)
    cores, clock = (float(re.search(rf"{key}: ([\d.]+)", text).group(1)) for key in ("core_count", "clock_rate_ghz"))
    assert 0.92 < CHIPS[name].flops / (cores * clock * 1e9 * per_clock) <= 1.001
    assert f"device_memory_size: {int(CHIPS[name].hbm)}" in text


def test_a_device_kind_finds_its_chip():
    assert find_chip("TPU v5 lite") is CHIPS["v5e"]
    assert find_chip("TPU v5") is CHIPS["v5p"]
    assert find_chip("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert find_chip("cpu") is None  # its speed is measured
