"""The board's state while the daemon runs: temperature, supply, power and load, with a change logged once.

Source of threads' times: https://man7.org/linux/man-pages/man5/proc.5.html (`/proc/[pid]/task/[tid]/stat`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from agent.board.firmware import THROTTLING, UNDER_VOLTAGE, Supply
from agent.board.power import ESTIMATE, Battery, PowerReading, power_model
from agent.board.proc import read_text
from agent.board.processors import Ticks, read_ticks
from agent.board.sensors import BoardSensors, ProcessorSensor
from agent.board.thermal import Zone

log = logging.getLogger(__name__)
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
        celsius: of the processor's hottest zone at the last reading, °C; None: unknown.
        limit_c: temperature from which that zone's processors are throttled, °C; None: unknown.
        hot: see `is_hot`.
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
        sensors: BoardSensors | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            root: of the file system.
            clock: monotonic, s.
            every_s: between two readings, s.
            sensors: that are read; None: those below `root`, when it is time to.
        """
        self.power: PowerReading | None = None
        self.supply: Supply | None = None
        self.battery: Battery | None = None
        self.measures_voltage = False
        self._clock, self._every_s = clock, every_s
        self._model, self._stat = power_model(root), root / "proc/stat"
        self._ticks = read_ticks(self._stat)
        self._sensors = sensors or BoardSensors(root, clock)
        self._due_s = float("-inf")
        self._weak_since_s: float | None = None
        self._strong_since_s: float | None = None
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
        before, self._ticks = self._ticks, read_ticks(self._stat)
        busy = busy_share(before, self._ticks)
        if self._model is None or busy is None:
            return None
        return PowerReading(round(self._model.watts(self._model.cores * busy), 2), ESTIMATE)

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
                length_s = self._strong_since_s - self._weak_since_s
                log.info("the voltage is high enough again, after %.0f s", length_s)
                self._weak_since_s = self._strong_since_s = None

    def _begin_weakness(self, now_s: float) -> None:
        if self._weak_since_s is None:
            self._weak_since_s = now_s
            log.warning("under-voltage: the board slows down, and may lose data: see `vedette guide power`")
        self._strong_since_s = None


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def thread_seconds(tasks: Path = Path("/proc/self/task")) -> dict[int, float]:
    """Return the processor time of each thread of this process by its native id, s, in steps of 10 ms.

    Raises OSError if they cannot be listed.
    """
    times = {}
    for path in tasks.iterdir():
        # The second field is a name that may hold anything, also spaces and parentheses.
        fields = read_text(path / "stat").rpartition(")")[2].split()
        if len(fields) > 12 and fields[11].isdigit() and fields[12].isdigit():
            times[int(path.name)] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return times


def thread_names() -> dict[int, str]:
    """Return the names of Python's threads by their native ids."""
    return {one.native_id: one.name for one in threading.enumerate() if one.native_id is not None}


_THREADS = ("stream-", "capture-", "read-", "clips-", "shadow-", "reject-")
"""Beginnings of the names of a stream's threads."""


def _stream_of(thread: str) -> str | None:
    return next((thread.removeprefix(one) for one in _THREADS if thread.startswith(one)), None)


class LoadMeter:
    """Processor time of the streams' threads and of the board: totals for scrapes, shares for health messages.

    Threads belong to a stream by their names, such as `stream-front` and `clips-front`. What a thread used
    between the last call and its end is not known. Any thread may call `stream_seconds`; `shares` is for the
    daemon's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[str, float]] = {}
        self._totals: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._at, self._board = time.monotonic(), read_ticks()

    def stream_seconds(self, streams: set[str]) -> dict[str, float]:
        """Return the processor time of each stream's threads since the start, s; other streams are forgotten."""
        with suppress(OSError):  # no descriptor is free: what is known stays
            return self.add(streams, thread_seconds(), thread_names())
        with self._lock:
            return dict(self._totals)

    def add(self, streams: set[str], seconds: Mapping[int, float], names: Mapping[int, str]) -> dict[str, float]:
        """Add what each thread has used since the last call, see `thread_seconds` and `thread_names`."""
        with self._lock:
            for thread, used in seconds.items():
                stream = _stream_of(names.get(thread, ""))
                if stream is None:
                    continue
                name, before = self._seen.get(thread, ("", 0.0))
                if name != stream or used < before:  # the kernel has given the number to a new thread
                    before = 0.0
                self._seen[thread] = stream, used
                self._totals[stream] = self._totals.get(stream, 0.0) + used - before
            self._seen = {thread: seen for thread, seen in self._seen.items() if thread in seconds}
            self._totals = {name: total for name, total in self._totals.items() if name in streams}
            return dict(self._totals)

    def shares(self, streams: set[str]) -> tuple[dict[str, float], float | None]:
        """Return the processors that each stream used since the last call, and the share of all that was busy."""
        now, board, totals = time.monotonic(), read_ticks(), self.stream_seconds(streams)
        seconds = max(1e-3, now - self._at)
        used = {name: total - self._before.get(name, 0.0) for name, total in totals.items()}
        busy = busy_share(self._board, board)
        self._before, self._at, self._board = totals, now, board
        shares = {name: round(max(0.0, one) / seconds, 3) for name, one in used.items()}
        return shares, None if busy is None else round(busy, 3)


def busy_share(before: Ticks, now: Ticks) -> float | None:
    """Return the share of all processors that was busy between two readings, 0..1; None: unknown."""
    total = now.total - before.total
    return None if total <= 0.0 else min(1.0, max(0.0, 1.0 - (now.idle - before.idle) / total))


class BoardMonitor:
    """Follows the board. Only the daemon's thread polls; any thread may read.

    Attributes:
        sensors: of the board; until they are started, they are read whenever they are asked.
        heat: its temperature.
        power: its supply, the power that it takes, and its battery.
        load: of its processors.
    """

    def __init__(self) -> None:
        self.sensors = BoardSensors()
        self.heat, self.power = TemperatureMonitor(self.sensors.hottest), PowerMonitor(sensors=self.sensors)
        self.load = LoadMeter()
