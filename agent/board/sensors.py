"""The board's sensors, read in threads of their own: a sensor that hangs stops nothing but its thread.

A bus that hangs (I²C) or a firmware that does not answer makes reading a file of `/sys` wait without end. The
sensors of the chip and those of power are read in two threads, so that one that hangs leaves the other.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from agent.board.firmware import GET_THROTTLED, THROTTLING, Ask, Firmware, Supply, ask_firmware, read_supply
from agent.board.power import Battery, PowerReading, read_battery, read_power
from agent.board.proc import file_in_reading
from agent.board.thermal import THERMAL, Brake, Zone, firmware_limit_c, read_brakes, read_zone_folders

log = logging.getLogger(__name__)
T = TypeVar("T")
_HANGS_S = 5.0
"""A reading that takes longer hangs, s."""
_FRESH_S = 5.0
"""A temperature is unknown when it is older, s."""
_FRESH_POWER_S = 15.0
SUPPLY_HELD_S = 60.0
"""Time for which the last warnings of a supply count while they cannot be read, s."""
HELD_S = 600.0
"""Time for which the last charge counts while a battery cannot be read, s."""
_FILE_S, _PROGRAM_S = 2.0, 5.0
"""Time between two readings of the firmware's warnings, s: of a file, and by a program that is started for it."""
_CHIP_S, _POWER_S, _FIRST_S = 1.0, 3.0, 0.5
"""Time between two readings of the chip, and of the power; longest wait for the first of them, s."""


class LastKnown(Generic[T]):
    """Keeps the last reading of a sensor for a time while it cannot be read."""

    def __init__(self, hold_s: float) -> None:
        """Know nothing yet; the last reading counts for `hold_s`."""
        self._hold_s, self._at_s = hold_s, 0.0
        self._last: T | None = None

    def update(self, reading: T | None, now_s: float) -> T | None:
        """Return this reading, or the last one if it cannot be read (None) now; None: that is too old."""
        if reading is not None:
            self._last, self._at_s = reading, now_s
        elif now_s - self._at_s > self._hold_s:
            self._last = None
        return self._last


_JUMP_C, _JUMP_C_PER_S = 10.0, 1.0
"""More than a chip usually changes within a second, °C; and what is added for each further second, °C/s."""
_APART_S = 0.5
"""A reading that comes earlier after the one that jumped does not confirm it, s."""


class ConfirmedTemperature:
    """Passes the readings of a zone on; one that jumps counts only when the next one is near it."""

    def __init__(self) -> None:
        """Know nothing yet: the first reading counts."""
        self._last: tuple[float, float] | None = None
        self._odd: tuple[float, float] | None = None

    def update(self, t_s: float, celsius: float) -> float:
        """Return the temperature that counts now, °C; `t_s` is monotonic, s."""
        reading, odd = (t_s, celsius), self._odd
        is_confirmed = odd is not None and t_s - odd[0] >= _APART_S and _is_near(odd, reading)
        if self._last is None or is_confirmed or _is_near(self._last, reading):
            self._last, self._odd = reading, None
            return celsius
        if odd is None or t_s - odd[0] >= _APART_S:
            self._odd = reading
        return self._last[1]


def _is_near(before: tuple[float, float], now: tuple[float, float]) -> bool:
    allowed_c = _JUMP_C + _JUMP_C_PER_S * max(0.0, now[0] - before[0] - 1.0)
    return abs(now[1] - before[1]) <= allowed_c


