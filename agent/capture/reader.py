"""One opening of a source: the thread that opens it, reads it to its end or failure, and closes it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from agent.capture.outage import Thinning
from agent.capture.pool import Pool
from agent.capture.source import Source, open_source
from agent.capture.uri import mask, parse
from agent.errors import SourceError
from agent.messages import ChannelOrder, Image


class Stamp(NamedTuple):
    """When a picture was captured and read; see `Frame`."""

    captured_ns: int
    captured_at: datetime
    read_ns: int


Deliver = Callable[["Reader", Image, Stamp, ChannelOrder], bool]
"""Gets image, CLOCK_MONOTONIC in ns, UTC and order of each picture; False when no more are wanted."""


class Reader:
    """Reads in a thread of its own, so that whoever started it never waits for a device.

    Attributes:
        frames: pictures delivered.
        about: size and rate of the source, once it is open.
        error: what it ended with.
        over: it will deliver nothing more.
    """

    def __init__(
        self,
        uri: str,
        pool: Pool,
        deliver: Deliver,
        woken: threading.Event,
        *,
        stall_s: float,
        max_fps: float,
        name: str,
    ) -> None:
        self._uri, self._pool, self._deliver, self._woken = uri, pool, deliver, woken
        self._stall_s, self._thinning = stall_s, Thinning(max_fps)
        self._fast = parse(uri).keeps_all
        self._abandoned = threading.Event()
        self._asked_ns = time.monotonic_ns()
        self.frames, self.about, self.over = 0, "", False
        self.error: SourceError | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Open and read."""
        self._asked_ns = time.monotonic_ns()
        self._thread.start()

    def waiting_s(self) -> float:
        """For how long the source has owed us an answer, s; 0 while we are the ones who are busy."""
        asked_ns = self._asked_ns
        return (time.monotonic_ns() - asked_ns) / 1e9 if asked_ns else 0.0

    def abandon(self) -> None:
        """Not wanted any more: it closes its source as soon as the source answers."""
        self._abandoned.set()

    def join(self, timeout_s: float) -> bool:
        """Whether its thread has come to its end in time, with the source closed."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        source: Source | None = None
        try:
            source = open_source(self._uri, stall_s=self._stall_s)
            self.about = source.about
            self._read(source)
        except SourceError as error:
            self.error = error
        except Exception as error:  # a library's own: this is where it becomes ours
            self.error = SourceError(mask(f"{self._uri}: {type(error).__name__}: {error}"))
        self._asked_ns, self.over = 0, True
        self._woken.set()
        # After the news: saying goodbye to a camera that is gone takes as long as waiting for its picture.
        if source is not None:
            with contextlib.suppress(Exception):
                source.close()

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
        self.frames += 1
        if self.frames == 1:
            self._woken.set()
        return wanted
