"""How long to wait before trying again: exponential with full jitter, so that a fleet does not return at once.

Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import math
import random

_FIRST_S = 1.0
_LEAST_S = 0.1
"""Jitter alone could give a row of attempts without a pause."""
_STEPS = 30


class Backoff:
    """Pauses between attempts."""

    def __init__(self, max_s: float) -> None:
        """Start afresh.

        Args:
            max_s: longest pause, s.
        """
        self._max_s, self._attempts = max_s, 0

    def next_s(self, limit_s: float = math.inf) -> float:
        """Return the pause before the next attempt, s.

        Args:
            limit_s: longest pause for this attempt, s, where it is less than that of all.
        """
        max_s = min(self._max_s, limit_s)
        longest = min(max_s, _FIRST_S * 2.0**self._attempts)
        self._attempts = min(self._attempts + 1, _STEPS)
        return max(min(_LEAST_S, max_s), random.uniform(0.0, longest))

    def harder(self) -> None:
        """Someone suffers from our attempts: go on as after several."""
        self._attempts = min(self._attempts + 3, _STEPS)

    def reset(self) -> None:
        """It worked."""
        self._attempts = 0
