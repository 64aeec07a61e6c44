"""Logs the outages of a stream's source: one that comes and goes is one outage."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger("agent.daemon.streams.stream")
_STEADY_S = 30.0
"""A source that runs for so long ends an outage of short runs, s."""
_FLAPPING = 2
"""After so many short runs in a row it is told that the source comes and goes, and then when it is steady."""


class OutageLog:
    """Logs when a source is lost and when it is back.

    It holds no stream: the source's threads, which call it, may hang, and must not hold one.
    """

    def __init__(self, stream: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now_s = stream, now_s
        self._lock = threading.Lock()
        self._is_lost, self._is_flapping = False, False
        self._back_s: float | None = None
        self._short, self._outages, self._began_s = 0, 0, 0.0

    def __call__(self, state: str, reason: str) -> None:
        """Log a new state of the source, as `agent.capture.supervisor.OnChange`. Any thread may call this."""
        with self._lock:
            if state == "lost":
                self._mark_lost(reason)
            elif state == "starting":
                log.info("stream %s: %s", self._stream, reason)
            else:
                self._mark_back(state, reason)

    def poll(self) -> None:
        """Log if a source that came and went is steady again."""
        with self._lock:
            if not self._is_flapping or self._is_lost or self._back_s is None:
                return
            if (now_s := self._now_s()) - self._back_s < _STEADY_S:
                return
            lost_s = self._back_s - self._began_s
            log.info(
                "stream %s: running: steady for %.0f s, after it was lost %d times in %.0f s",
                self._stream,
                now_s - self._back_s,
                self._outages,
                lost_s,
            )
            self._is_flapping, self._short = False, 0

    def _mark_lost(self, reason: str) -> None:
        if not self._is_lost:
            self._count()
        self._is_lost = True
        if not self._is_flapping:
            self._is_flapping = self._short >= _FLAPPING
            more = "; it comes and goes, so the next line is about a steady source" if self._is_flapping else ""
            log.warning("stream %s: lost: %s%s", self._stream, reason, more)

    def _count(self) -> None:
        """Count an outage; it is one more of a row if the source was back for a short time."""
        now_s = self._now_s()
        is_short = self._back_s is not None and now_s - self._back_s < _STEADY_S
        self._short = self._short + 1 if is_short else 0
        if not is_short:
            self._outages, self._began_s = 0, now_s
        self._outages += 1

    def _mark_back(self, state: str, reason: str) -> None:
        self._is_lost, self._back_s = False, self._now_s()
        if not self._is_flapping:
            log.info("stream %s: %s: %s", self._stream, state, reason)
