"""Decides when something gives way because memory, the disk or the network is short, and when it comes back."""

from __future__ import annotations

from collections.abc import Mapping

from agent.compute.governor import pace
from agent.compute.governor.budgets import Budgets
from agent.compute.governor.readings import Readings, StreamReading
from agent.compute.governor.state import LEVELS, SYNC_S, Domain, has, sync_text
from agent.compute.governor.trouble import disk_trouble, link_trouble, memory_trouble
from agent.config.governor import Giving, GovernorConfig


class Shortage:
    """One of these. Each recovers for itself, whatever else is short; no clock: times are CLOCK_MONOTONIC, s."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._trouble_s = self._relaxed_s = float("-inf")
        self._pause_s, self._doubled_s = pace.RELAX_S, float("-inf")

    def needs_more(self, why: str, now_s: float) -> bool:
        """Return True if there has been trouble for some time, and the last change has had its effect.

        Args:
            why: what is short; empty: nothing.
            now_s: the time.
        """
        if not why:
            self._since_s = None
            return False
        self._trouble_s = now_s
        if self._since_s is None:
            self._since_s = now_s
            if now_s - self._relaxed_s < pace.TOO_SOON_S:
                self._pause_s, self._doubled_s = min(pace.RELAX_MAX_S, 2.0 * self._pause_s), now_s
        if now_s - self._since_s < pace.CONFIRM_S:
            return False
        self._since_s = now_s + pace.SETTLE_S - pace.CONFIRM_S
        return True

    def is_over(self, now_s: float) -> bool:
        """Return True if a step may come back."""
        return now_s - max(self._relaxed_s, self._trouble_s) >= self._pause_s

    def relaxed(self, now_s: float) -> None:
        """Record that a step has come back."""
        if now_s - self._doubled_s >= pace.FORGIVEN_S:
            self._pause_s = max(pace.RELAX_S, 0.5 * self._pause_s)
        self._relaxed_s = now_s


class Shortages:
    """Memory, the disk and the network, and the time for which events may wait for the disk.

    Attributes:
        sync: level of that, see `SYNC_S`.
    """

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._all: dict[Domain, Shortage] = {"memory": Shortage(), "disk": Shortage(), "link": Shortage()}
        self._now_s = 0.0
        self.sync = 0

    def handle(self, readings: Readings, config: GovernorConfig) -> None:
        """Let the least important streams give way to what is short."""
        self._now_s, streams = readings.now_s, readings.streams
        may_take_clips = "clips" in config.order
        if (why := self._why("memory", memory_trouble(readings.board))) and may_take_clips:
            self._lower("clips", why, streams, "memory")
        if why := self._why("disk", disk_trouble(readings.disk)):
            done = may_take_clips and self._lower("clips", why, streams, "disk")
            if not done and self.sync < len(SYNC_S) - 1 and self._budgets.may_change(pace.FOR_PROMISES):
                self.sync += 1
                self._budgets.record("", sync_text(self.sync), why)
        if why := self._why("link", link_trouble(readings.link)):
            for giving in config.order:
                if giving in ("samples", "snapshots") and self._lower(giving, why, streams, "link"):
                    break

    def _why(self, domain: Domain, trouble: str) -> str:
        """Return why something more must give way; empty: nothing must, or not yet."""
        return trouble if self._all[domain].needs_more(trouble, self._now_s) else ""

    def _lower(self, giving: Giving, why: str, streams: Mapping[str, StreamReading], domain: Domain) -> bool:
        """Lower something of the least important streams that can, equal ones together; False: none could."""
        states = self._budgets.states
        able = {
            name: (stream.priority, states[name].levels[giving])
            for name, stream in streams.items()
            if has(stream, giving) and states[name].levels[giving] < LEVELS[giving] - 1
        }
        first = min(able.values(), default=None)
        lowered = [self._budgets.lower(name, giving, why, domain) for name, rank in able.items() if rank == first]
        return any(lowered)

    def over(self) -> set[Domain]:
        """Return what is not short any more: a level of it may come back. Here the wait for the disk does so."""
        if not self._budgets.may_change(pace.FOR_PROMISES_BACK):
            return set()
        found = {domain for domain, one in self._all.items() if one.is_over(self._now_s)}
        if "disk" in found and self.sync:
            self.sync -= 1
            self._budgets.record("", sync_text(self.sync), pace.ROOM)
            self.relaxed("disk")
            found.discard("disk")
        return found

    def relaxed(self, domain: Domain) -> None:
        """Record that a level has come back."""
        self._all[domain].relaxed(self._now_s)
