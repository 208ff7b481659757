"""Energy of a machine's processors and memory, from the counters of RAPL where Linux has them and lets us read them."""

import contextlib
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")
_JOULES_PER_KWH = 3.6e6


class EnergyMeter:
    """Counts energy from its construction on.

    The zones of whole processors ("package-0"), which contain their cores, and of memory ("dram") add up. Other
    programs on the machine are included, GPUs are not. Counters overflow, after an hour of full load or less, so
    `joules` has to be called more often than that.
    """

    def __init__(self, powercap: Path = _POWERCAP):
        self._zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _counts(zone)]
        self._last = {zone: _read(zone / "energy_uj") for zone in self._zones}
        self._joules = 0.0

    def joules(self) -> float | None:
        """Returns the energy so far; None without a counter."""
        for zone in self._zones:
            now = _read(zone / "energy_uj")
            more = now - self._last[zone]
            self._joules += (more if more >= 0 else more + _read(zone / "max_energy_range_uj")) / 1e6
            self._last[zone] = now
        return self._joules if self._zones else None

    def describe(self, audio_hours: float) -> str | None:
        """Formats the energy as one line, also per hour of audio if there is any; None without a counter."""
        joules = self.joules()
        if joules is None:
            return None
        total = joules / _JOULES_PER_KWH
        share = f", {total / audio_hours:.3g} kWh per hour of audio" if audio_hours else ""
        return f"energy of processors and memory (RAPL, other programs included): {total:.3g} kWh{share}"


def _counts(zone: Path) -> bool:
    """Returns whether a zone is to be added up and can be read."""
    with contextlib.suppress(OSError, ValueError):
        name = (zone / "name").read_text().strip()
        _read(zone / "energy_uj"), _read(zone / "max_energy_range_uj")  # only root may read them on most systems
        return name.startswith("package") or name == "dram"
    return False


def _read(path: Path) -> int:
    return int(path.read_text())
