"""Power that the board takes: measured by a sensor where there is one, else estimated; and its battery.

Sources: https://docs.kernel.org/hwmon/sysfs-interface.html and ina2xx.html, ina3221.html beside it (in0 of an
INA2xx is the shunt's voltage, in1 that of the supply), https://docs.kernel.org/power/power_supply_class.html,
and for the rails of a Raspberry Pi 5 https://github.com/jfikar/RPi5-power (format of `vcgencmd pmic_read_adc`).
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from agent.board.proc import read_cpu_ticks, read_number, read_text
from agent.board.thermal import FIRMWARE, THERMAL, THROTTLING, UNDER_VOLTAGE, Supply, read_brakes, read_supply
from agent.board.vcgencmd import GET_THROTTLED, READ_PMIC, Ask, FirmwareQuery, has_firmware

log = logging.getLogger(__name__)

ESTIMATE = "estimate"
PMIC = "pmic"
_HWMON = "sys/class/hwmon/hwmon*"
_SUPPLIES = "sys/class/power_supply/*"
_SENSOR = re.compile(r"ina\d{3}\w*")
"""Names of the drivers for Texas Instruments' sensors of voltage and current."""
_WHOLE = ("vdd_in", "pom_5v_in", "vin")
"""Labels of a channel that the other channels are part of."""
_CHANNELS = range(1, 4)
_MOST_W = 1000.0
"""Largest power that is believed, W."""


class PowerReading(Struct, frozen=True):
    """Power that the board takes now.

    Attributes:
        watts: W.
        source: driver of the sensor, such as `ina219`; `pmic`: a Raspberry Pi 5's own, without what hangs on its
            5 V; `battery`; or `estimate`.
    """

    watts: float
    source: str

    @property
    def is_measured(self) -> bool:
        """True unless it is an estimate."""
        return self.source != ESTIMATE


def read_power(root: Path = Path("/"), ask: Ask = lambda _: "") -> PowerReading | None:
    """Read the power from the first sensor that gives one; None: there is none.

    Args:
        root: of the file system.
        ask: asks a Raspberry Pi's firmware.
    """
    for folder in sorted(root.glob(_HWMON)):
        name = read_text(folder / "name").lower()
        if _SENSOR.fullmatch(name) and (watts := _sensor_watts(folder)) is not None:
            return PowerReading(watts, name)
    watts = pmic_watts(ask(READ_PMIC))
    if watts is not None:
        return PowerReading(watts, PMIC)
    return next((PowerReading(watts, "battery") for watts in _discharging(root)), None)


def _sensor_watts(folder: Path) -> float | None:
    power = read_number(folder / "power1_input")
    if power is not None:
        return _believed(power / 1e6)
    channels = dict(_channels(folder))
    whole = [watts for label, watts in channels.items() if label in _WHOLE]
    return _believed(whole[0] if whole else sum(channels.values())) if channels else None


