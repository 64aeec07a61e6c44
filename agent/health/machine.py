"""Readings of the board and of this process, from `/proc` and `/sys`. None where a board does not tell."""

from __future__ import annotations

from pathlib import Path

_THERMAL = Path("/sys/class/thermal")


def resident_mb() -> float:
    """Resident memory of this process, MB (2^20 bytes)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def temperature_c(zones: Path = _THERMAL) -> float | None:
    """Hottest thermal zone, °C."""
    readings = []
    for file in zones.glob("thermal_zone*/temp"):
        try:
            readings.append(int(file.read_text(encoding="ascii")) / 1000)
        except (OSError, ValueError):
            continue  # a zone that is off, or not a number: others may tell
    return max(readings, default=None)
