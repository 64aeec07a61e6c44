"""Watching: looks at the service and at the daemon's vitals, until whoever judges them has."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from agent.update.places import Places
from agent.update.service import Service
from agent.update.trial import Outcome, Seen
from agent.update.vitals import read_vitals

_LOOK_S = 1.0


class Judge(Protocol):
    """Says what is to become of it: `agent.update.trial.Trial`, `agent.update.shadowing.Shadowing`."""

    def look(self, now: float, seen: Seen) -> Outcome:
        """Judge what is seen now, s of a clock that only goes forward."""


class Watch:
    """Of one trial, from the moment that it begins."""

    def __init__(
        self,
        where: Places,
        service: Service,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._where, self._service, self._clock, self._sleep = where, service, clock, sleep

    def until_over(
        self, judge: Judge, failures_before: int, tell: Callable[[str], None], asked: Callable[[], Outcome | None]
    ) -> Outcome:
        """Look every second.

        Args:
            judge: that is asked.
            failures_before: of the service, before it began.
            tell: is given what it waits for, each time that this changes.
            asked: what an operator has asked for meanwhile; None: nothing.

        Returns:
            What is to be done: commit, or roll back with the reason.
        """
        told = ""
        while True:
            outcome = asked() or judge.look(self._clock(), self._seen(failures_before))
            if outcome.verdict != "wait":
                return outcome
            # That seconds pass is no news.
            if outcome.reason.partition(";")[0] != told:
                told = outcome.reason.partition(";")[0]
                tell(outcome.reason)
            self._sleep(_LOOK_S)

    def _seen(self, failures_before: int) -> Seen:
        standing = self._service.standing()
        return Seen(read_vitals(self._where.health), max(0, standing.failures - failures_before), standing.why)
