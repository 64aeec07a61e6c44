"""Governs streams: reads them, applies what the rules decide, and reports it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from agent.features.governor.readings import BoardLoad, Readings, StreamReaders
from agent.features.governor.rules import Governor
from agent.features.governor.steps import CONFIGURED, OFF, Change, Decision

if TYPE_CHECKING:
    from agent.daemon.runtime import Runtime
    from agent.daemon.streams.stream import Stream

log = logging.getLogger(__name__)
_WARM_UP_S = 3.0
"""Time from the first reading until the first decision, s: then it is known what streams cost."""
_PAUSE_S, _BROKEN_PAUSE_S = 60.0, 600.0
"""Minimum time between two lines about changes of a stream, and about its broken promises, s."""
_KEPT_S = 10.0
"""Time for which a promise must be kept until that is reported, s."""


class Governing:
    """Keeps the board below its limits, and streams what they are promised. For the governor's thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._load = runtime, BoardLoad(sensors=runtime.board.sensors)
        self._readers, self._governor = StreamReaders(), Governor(runtime.config.governor)
        self._changes, self._promises = ChangeLog(), BrokenPromises()
        self._begins_s = time.monotonic() + _WARM_UP_S

    def govern(
        self, streams: Mapping[str, Stream], processors: Iterable[float | None], shortages: dict[str, str]
    ) -> str:
        """Decide for the streams that there are, and apply it; return why the board is above its limits.

        Args:
            streams: by name.
            processors: their shares: fields of `BoardReading` in its order.
            shortages: see `Readings`.
        """
        config, now_s = self._runtime.config, time.monotonic()
        board = self._load.read(config, *processors)  # type: ignore[arg-type]
        readings = self._readers.read(streams)
        if now_s < self._begins_s:
            return ""
        self._governor.configure(config.governor)
        decision = self._governor.decide(Readings(now_s, board, readings, shortages, frozenset(streams)))
        if decision.changes:
            self._load.load_changed()
        self._changes.update(decision.changes, now_s)
        if config.governor.enabled:
            self._promises.update(decision, now_s)
        else:
            self._promises = BrokenPromises()
        self._runtime.spool.set_sync_interval(decision.sync_every_s)
        self._readers.variants = {name: budget.variant for name, budget in decision.budgets.items()}
        for name, stream in streams.items():
            if (budget := decision.budgets.get(name)) is not None:
                stream.budget = budget
            stream.reduced = decision.reduced.get(name, "")
            stream.unmet = self._promises.why(name)
        return self._promises.why("")


class ChangeLog:
    """Logs the changes of streams and, without a name, those of the event queue.

    Of each the newest is logged once a minute at most, and at once if the operator has configured it. Each change
    is logged with level DEBUG.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Change] = {}
        self._logged_s: dict[str, float] = {}

    def update(self, changes: Iterable[Change], now_s: float) -> None:
        """Log what is due of the newest decision's changes and of those before. `now_s`: CLOCK_MONOTONIC, s."""
        for change in changes:
            log.debug("%s%s", _subject(change.stream), change.text)
            self._waiting[change.stream] = change
        for name, change in list(self._waiting.items()):
            is_due = now_s - self._logged_s.get(name, -math.inf) >= _PAUSE_S
            if is_due or change.why in (CONFIGURED, OFF):
                del self._waiting[name]
                self._logged_s[name] = now_s
                log.info("%s%s", _subject(name), change.text)


def _subject(stream: str) -> str:
    return f"stream {stream}: " if stream else ""


class _BrokenPromise(Struct):
    why: str
    since_s: float
    newest_s: float
    is_logged: bool


class BrokenPromises:
    """Promises of streams and (an empty name) of the board that are not kept.

    They are, from when nothing is left that can help until they are kept for ten seconds. Logs both, for a stream
    once in ten minutes at most.
    """

    def __init__(self) -> None:
        self._broken: dict[str, _BrokenPromise] = {}
        self._logged_s: dict[str, float] = {}

    def why(self, name: str) -> str:
        """Return which promise of a stream is not kept, and why; empty: none is known."""
        return broken.why if (broken := self._broken.get(name)) else ""

    def update(self, decision: Decision, now_s: float) -> None:
        """Follow a decision, and log what has changed. `now_s`: CLOCK_MONOTONIC, s."""
        for name, why in decision.unmet.items():
            if name not in self._broken:
                is_logged = now_s - self._logged_s.get(name, -math.inf) >= _BROKEN_PAUSE_S
                self._broken[name] = _BrokenPromise(why, now_s, now_s, is_logged)
                if is_logged:
                    self._logged_s[name] = now_s
                    log.warning("%s%s", _subject(name), why)
        for name, broken in list(self._broken.items()):
            if why := decision.unmet.get(name) or decision.broken.get(name, ""):
                broken.why, broken.newest_s = why, now_s
            elif name and name not in decision.budgets:  # the stream is lost or off
                del self._broken[name]
            elif now_s - broken.newest_s > _KEPT_S:
                del self._broken[name]
                if broken.is_logged:
                    kept = "as promised again" if name else "the board is within its limits again"
                    log.info("%s%s, after %.0f s", _subject(name), kept, now_s - _KEPT_S - broken.since_s)
