"""Which of several brokers is next: rules without I/O. Times are of a monotonic clock, s.

The first is the one that subscribers expect us at. So it is given a while to come back before the next is tried,
and from the others a look is taken from time to time whether it is back. One that comes back and does not stay is
looked for more and more rarely: moving to and fro delays events and helps nobody.
"""

from __future__ import annotations

import math

_STABLE_S = 10.0
"""A connection that lasts so long was a real one."""
_PROVEN_S = 600.0
"""A broker that stays so long after it came back is not restless."""
LOOK_FIRST_S, _LOOK_LAST_S = 60.0, 3600.0
"""Between two looks for a better one."""


class Order:
    """The place in the order.

    Attributes:
        current: number of the broker that is used or tried now; 0 is the preferred one.
    """

    def __init__(self, count: int, patience_s: float, now: float) -> None:
        """Begin with the first.

        Args:
            count: of brokers.
            patience_s: for the first, when it cannot be reached.
            now: the time.
        """
        self._count, self._patience_s, self._down_since = count, patience_s, now
        self._connected_at, self._look_s, self._look_at = now, LOOK_FIRST_S, math.inf
        self.current = 0

    def failed(self, now: float, *, at_once: bool = False) -> bool:
        """The current one could not be reached; whether to try another now, else after a pause.

        Args:
            now: the time.
            at_once: waiting for it is no use.
        """
        self._look_at = math.inf
        is_given_time = self.current == 0 and not at_once and now - self._down_since < self._patience_s
        if self._count == 1 or is_given_time:
            return False
        self.current = (self.current + 1) % self._count
        return self.current != 0

    def worked(self, now: float) -> None:
        """The current one has accepted us."""
        self._connected_at = now
        self._look_at = now + self._look_s if self.current else math.inf

    def lost(self, now: float) -> bool:
        """The connection to the current one is lost; whether to try another now, else after a pause."""
        lasted, self._look_at = now - self._connected_at, math.inf
        if self.current == 0 and lasted >= _PROVEN_S:
            self._look_s = LOOK_FIRST_S
        if lasted < _STABLE_S:
            return self.failed(now, at_once=self.current > 0)
        self._down_since = -math.inf if self.current else now
        self.current = 0
        return False

    def is_look_due(self, now: float) -> bool:
        """Whether to look for a better one."""
        return now >= self._look_at

    def looked(self, now: float) -> None:
        """None of the better ones is back."""
        self._look_at = now + self._look_s

    def moved(self, to: int, now: float) -> None:
        """A better one has accepted us. If it goes again soon, it is given more time the next time."""
        self.current = to
        self._look_s = min(_LOOK_LAST_S, self._look_s * 2)
        self.worked(now)
