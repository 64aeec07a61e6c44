"""Governs streams: reads them, applies what the rules decide, and reports it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from agent.features.governor.readings import BoardLoad, Readings, StreamReaders, without_figures
from agent.features.governor.rules import Governor
from agent.features.governor.steps import CONFIGURED, EVERYTHING, OFF, Change, Decision

if TYPE_CHECKING:
    from agent.daemon.runtime import Runtime
    from agent.daemon.streams.stream import Stream

log = logging.getLogger(__name__)
_WARM_UP_S = 3.0
"""Time from the first reading until the first decision, s: then it is known what streams cost."""
_PAUSE_S, _PAUSE_MAX_S = 60.0, 600.0
"""Minimum time between two lines about a stream, s: at first, and if it has changed again and again."""
_QUIET_S = 1200.0
"""Time without a line after which a stream counts as one that does not change again and again, s."""
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
        readings = self._readers.read(streams, board.idle)
        if now_s < self._begins_s:
            return ""
        self._governor.configure(config.governor)
        decision = self._governor.decide(Readings(now_s, board, readings, shortages, frozenset(streams)))
        if decision.changes:
            self._load.load_changed()
        self._changes.update(decision.changes, streams, now_s)
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


class _LoggedStream:
    """Changes of a stream since its last line: the newest, and their number."""

    def __init__(self) -> None:
        self.newest: Change | None = None
        self.count, self._at_s, self._pause_s = 0, -math.inf, _PAUSE_S

    def is_due(self, now_s: float) -> bool:
        """Return True if the newest change may be logged.

        What the operator has configured is logged at once, and so is the end of the first reduction.
        """
        if self.newest is None:
            return False
        is_end = self.newest.now == EVERYTHING and self._pause_s == _PAUSE_S
        return is_end or self.newest.why in (CONFIGURED, OFF) or now_s - self._at_s >= self._pause_s

    def logged(self, now_s: float) -> None:
        """Begin anew, with a longer pause if the line before was lately."""
        is_often = now_s - self._at_s < _QUIET_S
        self._pause_s = min(_PAUSE_MAX_S, 2.0 * self._pause_s) if is_often else _PAUSE_S
        self.newest, self.count, self._at_s = None, 0, now_s


class ChangeLog:
    """Logs the changes of streams and, without a name, those of the event queue.

    What is logged at once for one reason is one line. A stream that changes again has a line a minute later, with
    what holds then and the number of changes, then after two minutes, and so on up to ten. Each change is logged
    with level DEBUG.
    """

    def __init__(self) -> None:
        self._streams: dict[str, _LoggedStream] = {}

    def update(self, changes: Iterable[Change], names: Collection[str], now_s: float) -> None:
        """Log what is due.

        Args:
            changes: of the newest decision.
            names: of all streams that there are.
            now_s: CLOCK_MONOTONIC, s.
        """
        self._streams = {name: one for name, one in self._streams.items() if name in names or not name}
        for change in changes:
            log.debug("%s", f"{_subject([change.stream])}{change.text}")
            logged = self._streams.setdefault(change.stream, _LoggedStream())
            logged.newest, logged.count = change, logged.count + 1
        groups: dict[str, list[_LoggedStream]] = {}
        for one in self._streams.values():
            if one.newest is not None and one.is_due(now_s):
                groups.setdefault(without_figures(one.newest.why), []).append(one)
        for group in groups.values():
            newest = [one.newest for one in group if one.newest is not None]
            what: dict[str, list[str]] = {}
            for change in newest:
                what.setdefault(change.what, []).append(change.stream)
            text = "; ".join(f"{_subject(some)}{now}" for now, some in what.items())
            count = sum(one.count for one in group)
            more = f" ({count} changes)" if count > len(group) else ""
            log.info("%s%s: %s", text, more, newest[-1].why)
            for one in group:
                one.logged(now_s)


def _subject(names: list[str]) -> str:
    if not any(names):
        return ""
    return f"stream{'s' if len(names) > 1 else ''} {', '.join(names)}: "


class _BrokenPromise(Struct):
    why: str
    since_s: float
    kept_s: float | None = None


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
            if (broken := self._broken.get(name)) is None:
                self._broken[name] = _BrokenPromise(why, now_s)
                if now_s - self._logged_s.get(name, -math.inf) >= _PAUSE_MAX_S:
                    self._logged_s[name] = now_s
                    log.warning("%s%s", _subject([name]), why)
            else:
                broken.why = why
        for name, broken in list(self._broken.items()):
            if name in decision.broken:
                broken.kept_s = None
                broken.why = decision.unmet.get(name) or decision.broken[name]
            elif name and name not in decision.budgets:  # the stream is lost or off, or nothing is governed
                del self._broken[name]
            else:
                broken.kept_s = now_s if broken.kept_s is None else broken.kept_s
                self._end_kept(name, broken, now_s)

    def _end_kept(self, name: str, broken: _BrokenPromise, now_s: float) -> None:
        if broken.kept_s is None or now_s - broken.kept_s < _KEPT_S:
            return
        del self._broken[name]
        if self._logged_s.get(name) == broken.since_s:
            kept = "as promised again" if name else "the board is within its limits again"
            log.info("%s%s, after %.0f s", _subject([name]), kept, broken.kept_s - broken.since_s)
