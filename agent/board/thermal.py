"""Heat: thermal zones, and what the kernel slows because of them.

Source: https://docs.kernel.org/driver-api/thermal/sysfs-api.html
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

THERMAL = Path("sys/class/thermal")
"""Below the root of the file system."""
_SLOWS = ("passive", "hot")
"""Types of trip points beyond which the kernel slows what is hot."""
_PROCESSORS = ("cpufreq", "Processor")
"""Prefixes or parts of the types of the processors' cooling devices: `cpufreq-cpu0`, older
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


# Readings of the board and of this process, from `/proc` and `/sys`. None where a board does not tell.


def resident_mb() -> float:
    """Resident memory of this process, MB (2^20 bytes).

    Raises:
        OSError: it cannot be read, as when this process may open no more files.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def temperature_c(zones: Path = Path("/") / THERMAL) -> float | None:
    """Hottest thermal zone, °C.

    Raises:
        OSError: as above.
    """
    return next((zone.temperature_c for zone in read_zones(zones)), None)


class Busy:
    """How busy others keep the processor, from now on."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        """Begin to count.

        Args:
            stat: the kernel's, see `man 5 proc_stat`.
        """
        self._stat = stat
        self._began, self._children = self._ticks(), _of_children()

    def others(self) -> float:
        """Share of all processors that others than ended children of this process have used, 0..1."""
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


# Heat: whether the board is too warm, told once when it begins and once when it is over.

log = logging.getLogger(__name__)

_CALM_C = 5.0
"""So far below the limit it must be to be over: a board at its limit goes up and down by a degree or two."""
_EVERY_S = 5.0
"""Between two readings: a chip with its heat sink takes tens of seconds to warm up."""


def is_hot(was: bool, celsius: float | None, warn_c: float) -> bool:
    """Return True if a board is hot now.

    Args:
        was: whether it was before.
        celsius: its hottest zone, °C; None: it does not tell, and is what it was.
        warn_c: from which on it is, °C; until it is 5 °C below.
    """
    if celsius is None:
        return was
    return celsius >= warn_c or (was and celsius > warn_c - _CALM_C)


class Heat:
    """Watches the temperature.

    Attributes:
        celsius: hottest zone at the last reading, °C; None: the board does not tell.
        hot: whether it has passed the limit and is not 5 °C below it again.
    """

    def __init__(
        self, read: Callable[[], float | None] = temperature_c, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is read before `look`.

        Args:
            read: gives the temperature, °C.
            clock: s.
        """
        self.celsius: float | None = None
        self.hot = False
        self._read, self._clock = read, clock
        self._due_s = self._began_s = float("-inf")

    def look(self, warn_c: float) -> None:
        """Read the temperature if it is time to, and log a change.

        Args:
            warn_c: from which on it is hot, °C.
        """
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _EVERY_S
        self.celsius = self._read()
        was, self.hot = self.hot, is_hot(self.hot, self.celsius, warn_c)
        if self.hot and not was:
            self._began_s = now_s
            log.warning(
                "the board is at %.1f °C (thermal.warn_c is %g): it may slow down; give it air, or less to do",
                self.celsius,
                warn_c,
            )
        elif was and not self.hot:
            log.info("the board is at %.1f °C again, after %.0f s", self.celsius, now_s - self._began_s)


# Whether a Raspberry Pi gets enough power, as its firmware tells the kernel: nothing needs `vcgencmd`.
#
# Sources: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd (the bits of `get_throttled`),
# https://docs.kernel.org/hwmon/raspberrypi-hwmon.html. The file `get_throttled` holds the bits in hexadecimal; it
# is of drivers/firmware/raspberrypi.c of raspberrypi/linux, and not in the upstream kernel.

UNDER_VOLTAGE = "under-voltage"
_BITS = (UNDER_VOLTAGE, "the frequency is capped", "throttled", "the soft temperature limit is reached")
_EVER = 16
"""Shift of the bits that say the same has happened since the board started."""
_FIRMWARE = "sys/devices/platform/soc*/*firmware*/get_throttled"
"""`soc/soc:firmware` up to a Pi 4; with addresses on a Pi 5."""


class Supply(Struct, frozen=True):
    """Complaints of the firmware about the power supply and throttling.

    Attributes:
        now: at present. before: earlier, since the board has started.
    """

    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


def read_supply(root: Path = Path("/")) -> Supply | None:
    """Read the firmware's complaints; None where the kernel does not pass them on (any board but a Pi).

    Args:
        root: of the file system.
    """
    for path in sorted(root.glob(_FIRMWARE)):
        bits = read_number(path, 16)
        if bits is not None:
            return told(bits)
    for alarm in _alarms(root):
        return Supply((UNDER_VOLTAGE,) if alarm else ())
    return None


def told(bits: int) -> Supply:
    """Decode the bits of `get_throttled`; bits other than the eight known ones are left out."""
    now = tuple(what for bit, what in enumerate(_BITS) if bits >> bit & 1)
    ever = tuple(what for bit, what in enumerate(_BITS) if bits >> bit + _EVER & 1)
    return Supply(now, tuple(what for what in ever if what not in now))


def _alarms(root: Path) -> Iterator[int]:
    """Read the upstream driver's alarms: nonzero if the voltage was too low in the last two seconds."""
    for path in sorted(root.glob("sys/class/hwmon/hwmon*")):
        alarm = read_number(path / "in0_lcrit_alarm")
        if read_text(path / "name") == "rpi_volt" and alarm is not None:
            yield alarm
