"""Power, supply and battery as the daemon tells them: taken now and then, with a weak supply logged once.

The sensors are read more often than that: a warning that has held at any reading since the one before is told.

What cannot be read is not told as being well: the last known trouble holds for a minute, and then it is unknown.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from agent.board.battery import Battery
from agent.board.power import ESTIMATE, BusyCores, PowerReading, power_model
from agent.board.sensors import BoardSensors
from agent.board.thermal import THROTTLING, UNDER_VOLTAGE, Supply
from agent.board.vcgencmd import FirmwareQuery

log = logging.getLogger(__name__)
_STRONG_S = 60.0
"""Time for which the voltage must be high enough until that is logged, s: it may come and go with the load."""


class PowerMonitor:
    """Reads power, supply and battery now and then, and logs a weak supply once when it begins and when it ends.

    Attributes:
        power: newest reading or estimate; None: nothing is known.
        supply: warnings now or since the reading before, and earlier: since the board's start where a firmware
            counts them, else since the monitor's; None: the board gives no warnings, or they have been unknown
            for a minute.
        battery: None: there is none.
        measures_voltage: True if a firmware or kernel has told whether the voltage is high enough.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        every_s: float = 10.0,
        query: Callable[[str], FirmwareQuery] = FirmwareQuery,
        sensors: BoardSensors | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            root: of the file system.
            clock: monotonic, s.
            every_s: between two readings, s.
            query: makes the query of a command to the firmware.
            sensors: that are read; None: those below `root`, when it is time to.
        """
        self.power: PowerReading | None = None
        self.supply: Supply | None = None
        self.battery: Battery | None = None
        self.measures_voltage = False
        self._clock, self._every_s = clock, every_s
        self._model, self._busy = power_model(root), BusyCores(root / "proc/stat")
        self._sensors = sensors or BoardSensors(root, clock, query, supply_every_s=0.0)
        self._due_s = float("-inf")
        self._weak_since_s: float | None = None
        self._strong_since_s: float | None = None
        self._times_weak = 0
        self._seen: tuple[str, ...] = ()
        self._is_strong = False

    def poll(self) -> None:
        """Read what there is if it is time to, and log a change of the supply."""
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._every_s
        energy = self._sensors.energy()
        self.battery, self.power = energy.battery, energy.power or self._estimated()
        self.supply = self._read_supply()
        self._log_weakness(now_s)

    def _estimated(self) -> PowerReading | None:
        cores = self._busy.poll()
        if self._model is None or cores is None:
            return None
        return PowerReading(round(self._model.watts(cores), 2), ESTIMATE)

    def _read_supply(self) -> Supply | None:
        """Return the firmware's warnings, and that the kernel slows processors; earlier ones are kept.

        What has held since the reading before holds now, so that a second of it is told.
        """
        chip, lately = self._sensors.chip(), self._sensors.take_warnings()
        found, braked = chip.supply, (THROTTLING,) if chip.brakes else ()
        self.measures_voltage = self.measures_voltage or found is not None
        now = tuple(dict.fromkeys((*(found.now if found else ()), *braked, *lately)))
        self._is_strong = found is not None and UNDER_VOLTAGE not in now
        if found is None and not now and (self.measures_voltage or not self._seen):
            return None
        before = (*(found.before if found else ()), *self._seen)
        self._seen = tuple(dict.fromkeys((*self._seen, *now)))
        return Supply(now, tuple(dict.fromkeys(what for what in before if what not in now)))

    def _log_weakness(self, now_s: float) -> None:
        if self.supply is not None and UNDER_VOLTAGE in self.supply.now:
            self._begin_weakness(now_s)
        elif self._is_strong and self._weak_since_s is not None:
            self._strong_since_s = now_s if self._strong_since_s is None else self._strong_since_s
            if now_s - self._strong_since_s >= _STRONG_S:
                self._end_weakness(self._strong_since_s - self._weak_since_s)

    def _begin_weakness(self, now_s: float) -> None:
        if self._weak_since_s is None:
            self._weak_since_s, self._times_weak = now_s, 1
            log.warning("under-voltage: the board slows down, and may lose data: see `vedette guide power`")
        elif self._strong_since_s is not None:
            self._times_weak += 1
        self._strong_since_s = None

    def _end_weakness(self, length_s: float) -> None:
        often = f", in which it was too low {self._times_weak} times" if self._times_weak > 1 else ""
        log.info("the voltage is high enough again, after %.0f s%s", length_s, often)
        self._weak_since_s = self._strong_since_s = None
