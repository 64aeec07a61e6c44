"""Measurements of the board, and the load of its processors: for health messages and for features."""

from __future__ import annotations

import time

from agent.board.cpu import StreamCpuMeter, thread_names, thread_seconds
from agent.board.power_monitor import PowerMonitor
from agent.board.processors import Ticks, read_ticks
from agent.board.sensors import BoardSensors
from agent.board.thermal import TemperatureMonitor

_THREADS = ("stream-", "capture-", "read-", "clips-", "shadow-", "reject-")
"""Beginnings of the names of a stream's threads."""


class LoadMeter:
    """Processor time of the streams' threads and of the board: totals for scrapes, shares for health messages.

    Any thread may call `stream_seconds`; `shares` is for the daemon's thread.
    """

    def __init__(self) -> None:
        self._threads = StreamCpuMeter()
        self._before: dict[str, float] = {}
        self._at, self._board = time.monotonic(), read_ticks()

    def stream_seconds(self, streams: set[str]) -> dict[str, float]:
        """Return the processor time of each stream's threads since the start, s."""
        self._threads.forget(streams)
        return self._threads.poll(_THREADS, thread_seconds(), thread_names())

    def shares(self, streams: set[str]) -> tuple[dict[str, float], float | None]:
        """Return the processors that each stream used since the last call, and the share of all that was busy."""
        now, board, totals = time.monotonic(), read_ticks(), self.stream_seconds(streams)
        seconds = max(1e-3, now - self._at)
        used = {name: total - self._before.get(name, 0.0) for name, total in totals.items()}
        busy = _busy_share(self._board, board)
        self._before, self._at, self._board = totals, now, board
        shares = {name: round(max(0.0, one) / seconds, 3) for name, one in used.items()}
        return shares, None if busy is None else round(busy, 3)


def _busy_share(before: Ticks, now: Ticks) -> float | None:
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
