"""Reads the load and the heat of the board for the governor, once a second."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from agent.board.heat import HeatModel
from agent.board.power import firmware_commands, read_battery
from agent.board.proc import read_cpu_ticks, read_memory
from agent.board.thermal import THERMAL, Zone, firmware_limit_c, read_brakes, read_supply, read_zones
from agent.board.vcgencmd import GET_THROTTLED, FirmwareQuery
from agent.compute.governor.readings import BoardReading
from agent.config import Config

_MARGIN_C = 3.0
"""The limit lies so far below the temperature at which the kernel throttles, °C."""
_WINDOWS = 2
"""Readings over which shares of processors are taken."""
_SLOW_CHECK_S, _ASK_S = 2.0, 5.0
"""Time between two readings of the firmware's warnings, s: of a file, and by a program that is started for it."""


class Ticks(Struct, frozen=True, gc=False):
    """Time that the processors have spent since the start of the board, s: in all, idle, and on this process."""

    total: float = 0.0
    idle: float = 0.0
    own: float = 0.0


def read_ticks(stat: Path = Path("/proc/stat")) -> Ticks:
    """Read the times of all processors; zeros if they cannot be read. Time of a hypervisor is not idle."""
    busy, everything = read_cpu_ticks(stat)
    if not everything:
        return Ticks()
    per_s = os.sysconf("SC_CLK_TCK")
    return Ticks(everything / per_s, (everything - busy) / per_s, time.process_time())


class BoardLoad:
    """Follows the load of the processors and the temperature. For one thread."""

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        ticks: Callable[[], Ticks] = read_ticks,
        cores: int = 0,
        query: Callable[[str], FirmwareQuery] = FirmwareQuery,
    ) -> None:
        """Start.

        Args:
            root: of the file system with the board's sensors.
            clock: monotonic, s.
            ticks: see `read_ticks`.
            cores: processors; 0: those that this process may use.
            query: makes the query of a command to the firmware, where no file has its warnings.
        """
        self._root, self._clock, self._ticks = root, clock, ticks
        self._cores = cores or len(os.sched_getaffinity(0))
        self._known = deque([ticks()], maxlen=_WINDOWS + 1)
        self._heat: dict[str, HeatModel] = {}
        self._firmware_c = firmware_limit_c(root)
        asks = GET_THROTTLED in firmware_commands(root)
        self._query = query(GET_THROTTLED) if asks else None
        self._slowed, self._slowed_at = "", float("-inf")

    def load_changed(self) -> None:
        """Forget how the temperature went on: the load is another one from now on."""
        self._heat = {}

    def read(self, config: Config) -> BoardReading:
        """Return the board now; the limit is the configuration's."""
        self._known.append(self._ticks())
        first, last = self._known[0], self._known[-1]
        total = max(1e-3, last.total - first.total)
        idle = min(1.0, max(0.0, (last.idle - first.idle) / total))
        own = (last.own - first.own) / total
        zone, limit_c = self._nearest_to_limit(config)
        settles = limit_in = None
        if zone is not None:
            heat = self._heat[zone.name]
            settles, left_s = heat.settles_at(), heat.seconds_until(limit_c)
            limit_in = left_s if left_s != float("inf") else None
        others = min(1.0, max(0.0, 1.0 - idle - own))
        return BoardReading(
            self._cores,
            idle,
            others,
            zone.temperature_c if zone is not None else None,
            limit_c,
            settles,
            limit_in,
            self._why_slow(),
            self._memory_free(),
            self._battery_percent(),
        )

    def _battery_percent(self) -> float | None:
        battery = read_battery(self._root)
        return battery.percent if battery is not None and battery.status == "discharging" else None

    def _memory_free(self) -> float | None:
        memory = read_memory(self._root)
        return memory.available_mb / memory.total_mb if memory.total_mb else None

    def _nearest_to_limit(self, config: Config) -> tuple[Zone | None, float]:
        """Return the zone that is nearest to its limit, and this limit, °C; no zone: the configured one."""
        zones = [zone for zone in read_zones(self._root / THERMAL) if zone.is_of_processor]
        for zone in zones:
            self._heat.setdefault(zone.name, HeatModel()).add(self._clock(), zone.temperature_c)
        nearest = max(zones, key=lambda one: one.temperature_c - self._limit_c(one, config), default=None)
        return nearest, self._limit_c(nearest, config)

    def _limit_c(self, zone: Zone | None, config: Config) -> float:
        if config.governor.max_temperature_c is not None:
            return config.governor.max_temperature_c
        limit_c = zone.limit_c if zone is not None and zone.limit_c is not None else self._firmware_c
        return config.thermal.warn_c if limit_c is None else min(config.thermal.warn_c, limit_c - _MARGIN_C)

    def _why_slow(self) -> str:
        """Return why the hardware reduces its clock; empty: it does not, or that is unknown."""
        now_s = self._clock()
        if now_s - self._slowed_at >= (_SLOW_CHECK_S if self._query is None else _ASK_S):
            self._slowed_at, self._slowed = now_s, self._read_slowed()
        return self._slowed

    def _read_slowed(self) -> str:
        supply = read_supply(self._root, self._ask)
        if supply is not None and supply.now:
            return f"the firmware reports: {', '.join(supply.now)}"
        if brakes := read_brakes(self._root / THERMAL):
            return f"the kernel has slowed {brakes[0].name} down"
        return ""

    def _ask(self, command: str) -> str:
        return self._query.poll() if self._query is not None and command == GET_THROTTLED else ""