def _channels(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield label and power, W, of the channels of a sensor."""
    for channel in _CHANNELS:
        volts, amperes = (read_number(folder / f"{kind}{channel}_input") for kind in ("in", "curr"))
        if volts is not None and amperes is not None:
            label = read_text(folder / f"in{channel}_label").lower() or str(channel)
            yield label, abs(volts * amperes) / 1e6


def _believed(watts: float) -> float | None:
    return round(watts, 3) if 0.0 <= watts < _MOST_W else None


_RAIL = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([0-9.]+)[AV]\s*$", re.MULTILINE)


def pmic_watts(text: str) -> float | None:
    """Return the sum over all rails with voltage and current of `vcgencmd pmic_read_adc`, W; None: there is none.

    The real consumption is higher: the losses of the regulators are missing, and what runs on 5 V, such as USB
    devices.
    """
    rails: dict[str, dict[str, float]] = {}
    for name, unit, value in _RAIL.findall(text):
        try:
            rails.setdefault(name, {})[unit] = float(value)
        except ValueError:
            continue
    both = [rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2]
    return _believed(math.fsum(both)) if both else None


def firmware_commands(root: Path) -> Iterator[str]:
    """Yield the commands that are worth asking the firmware, where files do not tell."""
    if not has_firmware(root):
        return
    if not any(root.glob(FIRMWARE)):
        yield GET_THROTTLED
    if "bcm2712" in read_text(root / "proc/device-tree/compatible"):
        yield READ_PMIC


class Battery(Struct, frozen=True):
    """The board's battery.

    Attributes:
        percent: charge, 0 to 100; None: it does not tell.
        status: `charging`, `discharging`, `not charging`, `full` or `unknown`.
    """

    percent: int | None
    status: str


_STATUSES = ("charging", "discharging", "not charging", "full")


def _batteries(root: Path) -> Iterator[Path]:
    """Yield the folders of batteries that feed the board, not those of a mouse."""
    for folder in sorted(root.glob(_SUPPLIES)):
        is_battery = read_text(folder / "type") == "Battery" and read_text(folder / "scope") != "Device"
        if is_battery and read_text(folder / "present") != "0":
            yield folder


def read_battery(root: Path = Path("/")) -> Battery | None:
    """Read the first battery; None: there is none."""
    for folder in _batteries(root):
        percent, status = read_number(folder / "capacity"), read_text(folder / "status").lower()
        sane = percent is not None and 0 <= percent <= 100
        return Battery(percent if sane else None, status if status in _STATUSES else "unknown")
    return None


def _discharging(root: Path) -> Iterator[float]:
    """Yield the power that a battery gives while nothing charges it, W."""
    for folder in _batteries(root):
        if read_text(folder / "status") != "Discharging":
            continue
        power = read_number(folder / "power_now")
        volts, amperes = read_number(folder / "voltage_now"), read_number(folder / "current_now")
        if power is None and volts is not None and amperes is not None:
            power = round(volts * amperes / 1e6)
        watts = _believed(abs(power) / 1e6) if power is not None else None
        if watts:
            yield watts


class PowerModel(Struct, frozen=True):
    """Published power of a board, measured at its supply without USB devices.

    Attributes:
        idle_w: without load, W.
        busy_w: with all cores busy at their highest frequency, W.
        cores: number of cores.
        source: who measured it.
    """

    idle_w: float
    busy_w: float
    cores: int
    source: str

    @property
    def core_w(self) -> float:
        """Power that one busy core adds, W."""
        return (self.busy_w - self.idle_w) / self.cores

    def watts(self, busy_cores: float) -> float:
        """Return the power while so many cores are busy, W."""
        return self.idle_w + self.core_w * min(max(busy_cores, 0.0), self.cores)

    def joules(self, cpu_s: float, seconds: float) -> float:
        """Return the energy for so much processor time within a time, J."""
        return self.idle_w * seconds + self.core_w * cpu_s


_PIDRAMBLE = "J. Geerling, https://www.pidramble.com/wiki/benchmarks/power-consumption"
POWER_MODELS = {
    "raspberrypi,3-model-b": PowerModel(1.4, 3.7, 4, _PIDRAMBLE),
    "raspberrypi,3-model-b-plus": PowerModel(1.9, 5.1, 4, _PIDRAMBLE),
    "raspberrypi,4-model-b": PowerModel(2.7, 6.4, 4, _PIDRAMBLE),
    "raspberrypi,5-model-b": PowerModel(
        3.3, 9.8, 4, "J. Geerling on the 4 GB model, https://www.jeffgeerling.com/blog (August 2024)"
    ),
    "raspberrypi,model-zero-2-w": PowerModel(
        0.75, 2.33, 4, "T. Kaiser, https://github.com/ThomasKaiser/Knowledge, Quick_Review_of_RPi_Zero_2_W.md"
    ),
}
"""By name of the device tree. The figures are of `stress` or 7-Zip on all cores; others differ by a fifth."""


def power_model(root: Path = Path("/")) -> PowerModel | None:
    """Return the power model of this board; None: nothing was published that it knows."""
    names = read_text(root / "proc/device-tree/compatible").split("\0")
    return next((POWER_MODELS[name] for name in names if name in POWER_MODELS), None)


class BusyCores:
    """Number of cores that were busy on average between two calls, by all programs."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        """Count from now on."""
        self._stat = stat
        self._before = self._ticks()

    def poll(self) -> float | None:
        """Return the number of busy cores since the call before; None: no time has passed, or it is not told."""
        before, self._before = self._before, self._ticks()
        busy, all_ticks = self._before[0] - before[0], self._before[1] - before[1]
        if all_ticks <= 0 or not 0 <= busy <= all_ticks:
            return None
        return self._before[2] * busy / all_ticks

    def _ticks(self) -> tuple[int, int, int]:
        """Return the ticks spent on work, all ticks, and the number of cores."""
        cores = sum(line.startswith("cpu") for line in read_text(self._stat).splitlines()) - 1
        return *read_cpu_ticks(self._stat), max(0, cores)


class PowerMonitor:
    """Reads power, supply and battery now and then, and logs a weak supply once when it begins and when it ends.

    Attributes:
        power: newest reading or estimate; None: nothing is known.
        supply: warnings now, and earlier: since the board's start where a firmware counts them, else since the
            monitor's; None: the board gives no warnings.
        battery: None: there is none.
        measures_voltage: True if a firmware or kernel has told whether the voltage is high enough.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        every_s: float = 10.0,
        query: Callable[[str], FirmwareQuery] = FirmwareQuery,
    ) -> None:
        """Read nothing yet.

        Args:
            root: of the file system.
            clock: monotonic, s.
            every_s: between two readings, s.
            query: makes the query of a command to the firmware.
        """
        self.power: PowerReading | None = None
        self.supply: Supply | None = None
        self.battery: Battery | None = None
        self.measures_voltage = False
        self._root, self._clock, self._every_s = root, clock, every_s
        self._model, self._busy = power_model(root), BusyCores(root / "proc/stat")
        self._queries = {command: query(command) for command in firmware_commands(root)}
        self._due_s = float("-inf")
        self._weak_since_s: float | None = None
        self._seen: tuple[str, ...] = ()

    def poll(self) -> None:
        """Read what there is if it is time to, and log a change of the supply."""
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._every_s
        self.battery = read_battery(self._root)
        self.power = read_power(self._root, self._ask) or self._estimated()
        self.supply = self._read_supply()
        self._log_weakness(now_s)

    @property
    def is_weak(self) -> bool:
        """True while the voltage is too low."""
        return self._weak_since_s is not None

    def _ask(self, command: str) -> str:
        query = self._queries.get(command)
        return query.poll() if query else ""

    def _estimated(self) -> PowerReading | None:
        cores = self._busy.poll()
        if self._model is None or cores is None:
            return None
        return PowerReading(round(self._model.watts(cores), 2), ESTIMATE)

    def _read_supply(self) -> Supply | None:
        """Return the firmware's warnings, and that the kernel slows processors; earlier ones are kept."""
        found, slowed = read_supply(self._root, self._ask), bool(read_brakes(self._root / THERMAL))
        self.measures_voltage = self.measures_voltage or found is not None
        if found is None and not slowed and not self._seen:
            return None
        now = found.now if found else ()
        now += (THROTTLING,) if slowed and THROTTLING not in now else ()
        before = (*(found.before if found else ()), *self._seen)
        self._seen = tuple(dict.fromkeys((*self._seen, *now)))
        return Supply(now, tuple(dict.fromkeys(what for what in before if what not in now)))

    def _log_weakness(self, now_s: float) -> None:
        weak = self.supply is not None and UNDER_VOLTAGE in self.supply.now
        if weak and self._weak_since_s is None:
            self._weak_since_s = now_s
            log.warning("under-voltage: the board slows down, and may lose data: see `vedette guide power`")
        elif not weak and self._weak_since_s is not None:
            log.info("the voltage is high enough again, after %.0f s", now_s - self._weak_since_s)
            self._weak_since_s = None