class ProcessorSensor:
    """Reads the processor's zones.

    A zone that cannot be read, or whose reading cannot be right, is left out, and logged once. A temperature that
    jumps counts when the next reading confirms it. `read_all` and `hottest` may be called from two threads.
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

    def read(self) -> Zone | None:
        """Read the zones, and return the hottest one."""
        return self.hottest(self.read_all())

    def read_all(self) -> dict[str, Zone]:
        """Read the zones, by the names of their folders."""
        zones = {key: zone for key, zone in read_zone_folders(self._folder).items() if zone.is_of_processor}
        self._log_faults(list(zones.values()))
        return {key: self._confirm(key, zone) for key, zone in zones.items() if zone.is_plausible}

    def hottest(self, zones: Mapping[str, Zone]) -> Zone | None:
        """Return the hottest zone, with the limit of the kernel or the firmware; None: there is none."""
        hottest = max(zones.values(), key=lambda zone: (zone.temperature_c, zone.name), default=None)
        if hottest is None or hottest.limit_c is not None:
            return hottest
        return Zone(hottest.name, hottest.temperature_c, self._limit_c)

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


class BackgroundReader(Generic[T]):
    """Calls a function again and again in a thread of its own, and has its newest value with its age."""

    def __init__(
        self, what: str, read: Callable[[], T], every_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare.

        Args:
            what: is read, for the log and the name of the thread, such as `power`.
            read: returns a value; may hang, or raise.
            every_s: pause between two calls, s.
            clock: monotonic, s.
        """
        self._what, self._read, self._every_s, self._clock = what, read, every_s, clock
        self._newest: tuple[T, float] | None = None
        self._began_s: float | None = None
        self._told_s: float | None = None
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=f"sensors-{what}", daemon=True)
        self._stop, self._first = threading.Event(), threading.Event()

    def start(self) -> None:
        """Read from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more; a call that hangs is left to itself."""
        self._stop.set()

    def wait_first(self, seconds: float) -> None:
        """Wait for the first reading, but no longer than this."""
        self._first.wait(seconds)

    def newest(self) -> tuple[T | None, float]:
        """Return the newest value and its age, s; None and infinite: there is none yet."""
        newest = self._newest
        return (None, math.inf) if newest is None else (newest[0], self._clock() - newest[1])

    @property
    def file(self) -> Path | None:
        """File that is being read now; None: none is."""
        return file_in_reading(self._thread.ident)

    def tell_hang(self) -> None:
        """Log once that a reading hangs, and once that it does no longer. For one thread."""
        began_s, now_s = self._began_s, self._clock()
        if began_s is None or now_s - began_s < _HANGS_S:
            if self._told_s is not None:
                log.info(
                    "sensors of the board (%s) can be read again, after %.0f s", self._what, now_s - self._told_s
                )
                self._told_s = None
        elif self._told_s is None:
            self._told_s = began_s
            log.warning(
                "sensors of the board (%s): %s has not answered for %.0f s; they are unknown until it does: see "
                "`vedette doctor`",
                self._what,
                self.file or "one",
                now_s - began_s,
            )

    def _run(self) -> None:
        while not self._stop.is_set():
            self._began_s = self._clock()
            try:
                self._newest = self._read(), self._clock()
            except Exception:
                if not self._has_failed:
                    log.exception(
                        "sensors of the board (%s): internal error (please report); going on", self._what
                    )
                self._has_failed = True
            self._began_s = None
            self._first.set()
            self._stop.wait(self._every_s)


def _new_warnings(read: Supply, before: Supply | None) -> Iterable[str]:
    """Return the warnings that hold, and those that have held between two readings for the first time."""
    known = (*before.now, *before.before) if before is not None else read.before
    return (*read.now, *(what for what in read.before if what not in known))


class ChipReading(Struct, frozen=True, gc=False):
    """Readings of the chip's own sensors.

    Attributes:
        zones: of its processors that can be read, by a key that stays.
        brakes: processors that the kernel slows down.
        supply: the firmware's warnings; None: there are none, or they are unknown.
    """

    zones: dict[str, Zone] = {}
    brakes: tuple[Brake, ...] = ()
    supply: Supply | None = None


class EnergyReading(Struct, frozen=True, gc=False):
    """Power that is measured, and the battery that counts; None: there is none, or it is unknown."""

    power: PowerReading | None = None
    battery: Battery | None = None


