"""The board's sensors, read in threads of their own: a sensor that hangs stops nothing but its thread.

A bus that hangs (I²C) or a firmware that does not answer makes reading a file of `/sys` wait without end. The
sensors of the chip and those of power are read in two threads, so that one that hangs leaves the other.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from msgspec import Struct

from agent.board.battery import HELD_S, Battery, BatteryMonitor
from agent.board.power import PowerReading, firmware_commands, read_power
from agent.board.proc import file_in_reading
from agent.board.sensor_faults import LastKnown
from agent.board.thermal import (
    THERMAL,
    THROTTLING,
    Brake,
    ProcessorSensor,
    Supply,
    Zone,
    read_brakes,
    read_supply,
)
from agent.board.vcgencmd import GET_THROTTLED, FirmwareQuery

log = logging.getLogger(__name__)

T = TypeVar("T")

_HANGS_S = 5.0
"""A reading that takes longer hangs, s."""
_FRESH_S = 5.0
"""A temperature is unknown when it is older, s."""
_FRESH_POWER_S = 15.0
SUPPLY_HELD_S = 60.0
"""Time for which the last warnings of a supply count while they cannot be read, s."""
_FILE_S, _PROGRAM_S = 2.0, 5.0
"""Time between two readings of the firmware's warnings, s: of a file, and by a program that is started for it."""
_CHIP_S, _POWER_S, _FIRST_S = 1.0, 3.0, 0.5
"""Time between two readings of the chip, and of the power; longest wait for the first of them, s."""


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
        self._seen_hanging: float | None = None
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

    @property
    def is_busy(self) -> bool:
        """True while the function has not returned."""
        return self._began_s is not None

    def tell_hang(self) -> None:
        """Log once that a reading hangs, and once that it does no longer. For one thread, which calls it often.

        It must hang at two calls: a process that was stopped itself has not read meanwhile either.
        """
        began_s, now_s = self._began_s, self._clock()
        if began_s is None or now_s - began_s < _HANGS_S:
            self._seen_hanging = None
            if self._told_s is not None:
                log.info(
                    "sensors of the board (%s) can be read again, after %.0f s", self._what, now_s - self._told_s
                )
                self._told_s = None
        elif self._seen_hanging != began_s:
            self._seen_hanging = began_s
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
        query: Callable[[str], FirmwareQuery] = FirmwareQuery,
        supply_every_s: float | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            root: of the file system.
            clock: monotonic, s.
            query: makes the query of a command to the firmware.
            supply_every_s: between two readings of the firmware's warnings, s; None: as they cost.
        """
        self._root, self._clock = root, clock
        self._queries = {command: query(command) for command in firmware_commands(root)}
        usual_s = _PROGRAM_S if GET_THROTTLED in self._queries else _FILE_S
        self._supply_every_s = usual_s if supply_every_s is None else supply_every_s
        self._supply_due_s = float("-inf")
        self._supply_now: Supply | None = None
        self._supply_read: Supply | None = None
        self._warned: dict[str, None] = {}
        self._warned_lock = threading.Lock()
        self._last_supply = LastKnown[Supply]("the firmware's warnings of the supply", SUPPLY_HELD_S)
        self._zones, self._batteries = ProcessorSensor(root, clock), BatteryMonitor(root, clock)
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
            read = read_supply(self._root, self._ask)
            if read is not None:
                self._warn(_new_warnings(read, self._supply_read))
                self._supply_read = read
            self._supply_now = self._last_supply.update(read, now_s)
        return self._supply_now

    def _warn(self, warnings: Iterable[str]) -> None:
        with self._warned_lock:
            self._warned |= dict.fromkeys(warnings)

    def _read_energy(self) -> EnergyReading:
        return EnergyReading(read_power(self._root, self._ask), self._batteries.read())

    def _ask(self, command: str) -> str:
        query = self._queries.get(command)
        return query.poll() if query is not None else ""
