"""How much of what comes is taken: a bucket of tokens, and a door that is shut while somebody floods it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

PER_S, BURST = 20.0, 100
"""Messages that are taken: so many a second for ever, and so many at once."""
SHUT_AFTER = 1000
"""Messages dropped in one flood before the door is shut: even dropping costs the time of what is at work."""
_SHUT_FIRST_S, _SHUT_LAST_S = 10.0, 600.0

Verdict = Literal["take", "drop", "shut"]


class Intake:
    """Decides for each message. Times are of a monotonic clock, s.

    Attributes:
        dropped: messages of the flood that is going on; 0: there is none.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, per_s: float = PER_S, burst: int = BURST
    ) -> None:
        """Start calm.

        Args:
            clock: monotonic, s.
            per_s: messages that are taken for ever.
            burst: that are taken at once.
        """
        self._clock, self._per_s, self._burst = clock, per_s, float(burst)
        self._tokens, self._at = self._burst, clock()
        self._pause_s, self._until = _SHUT_FIRST_S, 0.0
        self.dropped = 0

    def judge(self) -> Verdict:
        """What to do with a message that has come now; `shut`: it is dropped, and let no more come."""
        self._fill()
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return "take"
        self.dropped += 1
        if self.dropped < SHUT_AFTER or self.is_shut:
            return "drop"
        self._until = self._clock() + self._pause_s
        self._pause_s = min(_SHUT_LAST_S, self._pause_s * 2)
        return "shut"

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now

    @property
    def is_shut(self) -> bool:
        """Whether nothing is to come now."""
        return self._clock() < self._until

    @property
    def shut_s(self) -> float:
        """How long it stays shut, s."""
        return max(0.0, self._until - self._clock())

    def calm(self) -> int:
        """Messages dropped, when a flood is over since the last call; else 0."""
        if not self.dropped or self.is_shut:
            return 0
        self._fill()
        if self._tokens < self._burst:
            return 0
        dropped, self.dropped = self.dropped, 0
        if dropped < SHUT_AFTER:
            self._pause_s = _SHUT_FIRST_S
        return dropped