class BoardSensors:
    """Reads the sensors of the board: in threads from `start` on, before that whenever it is asked."""

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        ask: Ask = ask_firmware,
    ) -> None:
        """Read nothing yet.

        Args:
            root: of the file system.
            clock: monotonic, s.
            ask: asks the firmware.
        """
        self._root, self._clock = root, clock
        self._ask_chip, self._ask_power = (Firmware(root, ask, clock) for _ in range(2))  # one for each thread
        self._supply_every_s = _PROGRAM_S if GET_THROTTLED in self._ask_chip.commands else _FILE_S
        self._supply_due_s = float("-inf")
        self._supply_now: Supply | None = None
        self._supply_read: Supply | None = None
        self._warned: dict[str, None] = {}
        self._warned_lock = threading.Lock()
        self._last_supply, self._last_battery = LastKnown[Supply](SUPPLY_HELD_S), LastKnown[Battery](HELD_S)
        self._zones = ProcessorSensor(root, clock)
        self._chip = BackgroundReader("chip", self._read_chip, _CHIP_S, clock)
        self._energy = BackgroundReader("power", self._read_energy, _POWER_S, clock)
        self._is_started = False

    def start(self) -> None:
        """Read in threads from now on; wait half a second for the first readings."""
        self._is_started = True
        for reader in (self._chip, self._energy):
            reader.start()
        ends_s = time.monotonic() + _FIRST_S
        for reader in (self._chip, self._energy):
            reader.wait_first(max(0.0, ends_s - time.monotonic()))

    def stop(self) -> None:
        """Read no more."""
        for reader in (self._chip, self._energy):
            reader.stop()

    def tell_hangs(self) -> None:
        """Log what hangs, and what does no longer. For one thread, which calls it often."""
        for reader in (self._chip, self._energy):
            reader.tell_hang()

    def chip(self) -> ChipReading:
        """Return what the chip tells. Any thread may call this once `start` was called."""
        if not self._is_started:
            return self._read_chip()
        reading, age_s = self._chip.newest()
        if reading is None or age_s <= _FRESH_S:
            return reading or ChipReading()
        return ChipReading(supply=reading.supply if age_s <= SUPPLY_HELD_S else None)

    def energy(self) -> EnergyReading:
        """Return power and battery. Any thread may call this once `start` was called."""
        if not self._is_started:
            return self._read_energy()
        reading, age_s = self._energy.newest()
        if reading is None or age_s <= _FRESH_POWER_S:
            return reading or EnergyReading()
        return EnergyReading(battery=reading.battery if age_s <= HELD_S else None)

    def take_warnings(self) -> tuple[str, ...]:
        """Return the warnings of supply and heat of all readings since the call before, and forget them."""
        with self._warned_lock:
            warned, self._warned = self._warned, {}
        return tuple(warned)

    def hottest(self) -> Zone | None:
        """Return the processor's hottest zone, see `ProcessorSensor.hottest`. For one thread."""
        return self._zones.hottest(self.chip().zones)

    def _read_chip(self) -> ChipReading:
        brakes = tuple(read_brakes(self._root / THERMAL))
        if brakes:
            self._warn([THROTTLING])
        return ChipReading(self._zones.read_all(), brakes, self._supply())

    def _supply(self) -> Supply | None:
        now_s = self._clock()
        if now_s >= self._supply_due_s:
            self._supply_due_s = now_s + self._supply_every_s
            read = read_supply(self._root, self._ask_chip.ask)
            if read is not None:
                self._warn(_new_warnings(read, self._supply_read))
                self._supply_read = read
            self._supply_now = self._last_supply.update(read, now_s)
        return self._supply_now

    def _warn(self, warnings: Iterable[str]) -> None:
        with self._warned_lock:
            self._warned |= dict.fromkeys(warnings)

    def _read_energy(self) -> EnergyReading:
        return EnergyReading(read_power(self._root, self._ask_power.ask), self._battery())

    def _battery(self) -> Battery | None:
        """Return the battery; one whose charge cannot be read has its last one for ten minutes."""
        now = read_battery(self._root)
        last = self._last_battery.update(now if now is not None and now.is_known else None, self._clock())
        if last is None or now is None or now.status == "unknown":
            return last or now
        return replace(last, status=now.status, feeds_board=now.feeds_board)
