"""Pauses between attempts: exponentially longer, with jitter so that a fleet does not return all at once.

Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import math
import random

_LEAST_S = 0.1
"""Shortest pause: jitter alone could give several attempts in a row without a pause."""
_STEPS = 30


class Backoff:
    """Pauses between attempts: each may be twice as long as the one before, up to a limit."""

    def __init__(self, first_s: float, max_s: float = math.inf, *, jitter: float = 1.0) -> None:
        """Begin with the first pause.

        Args:
            first_s: first pause, s.
            max_s: longest pause, s.
            jitter: random part of each pause, 0..1; 1 is "full jitter", 0 gives the exact pauses.
        """
        self._first_s, self._max_s, self._jitter = first_s, max_s, jitter
        self._attempts = 0

    def next_s(self, limit_s: float = math.inf) -> float:
        """Return the pause before the next attempt, s.

        Args:
            limit_s: longest pause before this attempt, s, if that is less than the longest of all.
        """
        longest_s = min(self._max_s, limit_s, self._first_s * 2.0**self._attempts)
        self.skip()
        return max(min(_LEAST_S, longest_s), random.uniform(longest_s * (1.0 - self._jitter), longest_s))

    def skip(self, pauses: int = 1) -> None:
        """Continue as if so many more pauses had passed."""
        self._attempts = min(self._attempts + pauses, _STEPS)

    def reset(self) -> None:
        """Begin with the first pause again, after a success."""
        self._attempts = 0
