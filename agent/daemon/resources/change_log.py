"""Logs the governor's changes: each at once, but of what changes again and again only now and then what holds.

What a decision changes for one reason is one line. After a line about a stream, further changes of it for reasons
that were told lately come together a minute later, with their number; those after that two minutes later, and so
on up to ten. Beside that, each change is logged with level DEBUG.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping

from agent.compute.governor.decision import Change
from agent.compute.governor.pace import CONFIGURED, OFF
from agent.compute.governor.state import EVERYTHING, without_figures

log = logging.getLogger(__name__)
PAUSE_S, PAUSE_MAX_S = 60.0, 600.0
"""Least time between two lines about a stream, s: at first, and if it has changed again and again."""
_QUIET_S = 1200.0
"""Time without a line after which a stream counts as one that does not change again and again, s."""
_EARLY = 0.5
"""Share of its pause after which what is known of a stream is told together with others."""


class ToldStream:
    """Remembers what the log tells of a stream, and what has changed since then.

    Attributes:
        newest: change that is not told yet; None: there is none.
        count: changes since the last line.
    """

    def __init__(self) -> None:
        self.newest: Change | None = None
        self.count = 0
        self._at_s, self._pause_s = -math.inf, PAUSE_S
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
        is_end = self.newest.now == EVERYTHING and self._pause_s == PAUSE_S
        is_new = now_s - self._reasons.get(without_figures(self.newest.why), -math.inf) >= _QUIET_S
        is_asked = self.newest.why in (CONFIGURED, OFF)
        return is_end or is_asked or is_new or now_s - self._at_s >= share * self._pause_s

    def told(self, now_s: float) -> float:
        """Forget what is told now. Return the time since the line before, s."""
        passed_s = now_s - self._at_s
        self._pause_s = PAUSE_S if passed_s >= _QUIET_S else min(PAUSE_MAX_S, 2.0 * self._pause_s)
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
