"""Predict the temperature of a processor under its present load. Nothing here reads a sensor or a clock.

A chip on a board warms up towards a temperature at which it gives off what it takes in, as a resistor and a
capacitor of heat in series do: T(t) = settled + (T(0) - settled) · exp(-t / tau). Source of the model: C.-H. Hsu
and others, "Compact thermal modeling for temperature-aware design" (DAC 2004), reduced to one node.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import TypeAlias

from msgspec import Struct

from agent.board.thermal import PLAUSIBLE_C

_SPACING_S = 1.9
"""Readings that follow faster are left out, s: more of them tell nothing more, and cost processor time."""
_WINDOW_S = 240.0
_SLOPE_S = 40.0
"""Time of which the slope is taken, s: long enough to see 0.02 °C/s by a sensor with steps of 0.5 °C."""
_FIT_S = 60.0
"""Shortest time that a curve is fitted to, s: of less it would take the chip, warm after 10 s, for the board."""
_GAP_S = 60.0
"""After a longer time without a reading what was known is forgotten, s."""
_JUMP_C = 15.0
"""More than a chip can change between two readings, °C, beside 1 °C/s."""
_NOISE_C = 0.15
"""Standard deviation of a reading in steps of 0.5 °C."""
_FITS_C = 0.5
"""Root mean square of the residuals up to which one exponential describes the readings, °C."""
_VAGUE_C = 10.0
"""If the settled temperatures of all time constants that fit differ by more, the readings do not tell, °C."""
_TAUS_S = tuple(8.0 * 1.3**step for step in range(19))
"""Time constants that are tried, s: 8 s (a bare chip) to 15 minutes (a closed case of metal)."""
_UNKNOWN_TAU_S = 180.0
"""Time constant that a slope fades with while the readings do not tell another, s."""

Reading: TypeAlias = tuple[float, float]
"""Time, s, and temperature, °C."""


class Curve(Struct, frozen=True):
    """A temperature that approaches a value: settled_c + offset_c · exp(-t / tau_s).

    Attributes:
        settled_c: temperature in the long run, °C.
        offset_c: difference from it at time 0, °C; negative: it warms up.
        tau_s: time constant, s.
    """

    settled_c: float
    offset_c: float
    tau_s: float

    def at(self, t_s: float) -> float:
        """Return the temperature at a time ≥ 0, °C."""
        return self.settled_c + self.offset_c * math.exp(-t_s / self.tau_s)

    def seconds_until(self, limit_c: float) -> float:
        """Return the time from 0 on until the temperature has risen to a limit, s; infinite: never."""
        if self.at(0.0) >= limit_c:
            return 0.0
        if self.settled_c <= limit_c:
            return math.inf
        return self.tau_s * math.log(self.offset_c / (limit_c - self.settled_c))


def _robust_slope(readings: Sequence[Reading]) -> float:
    """Return the slope of readings, °C/s, after Theil and Sen; 0 without two that lie apart.

    Only pairs at least a third of the whole time apart count: the steps of a sensor make close ones worthless.
    """
    if len(readings) < 2:
        return 0.0
    apart_s = (readings[-1][0] - readings[0][0]) / 3
    pairs = (
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for earlier, later in combinations(readings, 2)
        if later[0] - earlier[0] >= apart_s and later[0] > earlier[0]
    )
    return median(slopes) if (slopes := list(pairs)) else 0.0


def _fit_curve(readings: Sequence[Reading]) -> Curve | None:
    """Fit one exponential to readings, with time 0 at the last one; None: they do not tell where it settles."""
    fits = [_fit(readings, tau_s) for tau_s in _TAUS_S]
    best, error = min(fits, key=lambda fit: fit[1])
    count = len(readings)
    if count < 5 or error > count * _FITS_C**2:
        return None
    allowed = error + 4 * max(error / (count - 3), _NOISE_C**2)
    settled = [curve.settled_c for curve, squares in fits if squares <= allowed]
    if max(settled) - min(settled) > _VAGUE_C:
        return None
    return best if PLAUSIBLE_C[0] <= best.settled_c <= 2 * PLAUSIBLE_C[1] else None


def _fit(readings: Sequence[Reading], tau_s: float) -> tuple[Curve, float]:
    """Return the curve of least squares with a time constant, and the sum of the squares."""
    now_s = readings[-1][0]
    xs = [math.exp((now_s - t_s) / tau_s) for t_s, _ in readings]
    x_mean, y_mean = sum(xs) / len(xs), sum(c for _, c in readings) / len(readings)
    spread = sum((x - x_mean) ** 2 for x in xs)
    covered = sum((x - x_mean) * (c - y_mean) for x, (_, c) in zip(xs, readings, strict=True))
    offset = covered / spread if spread > 0 else 0.0
    curve = Curve(y_mean - offset * x_mean, offset, tau_s)
    errors = (c - curve.settled_c - offset * x for x, (_, c) in zip(xs, readings, strict=True))
    return curve, sum(error * error for error in errors)


class HeatModel:
    """Learns from readings how the temperature goes on.

    Example:
        heat = HeatModel()
        heat.add(time.monotonic(), celsius)  # every few seconds
        if heat.seconds_until(80.0) < 60.0:
            ...  # do less
    """

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()
        self._curve: Curve | None = None
        self._settles: float | None = None
        self._stale = False

    def add(self, t_s: float, celsius: float) -> None:
        """Add a reading.

        After a gap of a minute, a clock that went back, or a temperature far from that before (a suspended board,
        another sensor), it begins anew.

        Args:
            t_s: monotonic time, s.
            celsius: temperature, °C; what no chip has is ignored.
        """
        if not (math.isfinite(t_s) and PLAUSIBLE_C[0] < celsius < PLAUSIBLE_C[1]):
            return
        if self._readings:
            after_s, change_c = t_s - self._readings[-1][0], abs(celsius - self._readings[-1][1])
            if 0 <= after_s < _SPACING_S:
                return
            if not 0 < after_s <= _GAP_S or change_c > _JUMP_C + after_s:
                self._readings.clear()
        self._readings.append((t_s, celsius))
        while t_s - self._readings[0][0] > _WINDOW_S:
            self._readings.popleft()
        self._stale = True

    def curve(self) -> Curve | None:
        """Return the temperature to come under the present load, from the newest reading on; None: no reading."""
        self._learn()
        return self._curve

    def settles_at(self) -> float | None:
        """Return the temperature that the present load leads to, °C; None: the readings do not tell yet."""
        self._learn()
        return self._settles

    def seconds_until(self, limit_c: float) -> float:
        """Return the time until the temperature reaches a limit under the present load, s.

        0: it has reached it; infinite: it settles below, falls, or is unknown.
        """
        curve = self.curve()
        return curve.seconds_until(limit_c) if curve else math.inf

    def _learn(self) -> None:
        """Fit the longest time up to now that one exponential describes; else let the slope fade."""
        if not self._stale:
            return
        self._stale = False
        recent = self._since(_SLOPE_S)
        slope = _robust_slope(recent) if _spans(recent, _SLOPE_S / 4) else 0.0
        fitted, window_s = None, _WINDOW_S
        while fitted is None and window_s >= _FIT_S:
            readings = self._since(window_s)
            fitted = _fit_curve(readings) if _spans(readings, _FIT_S * 0.75) else None
            window_s /= 2
        self._settles = fitted.settled_c if fitted else None
        self._curve = fitted or _fading(recent, slope)

    def _since(self, seconds: float) -> list[Reading]:
        after_s = self._readings[-1][0] - seconds
        return [reading for reading in self._readings if reading[0] >= after_s]


def _spans(readings: Sequence[Reading], seconds: float) -> bool:
    return len(readings) >= 3 and readings[-1][0] - readings[0][0] >= seconds


def _fading(readings: Sequence[Reading], slope: float) -> Curve:
    """Return a curve through the readings that begins with a slope and loses it with a usual time constant."""
    now_s = readings[-1][0]
    level = median(celsius + slope * (now_s - t_s) for t_s, celsius in readings)
    lowest, highest = PLAUSIBLE_C
    rise = min(max(level + slope * _UNKNOWN_TAU_S, lowest), highest) - level
    return Curve(level + rise, -rise, rise / slope if slope else _UNKNOWN_TAU_S)
