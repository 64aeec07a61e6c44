"""Problems of a stream's camera, microphone or model, and the delay with which each begins and ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from agent.config.condition import Problem

GAP_S = 30.0
"""After so long without inputs the delays start anew, s."""


class Delays(Struct, frozen=True):
    """Time for which a sign must be there until its problem begins, and be away until it ends, s."""

    begin_s: float
    end_s: float


class ProblemTimer:
    """One problem that begins and ends with a delay. For one thread.

    `active` is True while it lasts.
    """

    def __init__(self, delays: Delays) -> None:
        self._begin_ns, self._end_ns = round(delays.begin_s * 1e9), round(delays.end_s * 1e9)
        self._since_ns: int | None = None
        self.active = False

    def update(self, sign: bool | None, now_ns: int) -> None:
        """Record whether the sign is there; None: it cannot be told, so nothing changes now."""
        if sign is None or sign is self.active:
            self._since_ns = None
            return
        if self._since_ns is None:
            self._since_ns = now_ns
        if now_ns - self._since_ns >= (self._end_ns if self.active else self._begin_ns):
            self.active, self._since_ns = sign, None

    def restart(self) -> None:
        """Begin the delay anew."""
        self._since_ns = None

    def set(self, active: bool) -> None:
        """Begin or end the problem at once."""
        self.active, self._since_ns = active, None


class ProblemTimers:
    """Timers of several problems, of which some are ignored. For one thread."""

    def __init__(self, delays: Mapping[Problem, Delays], ignored: tuple[Problem, ...]) -> None:
        self._timers = {name: ProblemTimer(one) for name, one in delays.items()}
        self._ignored = frozenset(ignored)
        self._before_ns: int | None = None

    def __getitem__(self, problem: Problem) -> ProblemTimer:
        return self._timers[problem]

    def begin_check(self, now_ns: int) -> None:
        """Start the delays anew if inputs were missing for long, or the time runs backwards."""
        before_ns, self._before_ns = self._before_ns, now_ns
        if before_ns is not None and not 0 <= now_ns - before_ns <= GAP_S * 1e9:
            for timer in self._timers.values():
                timer.restart()

    def update(self, problem: Problem, sign: bool | None, now_ns: int) -> None:
        """Record whether the sign of a problem is there; that of an ignored one never is."""
        self._timers[problem].update(sign and problem not in self._ignored, now_ns)

    def active(self) -> Iterator[Problem]:
        """Yield the problems that last."""
        return (name for name, timer in self._timers.items() if timer.active)
