"""How long to wait before trying again: exponential with full jitter, so that a fleet does not return at once.

Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import math
import random
import threading
import time

from agent.comms.mqtt.tls import Synchronised

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


# The pause between two attempts. Where only the clock stands in the way, it ends as soon as that is set.

_STEP_S = 1.0
_JUMP_S = 2.0
"""A clock that is set, rather than slewed."""


class Pause:
    """For one thread; `stopping` may be set by any."""

    def __init__(self, stopping: threading.Event, synchronised: Synchronised) -> None:
        self._stopping, self._synchronised = stopping, synchronised

    def wait(self, seconds: float, *, by_clock: bool = False) -> None:
        """Wait, or until it is time to stop.

        Args:
            seconds: at most.
            by_clock: also until the clock is set or synchronised.
        """
        if not by_clock:
            self._stopping.wait(seconds)
            return
        until = time.monotonic() + seconds
        offset, was_synchronised = _offset(), self._synchronised()
        while (left := until - time.monotonic()) > 0 and not self._stopping.wait(min(_STEP_S, left)):
            if abs(_offset() - offset) > _JUMP_S or (not was_synchronised and self._synchronised()):
                return


def _offset() -> float:
    return time.time() - time.monotonic()
