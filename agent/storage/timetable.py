"""The timetable of the spool's writer: when it writes, tries again, and looks for what has become too old."""

from __future__ import annotations

import time

from agent.storage.backlog import LINGER_S

_RETRY_S = 5.0
"""Between two attempts to write to a disk that failed."""
_LOOK_S = 60.0
"""Between two looks for rows that have become too old."""


class Timetable:
    """All times are s of the monotonic clock. Its owner does the locking.

    Attributes:
        retry_at: when a disk that failed is tried again.
    """

    def __init__(self) -> None:
        self.retry_at = self._wakes_at = self._wrote_at = 0.0
        self._look_at = time.monotonic() + _LOOK_S

    def pause(self, due_at: float) -> float:
        """Seconds to sleep now; 0 or less: none.

        Args:
            due_at: when there is something to write; ∞: nothing is known yet.
        """
        now = time.monotonic()
        pause_s = min(self._look_at, due_at) - now
        if now < self._wrote_at + LINGER_S:
            pause_s = min(pause_s, LINGER_S)  # what comes now and is patient need not wake us
        self._wakes_at = now + pause_s
        return pause_s

    def is_late_for(self, due_at: float) -> bool:
        """Whether the writer sleeps for so long that it has to be woken for what is due then."""
        return due_at < self._wakes_at - LINGER_S

    def look(self) -> bool:
        """Whether it is time to look for what is too old; then the next look is a while from now."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_S
        return True

    def look_now(self) -> None:
        """It is time to look, whenever the last look was."""
        self._look_at = time.monotonic()

    def wrote(self, *, done: bool) -> None:
        """A write has been tried just now."""
        self._wrote_at = time.monotonic()
        if not done:
            self.retry_at = self._wrote_at + _RETRY_S
