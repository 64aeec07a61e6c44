"""The reader of pictures: takes them from an open source at its pace, stamps them, and hands them on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from agent.capture.opening import Opening
from agent.capture.outage import Thinning
from agent.capture.pool import Pool
from agent.capture.source import Source, open_source
from agent.capture.uri import parse
from agent.config import CaptureConfig
from agent.messages import ChannelOrder, Image


class Stamp(NamedTuple):
    """When a picture was captured and read; see `Frame`."""

    captured_ns: int
    captured_at: datetime
    read_ns: int


Deliver = Callable[["Reader", Image, Stamp, ChannelOrder], bool]
"""Gets image, CLOCK_MONOTONIC in ns, UTC and order of each picture; False when no more are wanted."""


class Reader(Opening[Source]):
    """One opening of a source of pictures."""

    def __init__(
        self,
        uri: str,
        pool: Pool,
        deliver: Deliver,
        woken: threading.Event,
        *,
        config: CaptureConfig,
        name: str,
    ) -> None:
        super().__init__(uri, woken, name)
        self.goes_on = False
        self._pool, self._deliver = pool, deliver
        self._config, self._thinning = config, Thinning(config.max_fps)
        self._fast = parse(uri).keeps_all

    def _open(self) -> Source:
        return open_source(self._uri, stall_s=self._config.stall_s, login=self._config)

    def _read(self, source: Source) -> None:
        due_s, number, paced = time.monotonic(), 0, source.pace_s > 0
        while not self._abandoned.is_set():
            if paced:
                due_s = self._pace(due_s, source.pace_s)
            self._asked_ns = time.monotonic_ns()
            if not source.grab():
                return
            now_ns = time.monotonic_ns()
            recorded_s = number * source.period_s if self._fast else 0.0
            number += 1
            if number == 2:  # also where `max_fps` leaves it out
                self.goes_on = True
                self._woken.set()
            stamp = self._stamp(now_ns, recorded_s)
            if self._thinning.passes(stamp.captured_ns / 1e9) and not self._hand_on(source, stamp):
                return

    def _pace(self, due_s: float, pace_s: float) -> float:
        """Wait until a picture is due; the time at which the next one is."""
        now_s = time.monotonic()
        if due_s > now_s:
            self._asked_ns = 0
            self._abandoned.wait(due_s - now_s)
        return max(due_s, now_s - 1.0) + pace_s

    def _stamp(self, read_ns: int, recorded_s: float) -> Stamp:
        """Now; or, as far as recorded time is known and runs by itself, that time after the start."""
        now = datetime.now(UTC)
        if recorded_s <= 0.0:
            self._origin = Stamp(read_ns, now, read_ns)
            return self._origin
        captured_ns = self._origin.captured_ns + round(recorded_s * 1e9)
        return Stamp(captured_ns, self._origin.captured_at + timedelta(seconds=recorded_s), read_ns)

    def _hand_on(self, source: Source, stamp: Stamp) -> bool:
        image = source.picture(self._pool.take())
        self._asked_ns = 0
        wanted = self._deliver(self, image, stamp, source.order)
        self._count()
        return wanted
