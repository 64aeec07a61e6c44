"""The board's batteries: charge, whether one feeds the board, and the power that it gives.

Sources: https://docs.kernel.org/power/power_supply_class.html, and
https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-power: a `status` is `Unknown`, `Charging`,
`Discharging`, `Not charging` or `Full`, and any file may be missing. A fuel gauge alone does not know of the
charger, and gives `Unknown`; a charger that has stopped gives `Not charging`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from agent.board.proc import read_number, read_text
from agent.board.sensor_faults import LastKnown

_SUPPLIES = "sys/class/power_supply/*"
_STATUSES = ("charging", "discharging", "not charging", "full")
_BATTERIES, _EXTERNAL = ("Battery", "UPS"), ("Mains", "USB", "Wireless")
_MOST_W = 1000.0
HELD_S = 600.0
"""Time for which the last charge counts while a battery cannot be read, s."""


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


def read_batteries(root: Path = Path("/")) -> dict[str, Battery]:
    """Read the batteries that are there, by name."""
    folders = [folder for folder in _battery_folders(root) if _is_present(folder)]
    fed = bool(folders) and _is_fed(root)
    return {folder.name: _read_one(folder, fed=fed) for folder in folders}


def _read_one(folder: Path, *, fed: bool) -> Battery:
    percent, status = read_number(folder / "capacity"), read_text(folder / "status").lower()
    status = status if status in _STATUSES else "unknown"
    feeds = status == "discharging" or (status in ("unknown", "not charging") and not fed)
    return Battery(percent if percent is not None and 0 <= percent <= 100 else None, status, feeds)


def most_important(batteries: Mapping[str, Battery]) -> Battery | None:
    """Return the one with the lowest known charge of those that feed the board; else one that tells it."""
    known = [one for one in batteries.values() if one.percent is not None]
    feeding = [one for one in known if one.feeds_board]
    if feeding:
        return min(feeding, key=lambda one: (one.percent or 0, one.status))
    return next(iter((*known, *batteries.values())), None)


def read_battery(root: Path = Path("/")) -> Battery | None:
    """Read the batteries, and return the one that counts; None: there is none."""
    return most_important(read_batteries(root))


class BatteryMonitor:
    """Reads the batteries. One that cannot be read keeps its last charge for ten minutes, and is logged once."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        """Read nothing yet.

        Args:
            root: of the file system.
            clock: monotonic, s.
        """
        self._root, self._clock = root, clock
        self._last: dict[str, LastKnown[Battery]] = {}

    def read(self) -> Battery | None:
        """Return the battery that counts, see `most_important`; None: there is none."""
        found, now_s = read_batteries(self._root), self._clock()
        for removed in [folder.name for folder in _battery_folders(self._root) if not _is_present(folder)]:
            self._last.pop(removed, None)
        batteries = {}
        for name in sorted(found.keys() | self._last.keys()):
            last = self._last.setdefault(name, LastKnown[Battery](f"battery {name}: its charge", HELD_S))
            reading = found.get(name)
            held = last.update(reading if reading is not None and reading.is_known else None, now_s)
            if (battery := held or reading) is not None:
                batteries[name] = self._as_fed_now(battery, reading)
        return most_important(batteries)

    def _as_fed_now(self, battery: Battery, reading: Battery | None) -> Battery:
        """Return a battery whose charge may be an old one: whether it feeds the board is known without it."""
        if reading is None:
            return replace(battery, feeds_board=battery.feeds_board and not _is_fed(self._root))
        if reading.status == "unknown":
            return battery
        return replace(battery, status=reading.status, feeds_board=reading.feeds_board)


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
