"""Power that the board takes, measured by a sensor where there is one, else estimated; and its batteries.

Sources: https://docs.kernel.org/hwmon/sysfs-interface.html and ina2xx.html, ina3221.html beside it (in0 of an
INA2xx is the shunt's voltage, in1 that of the supply), https://docs.kernel.org/power/power_supply_class.html,
https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-power (a `status` is `Unknown`, `Charging`,
`Discharging`, `Not charging` or `Full`, and any file may be missing; a fuel gauge alone does not know of the
charger, and gives `Unknown`; a charger that has stopped gives `Not charging`), and for the rails of a
Raspberry Pi 5 https://github.com/jfikar/RPi5-power (format of `vcgencmd pmic_read_adc`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from agent.board.firmware import READ_PMIC, Ask
from agent.board.proc import read_number, read_text

ESTIMATE = "estimate"
PMIC = "pmic"
_HWMON = "sys/class/hwmon/hwmon*"
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
    return next((PowerReading(watts, "battery") for watts in discharging_w(root)), None)


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


_SUPPLIES = "sys/class/power_supply/*"
_STATUSES = ("charging", "discharging", "not charging", "full")
_BATTERIES, _EXTERNAL = ("Battery", "UPS"), ("Mains", "USB", "Wireless")


class Battery(Struct, frozen=True):
    """The board's battery.

    Attributes:
        percent: charge, 0 to 100; None: it does not tell.
        status: `charging`, `discharging`, `not charging`, `full` or `unknown`.
        feeds_board: True if it discharges, or is neither charging nor full while no other supply is online.
    """

    percent: int | None
    status: str
    feeds_board: bool = False

    @property
    def is_known(self) -> bool:
        """True if it tells its charge, or that it is being charged."""
        return self.percent is not None or self.status in ("charging", "full")


def _battery_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of batteries that feed the board, not those of a mouse."""
    for folder in sorted(root.glob(_SUPPLIES)):
        if read_text(folder / "type") in _BATTERIES and read_text(folder / "scope") != "Device":
            yield folder


def _is_present(folder: Path) -> bool:
    return read_text(folder / "present") != "0"


def _is_fed(root: Path) -> bool:
    """Return True if a supply that is no battery is online: 1, or 2 for a programmable one."""
    return any(
        (read_number(folder / "online") or 0) > 0
        for folder in root.glob(_SUPPLIES)
        if read_text(folder / "type").startswith(_EXTERNAL)
    )


def read_battery(root: Path = Path("/")) -> Battery | None:
    """Return the battery with the lowest known charge, if possible one that feeds the board; None: none."""
    folders = [folder for folder in _battery_folders(root) if _is_present(folder)]
    fed = bool(folders) and _is_fed(root)
    return min(
        (_read_one(folder, fed=fed) for folder in folders),
        key=lambda one: (one.percent is None, not one.feeds_board, one.percent or 0),
        default=None,
    )


def _read_one(folder: Path, *, fed: bool) -> Battery:
    percent, status = read_number(folder / "capacity"), read_text(folder / "status").lower()
    status = status if status in _STATUSES else "unknown"
    feeds = status == "discharging" or (status in ("unknown", "not charging") and not fed)
    return Battery(percent if percent is not None and 0 <= percent <= 100 else None, status, feeds)


def discharging_w(root: Path) -> Iterator[float]:
    """Yield the power that a battery gives while nothing charges it, W."""
    for folder in _battery_folders(root):
        if not _is_present(folder) or read_text(folder / "status") != "Discharging":
            continue
        power = read_number(folder / "power_now")
        volts, amperes = read_number(folder / "voltage_now"), read_number(folder / "current_now")
        if power is None and volts is not None and amperes is not None:
            power = round(volts * amperes / 1e6)
        watts = abs(power) / 1e6 if power is not None else 0.0
        if 0.0 < watts < _MOST_W:
            yield round(watts, 3)
