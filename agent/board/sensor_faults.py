"""Keeps the last reading of a sensor that fails, confirms jumps, and remembers warm zones that cannot be read.

Nothing here reads a sensor or a clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_WORTH_S = 20.0
"""A sensor that cannot be read for a shorter time is not logged, s."""


class LastKnown(Generic[T]):
    """Keeps the last reading of a sensor for a time while it cannot be read, and logs that once.

    Of a sensor that has never been read nothing is kept, and nothing is logged.

    Example:
        charge = LastKnown("battery BAT0: its charge", 600.0)
        percent = charge.update(read_percent(), time.monotonic())
    """

    def __init__(self, what: str, hold_s: float) -> None:
        """Know nothing yet.

        Args:
            what: the reading, for the log.
            hold_s: time for which the last one counts, s.
        """
        self._what, self._hold_s = what, hold_s
        self._last: T | None = None
        self._at_s = 0.0
        self._failing_since_s: float | None = None
        self._is_told = False

    def update(self, reading: T | None, now_s: float) -> T | None:
        """Return this reading, or the last one if it cannot be read (None) now; None: that is too old."""
        if reading is None:
            return self._fail(now_s)
        if self._is_told and self._failing_since_s is not None:
            log.info("%s can be read again, after %.0f s", self._what, now_s - self._failing_since_s)
        self._last, self._at_s, self._failing_since_s, self._is_told = reading, now_s, None, False
        return reading

    def _fail(self, now_s: float) -> T | None:
        if self._last is None and self._failing_since_s is None:
            return None
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if not self._is_told and now_s - self._failing_since_s >= _WORTH_S:
            self._is_told = True
            log.warning("%s cannot be read; what was read last counts for %.0f s", self._what, self._hold_s)
        if now_s - self._at_s > self._hold_s:
            self._last = None
        return self._last


_JUMP_C, _JUMP_C_PER_S = 10.0, 1.0
"""More than a chip usually changes within a second, °C; and what is added for each further second, °C/s."""
_APART_S = 0.5
"""A reading that comes earlier after the one that jumped does not confirm it, s."""


class ConfirmedTemperature:
    """Passes the readings of a zone on; one that jumps counts only when the next one is near it."""

    def __init__(self) -> None:
        """Know nothing yet: the first reading counts."""
        self._last: tuple[float, float] | None = None
        self._odd: tuple[float, float] | None = None

    def update(self, t_s: float, celsius: float) -> float:
        """Return the temperature that counts now, °C; `t_s` is monotonic, s."""
        reading, odd = (t_s, celsius), self._odd
        is_confirmed = odd is not None and t_s - odd[0] >= _APART_S and _is_near(odd, reading)
        if self._last is None or is_confirmed or _is_near(self._last, reading):
            self._last, self._odd = reading, None
            return celsius
        if odd is None or t_s - odd[0] >= _APART_S:
            self._odd = reading
        return self._last[1]


def _is_near(before: tuple[float, float], now: tuple[float, float]) -> bool:
    allowed_c = _JUMP_C + _JUMP_C_PER_S * max(0.0, now[0] - before[0] - 1.0)
    return abs(now[1] - before[1]) <= allowed_c


class NamedTemperature(Protocol):
    """A zone: its name, and its temperature, °C."""

    @property
    def name(self) -> str:
        """Name that the kernel gives it."""

    @property
    def temperature_c(self) -> float:
        """Temperature, °C."""


Z = TypeVar("Z", bound=NamedTemperature)


class LostHeat(Generic[Z]):
    """Remembers for a time which zones were warm when they could be read last.

    A board whose hottest zone cannot be read any more is not as cool as its others.
    """

    def __init__(self, margin_c: float, for_s: float) -> None:
        """Know nothing yet.

        Args:
            margin_c: a zone is warm from so far below its limit on, °C.
            for_s: time for which a zone that cannot be read is remembered, s.
        """
        self._margin_c, self._for_s = margin_c, for_s
        self._last: dict[str, tuple[Z, float]] = {}

    def update(self, zones: Mapping[str, Z], limit_c: Callable[[Z], float], now_s: float) -> Z | None:
        """Return a zone that was warm and cannot be read; None: there is none, or one that can be read is warm.

        Args:
            zones: that can be read, by a key that stays.
            limit_c: returns the limit of a zone, °C.
            now_s: monotonic, s.
        """

        def is_warm(zone: Z) -> bool:
            return zone.temperature_c >= limit_c(zone) - self._margin_c

        new = {zone.name for key, zone in zones.items() if key not in self._last}
        lost = {
            key: (zone, at_s)
            for key, (zone, at_s) in self._last.items()
            if key not in zones and now_s - at_s < self._for_s and zone.name not in new
        }
        self._last = {**lost, **{key: (zone, now_s) for key, zone in zones.items()}}
        if any(map(is_warm, zones.values())):
            return None
        return next((zone for zone, _ in lost.values() if is_warm(zone)), None)
