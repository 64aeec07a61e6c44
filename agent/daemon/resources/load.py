"""Reads the load and the heat of the board for the governor, once a second."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from agent.board.heat import HeatModel
from agent.board.power import read_battery
from agent.board.proc import read_cpu_ticks, read_memory
from agent.board.thermal import THERMAL, firmware_limit_c, read_brakes, read_supply, read_zones
from agent.compute.governor.readings import BoardReading
from agent.config import Config

_MARGIN_C = 3.0
"""The limit lies so far below the temperature at which the kernel throttles, °C."""
_WINDOWS = 2
"""Readings over which shares of processors are taken."""
_SLOW_CHECK_S = 2.0
"""Time between two questions to the firmware, s."""


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
    ) -> None:
        """Start.

        Args:
            root: of the file system with the board's sensors.
            clock: monotonic, s.
            ticks: see `read_ticks`.
            cores: processors; 0: those that this process may use.
        """
        self._root, self._clock, self._ticks = root, clock, ticks
        self._cores = cores or len(os.sched_getaffinity(0))
        self._known = deque([ticks()], maxlen=_WINDOWS + 1)
        self._heat = HeatModel()
        firmware_c = firmware_limit_c(root)
        self._firmware_limits = [] if firmware_c is None else [firmware_c]
        self._slowed, self._slowed_at = "", float("-inf")

    def load_changed(self) -> None:
        """Forget how the temperature went on: the load is another one from now on."""
        self._heat = HeatModel()

    def read(self, config: Config) -> BoardReading:
        """Return the board now; the limit is the configuration's."""
        self._known.append(self._ticks())
        first, last = self._known[0], self._known[-1]
        total = max(1e-3, last.total - first.total)
        idle = min(1.0, max(0.0, (last.idle - first.idle) / total))
        own = (last.own - first.own) / total
        celsius, limit_c = self._temperature(config)
        settles = limit_in = None
        if celsius is not None:
            self._heat.add(self._clock(), celsius)
            settles = self._heat.settles_at()
            left_s = self._heat.seconds_until(limit_c)
            limit_in = left_s if left_s != float("inf") else None
        others = min(1.0, max(0.0, 1.0 - idle - own))
        return BoardReading(
            self._cores,
            idle,
            others,
            celsius,
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

    def _temperature(self, config: Config) -> tuple[float | None, float]:
        zones = [zone for zone in read_zones(self._root / THERMAL) if zone.is_of_processor]
        limits = [zone.limit_c for zone in zones if zone.limit_c is not None] or self._firmware_limits
        limit_c = config.governor.max_temperature_c
        if limit_c is None:
            limit_c = min([config.thermal.warn_c, *(limit - _MARGIN_C for limit in limits)])
        return (zones[0].temperature_c if zones else None), limit_c

    def _why_slow(self) -> str:
        """Return why the hardware reduces its clock; empty: it does not, or that is unknown."""
        now_s = self._clock()
        if now_s - self._slowed_at >= _SLOW_CHECK_S:
            self._slowed_at, self._slowed = now_s, self._read_slowed()
        return self._slowed

    def _read_slowed(self) -> str:
        supply = read_supply(self._root)
        if supply is not None and supply.now:
            return f"the firmware reports: {', '.join(supply.now)}"
        if brakes := read_brakes(self._root / THERMAL):
            return f"the kernel has slowed {brakes[0].name} down"
        return ""
