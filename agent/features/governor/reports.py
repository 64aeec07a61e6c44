"""Logs what the governor changes, and which promises are not kept.

What a decision changes for one reason is one line. After a line about a stream, further changes of it for reasons
that were told lately come together a minute later, with their number; those after that two minutes later, and so
on up to ten. Beside that, each change is logged with level DEBUG. A promise is logged when it is broken, has
another reason, and is kept again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from agent.features.governor.budgets import CONFIGURED, EVERYTHING, OFF, without_figures
from agent.features.governor.readings import Change, Decision, StreamReading

log = logging.getLogger(__name__)
_PAUSE_S, _PAUSE_MAX_S = 60.0, 600.0
"""Least time between two lines about a stream, s: at first, and if it has changed again and again."""
_QUIET_S = 1200.0
"""Time without a line after which a stream counts as one that does not change again and again, s."""
_EARLY = 0.5
"""Share of its pause after which what is known of a stream is told together with others."""
_KEPT_S, _STEP_S = 10.0, 2.0
"""Time for which a promise must be kept until that is told, s; of a decision that comes late no more counts."""
_AGAIN_S, _SAME_S = 60.0, 600.0
"""Least time between two lines of the log about a promise, s: with another reason, twice as long each time up to
that with the same one anew."""


class ToldStream:
    """Remembers what the log tells of a stream, and what has changed since then.

    Attributes:
        newest: change that is not told yet; None: there is none.
        count: changes since the last line.
    """

    def __init__(self) -> None:
        self.newest: Change | None = None
        self.count = 0
        self._at_s, self._pause_s = -math.inf, _PAUSE_S
        self._reasons: dict[str, float] = {}

    def add(self, change: Change) -> None:
        """Keep a change."""
        self.newest, self.count = change, self.count + 1

    def is_due(self, now_s: float, share: float = 1.0) -> bool:
        """Return True if the newest change may be told after such a share of the pause.

        What the operator has configured is told at once, and so are a reason that was not told lately, and the
        end of what has begun for the first time.
        """
        if self.newest is None:
            return False
        is_end = self.newest.now == EVERYTHING and self._pause_s == _PAUSE_S
        is_new = now_s - self._reasons.get(without_figures(self.newest.why), -math.inf) >= _QUIET_S
        is_asked = self.newest.why in (CONFIGURED, OFF)
        return is_end or is_asked or is_new or now_s - self._at_s >= share * self._pause_s

    def told(self, now_s: float) -> float:
        """Forget what is told now. Return the time since the line before, s."""
        passed_s = now_s - self._at_s
        self._pause_s = _PAUSE_S if passed_s >= _QUIET_S else min(_PAUSE_MAX_S, 2.0 * self._pause_s)
        if self.newest is not None:
            self._reasons[without_figures(self.newest.why)] = now_s
        self.newest, self.count, self._at_s = None, 0, now_s
        return passed_s


class ChangeLog:
    """Logs the changes of all streams and, without a name, those of the event queue. For one thread."""

    def __init__(self) -> None:
        self._streams: dict[str, ToldStream] = {}

    def update(self, changes: Iterable[Change], names: Collection[str], now_s: float) -> None:
        """Log what is to be told now.

        Args:
            changes: of the newest decision.
            names: of all streams that there are.
            now_s: CLOCK_MONOTONIC, s.
        """
        self._streams = {name: one for name, one in self._streams.items() if name in names or not name}
        for change in changes:
            log.debug("%s", f"{_subject([change.stream])}{change.text}")
            self._streams.setdefault(change.stream, ToldStream()).add(change)
        if any(one.is_due(now_s) for one in self._streams.values()):
            self._tell({name: one for name, one in self._streams.items() if one.is_due(now_s, _EARLY)}, now_s)

    def _tell(self, due: Mapping[str, ToldStream], now_s: float) -> None:
        groups: dict[str, list[ToldStream]] = {}
        for one in due.values():
            assert one.newest is not None
            groups.setdefault(without_figures(one.newest.why), []).append(one)
        for group in groups.values():
            changes = [one.newest for one in group if one.newest is not None]
            count = sum(one.count for one in group)
            passed_s = max(one.told(now_s) for one in group)
            after = (
                f" ({count} changes in {passed_s:.0f} s)" if count > len(group) and passed_s < math.inf else ""
            )
            log.info("%s", f"{_described(changes, is_first=not after)}{after}: {changes[-1].why}")


def _described(changes: Iterable[Change], *, is_first: bool) -> str:
    """Return what holds for which streams; with the direction of the change where it is a single one."""
    names: dict[str, list[str]] = {}
    for change in changes:
        names.setdefault(change.what if is_first else change.now, []).append(change.stream)
    return "; ".join(f"{_subject(some)}{what}" for what, some in names.items())


def _subject(names: list[str]) -> str:
    if not any(names):
        return ""
    return f"stream{'s' if len(names) > 1 else ''} {', '.join(names)}: "


class BrokenPromise(Struct, frozen=True):
    """A promise that is not kept.

    Attributes:
        why: which, and why, with the newest figures.
        promise: pictures per second and ms that are promised.
        since_s: since when, CLOCK_MONOTONIC, s.
        kept_s: for how long it has been kept now, s.
        is_logged: True if the log tells that it is broken.
    """

    why: str
    promise: tuple[float, float]
    since_s: float
    kept_s: float
    is_logged: bool


class LoggedReason(Struct, frozen=True, gc=False):
    """The newest line about a promise.

    Attributes:
        text: of it.
        at_s: when it was logged, CLOCK_MONOTONIC, s.
        pause_s: least time until another reason is logged, s.
    """

    text: str
    at_s: float
    pause_s: float


class BrokenPromises:
    """Promises that are not kept, of streams and (an empty name) of the board. For one thread."""

    def __init__(self) -> None:
        self._broken: dict[str, BrokenPromise] = {}
        self._logged: dict[str, LoggedReason] = {}
        self._now_s: float | None = None

    def why(self, name: str) -> str:
        """Return which promise of a stream is not kept, and why; empty: none is known."""
        return broken.why if (broken := self._broken.get(name)) else ""

    def update(self, decision: Decision, streams: Mapping[str, StreamReading] | None, now_s: float) -> None:
        """Follow a decision, and log what has changed.

        Args:
            decision: the newest.
            streams: that run; None: nothing is governed.
            now_s: CLOCK_MONOTONIC, s.
        """
        passed_s = min(_STEP_S, now_s - self._now_s) if self._now_s is not None else 0.0
        self._now_s = now_s
        for name in list(self._broken):
            self._forget_replaced(name, streams)
        for name, why in decision.unmet.items():
            if name not in self._broken:
                self._broken[name] = BrokenPromise(why, _promise(name, streams), now_s, 0.0, is_logged=False)
        self._log({name: why for name, why in decision.unmet.items() if name not in decision.waiting}, now_s)
        for name, broken in list(self._broken.items()):
            if name in decision.broken:
                why = decision.unmet.get(name) or decision.broken[name]
                self._broken[name] = replace(broken, why=why, kept_s=0.0)
            else:
                self._broken[name] = replace(broken, kept_s=broken.kept_s + passed_s)
                self._end_kept(name, now_s)

    def _end_kept(self, name: str, now_s: float) -> None:
        broken = self._broken[name]
        if broken.kept_s < _KEPT_S:
            return
        del self._broken[name]
        if broken.is_logged:
            kept = "as promised again" if name else "the board is within its limits again"
            log.info("%s%s, after %.0f s", _prefix(name), kept, now_s - broken.since_s - broken.kept_s + 1.0)

    def _forget_replaced(self, name: str, streams: Mapping[str, StreamReading] | None) -> None:
        """Forget what is neither kept nor broken: a stream is lost or off, or promised something else now."""
        promise = _promise(name, streams)
        if streams is not None and promise == self._broken[name].promise:
            return
        del self._broken[name]
        if streams is not None and name in streams:
            self._logged.pop(name, None)
            log.info("%s%s", _prefix(name), _promised(*promise))

    def _log(self, unmet: Mapping[str, str], now_s: float) -> None:
        """Log promises that are broken, or broken for another reason, in one line for each reason."""
        groups: dict[str, list[str]] = {}
        for name, why in unmet.items():
            if self._is_worth_a_line(name, why, now_s):
                groups.setdefault(_reason(why), []).append(name)
        for names in groups.values():
            what = "; ".join(f"{_prefix(name)}{unmet[name].partition(': ')[0]}" for name in names)
            _, colon, reason = unmet[names[-1]].partition(": ")
            log.warning("%s%s%s", what, colon, reason)

    def _is_worth_a_line(self, name: str, why: str, now_s: float) -> bool:
        """Return True for a promise that is broken anew, or for another reason: not for other figures alone."""
        before, broken = self._logged.get(name), self._broken[name]
        pause_s = _AGAIN_S
        if before is not None:
            is_same = _reason(before.text) == _reason(why)
            if (is_same and broken.is_logged) or now_s - before.at_s < (_SAME_S if is_same else before.pause_s):
                return False
            is_often = now_s - before.at_s < 2.0 * _SAME_S
            pause_s = min(_SAME_S, 2.0 * before.pause_s) if is_often else _AGAIN_S
        self._logged[name] = LoggedReason(why, now_s, pause_s)
        self._broken[name] = replace(broken, is_logged=True)
        return True


def _reason(text: str) -> str:
    """Return why a promise is not kept, without figures."""
    return without_figures(text.partition(": ")[2] or text)


def _promise(name: str, streams: Mapping[str, StreamReading] | None) -> tuple[float, float]:
    stream = streams.get(name) if streams is not None else None
    return (stream.min_fps, stream.max_latency_ms) if stream is not None else (0.0, 0.0)


def _promised(min_fps: float, max_latency_ms: float) -> str:
    parts = [
        f"{min_fps:g} pictures per second" if min_fps else "",
        f"{max_latency_ms:g} ms from capture to result" if max_latency_ms else "",
    ]
    told = " and ".join(part for part in parts if part)
    return f"now promised {told}" if told else "nothing is promised any more"


def _prefix(stream: str) -> str:
    return f"stream {stream}: " if stream else ""
