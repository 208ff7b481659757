"""Energy from a made powercap folder: what adds up, overflows, and what is missing or unreadable."""

import pytest

from jax_speechlm.core.energy import EnergyMeter


def write(folder, zone, name, microjoules, most=1_000_000_000):
    path = folder / zone
    path.mkdir(exist_ok=True)
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (path / file).write_text(f"{value}\n")


def test_packages_and_memory_add_up_and_counters_overflow(tmp_path):
    def write_all(package, core, memory, other):
        write(tmp_path, "intel-rapl:0", "package-0", package)
        write(tmp_path, "intel-rapl:0:0", "core", core)  # a part of its package
        write(tmp_path, "intel-rapl:0:1", "dram", memory)
        write(tmp_path, "intel-rapl:1", "package-1", other)
        write(tmp_path, "intel-rapl:2", "psys", 5 * package)  # contains the packages

    write_all(100_000_000, 1, 7_000_000, 990_000_000)
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == 0
    write_all(130_000_000, 9_000_000, 8_000_000, 5_000_000)
    assert meter.joules() == pytest.approx(30 + 1 + 15)
    write_all(131_000_000, 9_000_000, 8_000_000, 5_000_000)
    assert meter.joules() == pytest.approx(30 + 1 + 15 + 1)
    assert meter.describe(0.5).endswith(": 1.31e-05 kWh, 2.61e-05 kWh per hour of audio")
    assert meter.describe(0.0).endswith(": 1.31e-05 kWh")


def test_without_a_counter_there_is_no_energy(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        meter = EnergyMeter(folder)
        assert meter.joules() is None
        assert meter.describe(1.0) is None
    write(tmp_path, "intel-rapl:0", "package-0", "unreadable")
    assert EnergyMeter(tmp_path).joules() is None
