"""Heat: thermal zones, and what the kernel slows because of them.

Source: https://docs.kernel.org/driver-api/thermal/sysfs-api.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from agent.health.files import read_number, read_text

THERMAL = Path("sys/class/thermal")
"""Below the root of the file system."""
_SLOWS = ("passive", "hot")
"""Types of trip points beyond which the kernel slows what is hot."""
_PROCESSORS = ("cpufreq", "Processor")
"""What the types of the processors' cooling devices begin with or contain: `cpufreq-cpu0`, older
`thermal-cpufreq-0`; ACPI's `Processor`."""


class Zone(Struct, frozen=True):
    """A thermal zone.

    Attributes:
        name: such as `cpu-thermal`.
        temperature_c: now, °C.
        limit_c: from which on the kernel slows something, °C; None: it does not say.
    """

    name: str
    temperature_c: float
    limit_c: float | None = None


class Brake(Struct, frozen=True):
    """A processor that the kernel has slowed because of heat.

    Attributes:
        name: of the cooling device, such as `cpufreq-cpu0`.
        step, steps: how far it is slowed, and how far it could be.
    """

    name: str
    step: int
    steps: int


def read_zones(folder: Path) -> list[Zone]:
    """Every zone that tells its temperature, hottest first.

    Args:
        folder: `/sys/class/thermal`.
    """
    zones = []
    for path in folder.glob("thermal_zone*"):
        reading = read_number(path / "temp")
        if reading is not None:
            limit = min(_limits(path), default=None)
            zones.append(Zone(read_text(path / "type") or path.name, reading / 1000, limit))
    return sorted(zones, key=lambda zone: (-zone.temperature_c, zone.name))


def _limits(zone: Path) -> Iterator[float]:
    for kind in zone.glob("trip_point_*_type"):
        limit = read_number(kind.with_name(kind.name.replace("_type", "_temp")))
        if read_text(kind) in _SLOWS and limit is not None and limit > 0:
            yield limit / 1000


def read_brakes(folder: Path) -> list[Brake]:
    """Processors that are slowed now.

    Args:
        folder: `/sys/class/thermal`.
    """
    found = []
    for path in sorted(folder.glob("cooling_device*")):
        name, step = read_text(path / "type"), read_number(path / "cur_state")
        if step and any(part in name for part in _PROCESSORS):
            found.append(Brake(name, step, read_number(path / "max_state") or step))
    return found
