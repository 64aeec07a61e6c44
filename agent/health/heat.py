"""Heat: whether the board is too warm, told once when it begins and once when it is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from agent.health.machine import temperature_c

log = logging.getLogger(__name__)

_CALM_C = 5.0
"""So far below the limit it must be to be over: a board at its limit goes up and down by a degree or two."""
_EVERY_S = 5.0
"""Between two readings: a chip with its heat sink takes tens of seconds to warm up."""


def is_hot(was: bool, celsius: float | None, warn_c: float) -> bool:
    """Whether a board is hot now.

    Args:
        was: whether it was before.
        celsius: its hottest zone, °C; None: it does not tell, and is what it was.
        warn_c: from which on it is, °C; until it is 5 °C below.
    """
    if celsius is None:
        return was
    return celsius >= warn_c or (was and celsius > warn_c - _CALM_C)


class Heat:
    """Watches the temperature.

    Attributes:
        celsius: hottest zone at the last reading, °C; None: the board does not tell.
        hot: whether it has passed the limit and is not 5 °C below it again.
    """

    def __init__(
        self, read: Callable[[], float | None] = temperature_c, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is read before `look`.

        Args:
            read: gives the temperature, °C.
            clock: s.
        """
        self.celsius: float | None = None
        self.hot = False
        self._read, self._clock = read, clock
        self._due_s = self._began_s = float("-inf")

    def look(self, warn_c: float) -> None:
        """Read the temperature if it is time to, and log a change.

        Args:
            warn_c: from which on it is hot, °C.
        """
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _EVERY_S
        self.celsius = self._read()
        was, self.hot = self.hot, is_hot(self.hot, self.celsius, warn_c)
        if self.hot and not was:
            self._began_s = now_s
            log.warning(
                "the board is at %.1f °C (thermal.warn_c is %g): it may slow down; give it air, or less to do",
                self.celsius,
                warn_c,
            )
        elif was and not self.hot:
            log.info("the board is at %.1f °C again, after %.0f s", self.celsius, now_s - self._began_s)
