"""Temperature and throttling of the processors, as the kernel gives them.

Source: https://docs.kernel.org/driver-api/thermal/sysfs-api.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from agent.board.proc import read_number, read_text

PLAUSIBLE_C = (-40.0, 125.0)
"""Range of the sensors of processors, °C: beyond it a reading is a fault, such as −273, or 0 K, or 200 °C."""
THERMAL = Path("sys/class/thermal")
"""Below the root of the file system."""
_SLOWS = ("passive", "hot")
"""Types of trip points above which the kernel throttles."""
_PLAUSIBLE_LIMIT_C = (40.0, PLAUSIBLE_C[1])
"""Range of such trip points, °C: some firmware leaves 0, 1 or 200 °C in its tables, which say nothing."""
_PROCESSORS = ("cpufreq", "Processor")
"""Parts of the types of the processors' cooling devices: `cpufreq-cpu0`, `thermal-cpufreq-0`, ACPI's
`Processor`."""
_OTHERS = re.compile(
    r"batt|bms|chg|charg|ambient|skin|case|board|quiet|xo[-_]|wifi|wlan|modem|mdm|pa[-_]therm|usb|conn|nvme|pch|lcd"
)
"""Parts of the types of zones that are not the processor's."""
USUAL_LIMIT_C = 80.0
"""Limit where the kernel gives none: a Raspberry Pi slows its processors from here on, and more from 85 °C on;
source: https://www.raspberrypi.com/documentation/computers/raspberry-pi.html#frequency-management-and-thermal-control"""
_SOFT_LIMIT_C = 60.0
"""A Raspberry Pi 3B+ goes from 1.4 to 1.2 GHz here; same source."""


class Zone(Struct, frozen=True):
    """A thermal zone.

    Attributes:
        name: such as `cpu-thermal`.
        temperature_c: current temperature, °C.
        limit_c: temperature from which the kernel throttles, °C; None: unknown.
    """

    name: str
    temperature_c: float
    limit_c: float | None = None

    @property
    def is_plausible(self) -> bool:
        """False for what no sensor can have measured, such as −273 °C, 0 K, or 200 °C."""
        return PLAUSIBLE_C[0] < self.temperature_c < PLAUSIBLE_C[1]

    @property
    def is_of_processor(self) -> bool:
        """False for the zones of batteries, chargers, radios, cases and the air."""
        return _OTHERS.search(self.name.lower()) is None


class Brake(Struct, frozen=True):
    """A processor that the kernel throttles because of heat.

    Attributes:
        name: of the cooling device, such as `cpufreq-cpu0`.
        step, steps: current and highest step of throttling.
    """

    name: str
    step: int
    steps: int


def read_all_zones(folder: Path) -> list[Zone]:
    """Read the zones that have a number for a temperature, hottest first."""
    return sorted(read_zone_folders(folder).values(), key=lambda zone: (-zone.temperature_c, zone.name))


def read_zone_folders(folder: Path) -> dict[str, Zone]:
    """Read the zones that have a number for a temperature, by the names of their folders."""
    zones = {}
    for path in folder.glob("thermal_zone*"):
        reading = read_number(path / "temp")
        if reading is not None:
            limit = min(_limits(path), default=None)
            zones[path.name] = Zone(read_text(path / "type") or path.name, reading / 1000, limit)
    return zones


def _limits(zone: Path) -> Iterator[float]:
    for kind in zone.glob("trip_point_*_type"):
        limit = read_number(kind.with_name(kind.name.replace("_type", "_temp")))
        lowest, highest = _PLAUSIBLE_LIMIT_C
        if read_text(kind) in _SLOWS and limit is not None and lowest <= limit / 1000 <= highest:
            yield limit / 1000


def read_brakes(folder: Path) -> list[Brake]:
    """List the processors that are throttled now."""
    found = []
    for path in sorted(folder.glob("cooling_device*")):
        name, step = read_text(path / "type"), read_number(path / "cur_state")
        if step and any(part in name for part in _PROCESSORS):
            found.append(Brake(name, step, read_number(path / "max_state") or step))
    return found


def firmware_limit_c(root: Path = Path("/")) -> float | None:
    """Return the temperature from which a Raspberry Pi's firmware throttles, °C; None: another board."""
    names = read_text(root / "proc/device-tree/compatible").split("\0")
    if not any(name.startswith("raspberrypi,") for name in names):
        return None
    return _SOFT_LIMIT_C if any("3-model-b-plus" in name for name in names) else USUAL_LIMIT_C
