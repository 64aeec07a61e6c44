"""Temperature, throttling, power supply, and load of the board.

Sources: https://docs.kernel.org/driver-api/thermal/sysfs-api.html,
https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd (the bits of `get_throttled`),
https://docs.kernel.org/hwmon/raspberrypi-hwmon.html. The file `get_throttled` is of
drivers/firmware/raspberrypi.c in raspberrypi/linux, and not in the upstream kernel.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from agent.board.heat import PLAUSIBLE_C, HeatModel
from agent.board.proc import read_cpu_ticks, read_number, read_text
from agent.board.sensor_faults import ConfirmedTemperature, LostHeat
from agent.board.vcgencmd import GET_THROTTLED, Ask

log = logging.getLogger(__name__)

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


_WARM_C, LOST_S = 15.0, 600.0
"""A zone is warm from so far below its limit on, °C; one that was, and cannot be read, makes the temperature
unknown for so long, s."""


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
    """Read the zones that have a temperature that can be right, hottest first."""
    return [zone for zone in read_all_zones(folder) if zone.is_plausible]


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
    """Return the temperature of the processor's hottest thermal zone, °C; None: unknown."""
    return next((zone.temperature_c for zone in read_zones(zones) if zone.is_of_processor), None)


def firmware_limit_c(root: Path = Path("/")) -> float | None:
    """Return the temperature from which a Raspberry Pi's firmware throttles, °C; None: another board."""
    names = read_text(root / "proc/device-tree/compatible").split("\0")
    if not any(name.startswith("raspberrypi,") for name in names):
        return None
    return _SOFT_LIMIT_C if any("3-model-b-plus" in name for name in names) else USUAL_LIMIT_C


class ProcessorSensor:
    """Reads the processor's zones.

    A zone whose reading cannot be right is left out, and logged once. A temperature that jumps counts when the
    next reading confirms it. `read_all` and `hottest` may be called from two threads, each from one.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        """Read nothing yet.

        Args:
            root: of the file system.
            clock: monotonic, s.
        """
        self._folder, self._limit_c, self._clock = root / THERMAL, firmware_limit_c(root), clock
        self._faulty: set[str] = set()
        self._known: set[str] = set()
        self._confirmed: dict[str, ConfirmedTemperature] = {}
        self._lost = LostHeat[Zone](_WARM_C, LOST_S)

    def read(self) -> Zone | None:
        """Read the zones, and return the hottest one."""
        return self.hottest(self.read_all())

    def read_all(self) -> dict[str, Zone]:
        """Read the zones, by the names of their folders."""
        zones = {key: zone for key, zone in read_zone_folders(self._folder).items() if zone.is_of_processor}
        self._log_faults(list(zones.values()))
        return {key: self._confirm(key, zone) for key, zone in zones.items() if zone.is_plausible}

    def hottest(self, zones: Mapping[str, Zone]) -> Zone | None:
        """Return the hottest zone, with the limit of the kernel or the firmware.

        None: there is none now, or one that was warm cannot be read, and none that can is warm.
        """
        if self._lost.update(zones, self._limit_of, self._clock()) is not None:
            return None
        hottest = max(zones.values(), key=lambda zone: (zone.temperature_c, zone.name), default=None)
        if hottest is None or hottest.limit_c is not None:
            return hottest
        return Zone(hottest.name, hottest.temperature_c, self._limit_c)

    def _limit_of(self, zone: Zone) -> float:
        known = (limit for limit in (zone.limit_c, self._limit_c) if limit is not None)
        return next(known, USUAL_LIMIT_C)

    def _confirm(self, key: str, zone: Zone) -> Zone:
        confirmed = self._confirmed.setdefault(key, ConfirmedTemperature())
        celsius = confirmed.update(self._clock(), zone.temperature_c)
        return zone if celsius == zone.temperature_c else replace(zone, temperature_c=celsius)

    def _log_faults(self, zones: Sequence[Zone]) -> None:
        faults = {zone.name: f"reads {zone.temperature_c:g} °C" for zone in zones if not zone.is_plausible}
        right = {zone.name for zone in zones if zone.is_plausible}
        faults = {name: why for name, why in faults.items() if name not in right}
        faults |= dict.fromkeys(self._known - right - faults.keys(), "cannot be read")
        for name in sorted(faults.keys() - self._faulty):
            log.warning("thermal zone %s %s: left out", name, faults[name])
        for name in sorted(self._faulty & right):
            log.info("thermal zone %s can be read again", name)
        self._known |= right
        self._faulty = set(faults)


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
        return read_cpu_ticks(self._stat)


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
    """Logs overheating once when it starts and once when it ends, and foresees the temperature.

    Attributes:
        celsius: of the processor's hottest zone at the last reading, °C; None: unknown.
        limit_c: temperature from which that zone's processors are throttled, °C; None: unknown.
        hot: see `is_hot`.
        heat: slope and forecast, see `HeatModel`.
    """

    def __init__(
        self,
        read: Callable[[], Zone | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = 5.0,
    ) -> None:
        """Read nothing yet.

        Args:
            read: returns the hottest zone; None: unknown. Default: a `ProcessorSensor`.
            clock: monotonic, s.
            every_s: between two readings, s: a chip with its heat sink takes tens of seconds to warm up.
        """
        self.celsius: float | None = None
        self.limit_c: float | None = None
        self.hot = False
        self.heat = HeatModel()
        self._read, self._clock, self._every_s = read or ProcessorSensor().read, clock, every_s
        self._due_s = self._began_s = float("-inf")

    def poll(self, warn_c: float) -> None:
        """Read the temperature if it is time to, and log a change."""
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._every_s
        zone = self._read()
        self.celsius, self.limit_c = (zone.temperature_c, zone.limit_c) if zone else (None, self.limit_c)
        if zone:
            self.heat.add(now_s, zone.temperature_c)
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

    @property
    def slope_c_per_s(self) -> float:
        """Rise of the temperature, °C/s; 0 while unknown."""
        return 0.0 if self.celsius is None else self.heat.slope_c_per_s

    def forecast(self, horizon_s: float) -> float | None:
        """Return the temperature after a time under the present load, °C; None: unknown."""
        return None if self.celsius is None else self.heat.forecast(horizon_s)


UNDER_VOLTAGE, THROTTLING = "under-voltage", "throttled"
_BITS = (UNDER_VOLTAGE, "the frequency is capped", THROTTLING, "the soft temperature limit is reached")
_EVER = 16
"""Shift of the bits for what has happened since the board started."""
FIRMWARE = "sys/devices/platform/soc*/*firmware*/get_throttled"
"""`soc/soc:firmware` up to a Pi 4; with addresses on a Pi 5."""


class Supply(Struct, frozen=True):
    """Warnings of a Raspberry Pi's firmware about power and throttling: now, and earlier since the start."""

    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


def read_supply(root: Path = Path("/"), ask: Ask = lambda _: "") -> Supply | None:
    """Read the firmware's warnings; None on boards but a Raspberry Pi.

    Args:
        root: of the file system.
        ask: asks the firmware where the kernel has no file with its warnings; default: nobody does.
    """
    for path in sorted(root.glob(FIRMWARE)):
        bits = read_number(path, 16)
        if bits is not None:
            return decode_throttled(bits)
    if answer := re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", ask(GET_THROTTLED)):
        return decode_throttled(int(answer[1], 16))
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
