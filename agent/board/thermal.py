"""Temperature, throttling, power supply, and load of the board.

Sources: https://docs.kernel.org/driver-api/thermal/sysfs-api.html,
https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd (the bits of `get_throttled`),
https://docs.kernel.org/hwmon/raspberrypi-hwmon.html. The file `get_throttled` is of
drivers/firmware/raspberrypi.c in raspberrypi/linux, and not in the upstream kernel.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from agent.board.proc import read_number, read_text

log = logging.getLogger(__name__)

THERMAL = Path("sys/class/thermal")
"""Below the root of the file system."""
_SLOWS = ("passive", "hot")
"""Types of trip points above which the kernel throttles."""
_PROCESSORS = ("cpufreq", "Processor")
"""Parts of the types of the processors' cooling devices: `cpufreq-cpu0`, `thermal-cpufreq-0`, ACPI's
`Processor`."""


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


class Brake(Struct, frozen=True):
    """A processor that the kernel throttles because of heat.

    Attributes:
        name: of the cooling device, such as `cpufreq-cpu0`.
        step, steps: current and highest step of throttling.
    """

    name: str
    step: int
    steps: int


def read_zones(folder: Path) -> list[Zone]:
    """Read the zones that have a temperature, hottest first."""
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
    """List the processors that are throttled now."""
    found = []
    for path in sorted(folder.glob("cooling_device*")):
        name, step = read_text(path / "type"), read_number(path / "cur_state")
        if step and any(part in name for part in _PROCESSORS):
            found.append(Brake(name, step, read_number(path / "max_state") or step))
    return found


def resident_mb() -> float:
    """Return the resident memory of this process, MB (2^20 bytes).

    Raises:
        OSError: it cannot be read, such as when this process may open no more files.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def temperature_c(zones: Path = Path("/") / THERMAL) -> float | None:
    """Return the temperature of the hottest thermal zone, °C; None: unknown."""
    return next((zone.temperature_c for zone in read_zones(zones)), None)


class OtherLoad:
    """Load of the processors by other programs since this object was made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        """Start counting."""
        self._stat = stat
        self._began, self._children = self._ticks(), _of_children()

    def share(self) -> float:
        """Return the share of all processors that was used, 0..1, without ended children of this process."""
        busy, all_ = (now - then for now, then in zip(self._ticks(), self._began, strict=True))
        own = (_of_children() - self._children) * os.sysconf("SC_CLK_TCK")
        return min(1.0, max(0.0, (busy - own) / all_)) if all_ > 0 else 0.0

    def _ticks(self) -> tuple[int, int]:
        """Return the ticks spent on work, and all ticks."""
        try:
            line = self._stat.read_text(encoding="ascii").partition("\n")[0]
            ticks = [int(part) for part in line.split()[1:9]]
        except (OSError, ValueError):
            return 0, 0
        idle = sum(ticks[3:5])
        return sum(ticks) - idle, sum(ticks)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


_CALM_C = 5.0
"""Overheating ends this far below the limit, °C: a board at its limit goes up and down by a degree or two."""


def is_hot(was: bool, celsius: float | None, warn_c: float) -> bool:
    """Return True if a board is too hot.

    Args:
        was: whether it was before.
        celsius: of its hottest zone, °C; None: unknown, and nothing changes.
        warn_c: temperature from which it is too hot, until it is 5 °C below, °C.
    """
    if celsius is None:
        return was
    return celsius >= warn_c or (was and celsius > warn_c - _CALM_C)


class TemperatureMonitor:
    """Logs overheating once when it starts and once when it ends.

    Attributes:
        celsius: of the hottest zone at the last reading, °C; None: unknown.
        hot: see `is_hot`.
    """

    def __init__(
        self,
        read: Callable[[], float | None] = temperature_c,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = 5.0,
    ) -> None:
        """Read nothing yet.

        Args:
            read: returns the temperature, °C; None: unknown.
            clock: monotonic, s.
            every_s: between two readings, s: a chip with its heat sink takes tens of seconds to warm up.
        """
        self.celsius: float | None = None
        self.hot = False
        self._read, self._clock, self._every_s = read, clock, every_s
        self._due_s = self._began_s = float("-inf")

    def poll(self, warn_c: float) -> None:
        """Read the temperature if it is time to, and log a change."""
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._every_s
        self.celsius = self._read()
        was_hot, self.hot = self.hot, is_hot(self.hot, self.celsius, warn_c)
        if self.hot and not was_hot:
            self._began_s = now_s
            log.warning(
                "the board is at %.1f °C (thermal.warn_c is %g): it may slow down; cool it, or reduce its load",
                self.celsius,
                warn_c,
            )
        elif was_hot and not self.hot:
            log.info("the board is at %.1f °C again, after %.0f s", self.celsius, now_s - self._began_s)


UNDER_VOLTAGE = "under-voltage"
_BITS = (UNDER_VOLTAGE, "the frequency is capped", "throttled", "the soft temperature limit is reached")
_EVER = 16
"""Shift of the bits for what has happened since the board started."""
_FIRMWARE = "sys/devices/platform/soc*/*firmware*/get_throttled"
"""`soc/soc:firmware` up to a Pi 4; with addresses on a Pi 5."""


class Supply(Struct, frozen=True):
    """Warnings of a Raspberry Pi's firmware about power and throttling: now, and earlier since the start."""

    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


def read_supply(root: Path = Path("/")) -> Supply | None:
    """Read the firmware's warnings from a file system with this root; None on boards but a Raspberry Pi."""
    for path in sorted(root.glob(_FIRMWARE)):
        bits = read_number(path, 16)
        if bits is not None:
            return decode_throttled(bits)
    for alarm in _alarms(root):
        return Supply((UNDER_VOLTAGE,) if alarm else ())
    return None


def decode_throttled(bits: int) -> Supply:
    """Decode the bits of `get_throttled`; unknown bits are ignored."""
    now = tuple(what for bit, what in enumerate(_BITS) if bits >> bit & 1)
    ever = tuple(what for bit, what in enumerate(_BITS) if bits >> bit + _EVER & 1)
    return Supply(now, tuple(what for what in ever if what not in now))


def _alarms(root: Path) -> Iterator[int]:
    """Read the upstream driver's alarms: nonzero if the voltage was too low in the last two seconds."""
    for path in sorted(root.glob("sys/class/hwmon/hwmon*")):
        alarm = read_number(path / "in0_lcrit_alarm")
        if read_text(path / "name") == "rpi_volt" and alarm is not None:
            yield alarm
