"""Decides when something gives way because memory, the disk or the network is short, and when it comes back."""

from __future__ import annotations

from agent.compute.governor import pace


class Shortage:
    """One of these. Each recovers for itself, whatever else is short; no clock: times are CLOCK_MONOTONIC, s."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._trouble_s = self._relaxed_s = float("-inf")
        self._pause_s, self._was_too_soon = pace.RELAX_S, False

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
                self._pause_s, self._was_too_soon = min(pace.RELAX_MAX_S, 2.0 * self._pause_s), True
        if now_s - self._since_s < pace.CONFIRM_S:
            return False
        self._since_s = now_s + pace.SETTLE_S - pace.CONFIRM_S
        return True

    def is_over(self, now_s: float) -> bool:
        """Return True if a step may come back."""
        return now_s - max(self._relaxed_s, self._trouble_s) >= self._pause_s

    def relaxed(self, now_s: float) -> None:
        """Record that a step has come back."""
        if not self._was_too_soon:
            self._pause_s = max(pace.RELAX_S, 0.5 * self._pause_s)
        self._relaxed_s, self._was_too_soon = now_s, False
