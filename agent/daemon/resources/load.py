"""Reads the load and the heat of the board for the governor, once a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from agent.board.heat import HeatModel
from agent.board.proc import read_memory
from agent.board.processors import Quota, Ticks, read_quota, read_ticks, usable_processors
from agent.board.sensor_faults import LostHeat
from agent.board.sensors import BoardSensors, ChipReading
from agent.board.thermal import Zone, firmware_limit_c
from agent.board.vcgencmd import FirmwareQuery
from agent.compute.governor.pace import BLIND_S
from agent.compute.governor.readings import BoardReading
from agent.compute.governor.trouble import COLD_C
from agent.config import Config

_MARGIN_C = 3.0
"""The limit lies so far below the temperature at which the kernel throttles, °C."""
_WINDOWS = 2
"""Readings over which shares of processors are taken."""
_QUOTA_S = 10.0
"""Time between two searches for a quota while there is none, s."""


class UsableTicks:
    """Reads the times of the processors that this process may use, and its quota.

    Without a quota it is looked for every ten seconds: the files of all groups take most of a millisecond.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        """Read nothing yet.

        Args:
            root: of the file system.
            clock: monotonic, s.
        """
        self._root, self._clock = root, clock
        self._quota: Quota | None = None
        self._due_s = float("-inf")

    def read(self) -> Ticks:
        """Return the times until now."""
        now_s, usable = self._clock(), usable_processors()
        if self._quota is not None or now_s >= self._due_s:
            self._quota, self._due_s = read_quota(self._root), now_s + _QUOTA_S
        ticks = read_ticks(self._root / "proc/stat", usable)
        return Ticks(ticks.total, ticks.idle, ticks.own, usable, self._quota, now_s)


class ProcessorShares(Struct, frozen=True, gc=False):
    """Shares of the processors in a window, 0..1.

    Attributes:
        idle: what this process may still use: its quota may leave less than was idle.
        others: used by other programs.
        quota: processors that this process may use; None: all of them.
    """

    idle: float
    others: float
    quota: float | None = None


def processor_shares(first: Ticks, last: Ticks, cores: int) -> ProcessorShares:
    """Return how processors were used between two readings of the same ones."""
    total = max(1e-3, last.total - first.total)
    idle = min(1.0, max(0.0, (last.idle - first.idle) / total))
    own = (last.own - first.own) / total
    others = min(1.0, max(0.0, 1.0 - idle - own))
    if last.quota is None or last.quota.processors >= cores:
        return ProcessorShares(idle, others)
    left = last.quota.processors - _used(first, last)
    return ProcessorShares(min(idle, max(0.0, left / cores)), others, last.quota.processors)


def _used(first: Ticks, last: Ticks) -> float:
    """Return the processors that a quota's group used; where that is not known, what this process did."""
    seconds, used_s = last.at_s - first.at_s, last.own - first.own
    if first.quota is not None and last.quota is not None and first.quota.group == last.quota.group:
        before, now = first.quota.used_s, last.quota.used_s
        used_s = now - before if before is not None and now is not None else used_s
    return used_s / seconds if seconds > 0.0 else 0.0


class BoardLoad:
    """Follows the load of the processors and the temperature. For one thread."""

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        ticks: Callable[[], Ticks] | None = None,
        cores: int = 0,
        query: Callable[[str], FirmwareQuery] = FirmwareQuery,
        sensors: BoardSensors | None = None,
    ) -> None:
        """Start.

        Args:
            root: of the file system with the board's sensors.
            clock: monotonic, s.
            ticks: returns the times of the processors until now; None: see `UsableTicks`.
            cores: processors; 0: those that this process may use.
            query: makes the query of a command to the firmware, where no file has its warnings.
            sensors: of the board; None: those below `root`, read whenever this is.
        """
        self._root, self._clock, self._cores = root, clock, cores
        self._ticks = ticks or UsableTicks().read
        self._known = deque([self._ticks()], maxlen=_WINDOWS + 1)
        self._heat: dict[str, HeatModel] = {}
        self._firmware_c = firmware_limit_c(root)
        self._sensors = sensors or BoardSensors(root, clock, query)
        self._lost, self._had_supply = LostHeat[Zone](COLD_C, BLIND_S), False

    def load_changed(self) -> None:
        """Forget how the temperature went on: the load is another one from now on."""
        self._heat = {}

    def read(self, config: Config) -> BoardReading:
        """Return the board now; the limit is the configuration's."""
        now = self._ticks()
        if now.usable != self._known[-1].usable:
            self._known.clear()
        self._known.append(now)
        cores = self._cores or len(now.usable) or len(usable_processors())
        shares = processor_shares(self._known[0], now, cores)
        chip = self._sensors.chip()
        zone, limit_c = self._nearest_to_limit(chip, config)
        return BoardReading(
            cores,
            shares.idle,
            shares.others,
            zone.temperature_c if zone is not None else None,
            limit_c,
            *self._forecast(zone, limit_c),
            _why_slow(chip),
            self._memory_free(),
            self._battery_percent(),
            shares.quota,
            self._is_supply_known(chip),
        )

    def _is_supply_known(self, chip: ChipReading) -> bool:
        self._had_supply = self._had_supply or chip.supply is not None
        return chip.supply is not None or not self._had_supply

    def _forecast(self, zone: Zone | None, limit_c: float) -> tuple[float | None, float | None]:
        """Return the temperature that the load leads to, °C, and the time until the limit, s; None: unknown."""
        if zone is None:
            return None, None
        heat = self._heat[zone.name]
        left_s = heat.seconds_until(limit_c)
        return heat.settles_at(), left_s if left_s != float("inf") else None

    def _battery_percent(self) -> float | None:
        battery = self._sensors.energy().battery
        return battery.percent if battery is not None and battery.feeds_board else None

    def _memory_free(self) -> float | None:
        memory = read_memory(self._root)
        return memory.available_mb / memory.total_mb if memory.total_mb else None

    def _nearest_to_limit(self, chip: ChipReading, config: Config) -> tuple[Zone | None, float]:
        """Return the zone that is nearest to its limit, and this limit, °C; no zone: the configured one.

        A zone that was warm and cannot be read makes the temperature unknown, unless another one is warm.
        """
        now_s = self._clock()
        for zone in chip.zones.values():
            self._heat.setdefault(zone.name, HeatModel()).add(now_s, zone.temperature_c)
        lost = self._lost.update(chip.zones, lambda zone: self._limit_c(zone, config), now_s)
        if lost is not None:
            return None, self._limit_c(lost, config)
        nearest = max(
            chip.zones.values(), key=lambda one: one.temperature_c - self._limit_c(one, config), default=None
        )
        return nearest, self._limit_c(nearest, config)

    def _limit_c(self, zone: Zone | None, config: Config) -> float:
        if config.governor.max_temperature_c is not None:
            return config.governor.max_temperature_c
        limit_c = zone.limit_c if zone is not None and zone.limit_c is not None else self._firmware_c
        return config.thermal.warn_c if limit_c is None else min(config.thermal.warn_c, limit_c - _MARGIN_C)


def _why_slow(chip: ChipReading) -> str:
    """Return why the hardware reduces its clock; empty: it does not, or that is unknown."""
    if chip.supply is not None and chip.supply.now:
        return f"the firmware reports: {', '.join(chip.supply.now)}"
    return f"the kernel has slowed {chip.brakes[0].name} down" if chip.brakes else ""
