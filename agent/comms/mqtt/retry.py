"""The pause between two attempts to connect. Where only the clock is wrong, it ends as soon as that is set."""

from __future__ import annotations

import threading
import time

from agent.comms.mqtt.tls import Synchronised

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
