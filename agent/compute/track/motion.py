"""Predicts the boxes of tracked objects, with how uncertain they are: a Kalman filter at constant velocity.

Time is in seconds, because the motion gate and the governor leave out pictures. Lengths are in sizes of the
object, so that one set of variances serves what is near and what is far: a step is the same share of a person's
height anywhere. Both axes then have the same variances, and one 2×2 covariance serves both.
Source: Bar-Shalom, Li and Kirubarajan, Estimation with Applications to Tracking and Navigation, 2001, section 6.2
(white noise acceleration). The variances were chosen with `scripts/bench/tracking.py`, on the half it does not
report.
"""

from __future__ import annotations

import math

from msgspec import Struct

from agent.types import Box

_ASPECT = 1.5
"""Assumed width of a frame by its height: a box is given in fractions of both."""
_WIDTH_SHARE = 0.57
"""Share of a box's width in its size along x; the rest is its height, which varies less with the pose."""
_CENTRE_NOISE = 0.095**2
"""Variance of a detected centre, sizes²."""
_SIDE_NOISE = 0.14**2
"""Variance of the logarithm of a detected height."""
_WIDTH_VARIANCE = 2.0
"""Variance of the logarithm of a width by that of a height, detected or over time: limbs move to the sides."""
_SPEED = 0.73**2
"""Variance of the velocity of an object that has been detected once, (sizes/s)²."""
_ACCELERATION = 0.3**2
"""Spectral density of the acceleration, sizes²/s³."""
_FASTEST = 1e8
"""Most variance of a velocity, squared sizes per second: two stamps may be nanoseconds apart."""
_SURPRISE = 12.0
"""Squared distance of a detection, in variances, from which on the velocity is taken to be wrong."""
_WANDER = 0.055**2
"""Spectral density of the position beside that, sizes²/s: poses change, and detectors err for longer."""
_GROWTH = 0.157**2
"""Spectral density of the logarithm of a height, 1/s."""
_MEMORY_S = 1.5
"""An unseen object is predicted to move for so long, s, and then to stand."""
_LEAST = 1e-6
"""Least side of a box, a fraction of the frame: thinner boxes would have no size."""
_SPREAD_WEIGHT = 1.5
"""Weight of the uncertainty in the cost of a pair; 1 would be the likelihood's."""
_OVERDUE_COST = 3.0
"""Cost of each second for which a track has been missed."""
_OUTSIDE_COST = 3.8
"""Cost of a track whose centre should have left the frame."""
_CERTAIN = _CENTRE_NOISE * _SIDE_NOISE
"""Product of the variances of a box that is predicted without error."""


class Forecast(Struct, frozen=True, gc=False):
    """Predicted box with its uncertainty, as `associate` reads it.

    Attributes:
        x, y: centre, fractions of the frame.
        log_w, log_h: logarithms of its sides.
        precision_x, precision_y: inverse variances of a detected centre.
        precision_w, precision_h: inverse variances of the logarithms of a detected width and height.
        spread: cost of its uncertainty, added to the squared distance of each detection.
        deviation_x: standard deviation of a detected centre along x.
    """

    x: float
    y: float
    log_w: float
    log_h: float
    precision_x: float
    precision_y: float
    precision_w: float
    precision_h: float
    spread: float
    deviation_x: float

    @property
    def box(self) -> Box:
        """The predicted box, which may lie outside the frame."""
        x, y, w, h = self.x, self.y, math.exp(self.log_w) / 2, math.exp(self.log_h) / 2
        return (x - w, y - h, x + w, y + h)


class BoxFilter:
    """Kalman filter of one box at constant velocity, at rest at first. Units: fractions of the frame, s."""

    __slots__ = (
        "_growth",
        "_h",
        "_hits",
        "_log_h",
        "_log_w",
        "_pp",
        "_pv",
        "_seen_ns",
        "_size_x",
        "_vv",
        "_vx",
        "_vy",
        "_w",
        "_x",
        "_y",
    )

    def __init__(self, box: Box, at_ns: int) -> None:
        self._x, self._y, self._log_w, self._log_h = measured(box)
        self._vx = self._vy = 0.0
        self._pp, self._pv, self._vv, self._growth = _CENTRE_NOISE, 0.0, _SPEED, _SIDE_NOISE
        self._seen_ns = at_ns
        self._hits = 1
        self._resize()

    def _resize(self) -> None:
        self._w, self._h = math.exp(self._log_w), math.exp(self._log_h)
        self._size_x = _WIDTH_SHARE * self._w + (1.0 - _WIDTH_SHARE) * self._h / _ASPECT

    @property
    def settled(self) -> bool:
        """True if the velocity rests on more than two boxes."""
        return self._hits > 2

    def predict(self, at_ns: int) -> Box:
        """Return the predicted box, which may lie outside the frame."""
        _, ahead = self._passed(at_ns)
        x, y = self._x + self._vx * ahead, self._y + self._vy * ahead
        w, h = self._w / 2, self._h / 2
        return (x - w, y - h, x + w, y + h)

    def forecast(self, at_ns: int, overdue_s: float) -> Forecast:
        """Return the predicted box with its uncertainty.

        Args:
            at_ns: CLOCK_MONOTONIC, ns.
            overdue_s: for which it has been missed, s; 0: it was detected in the picture before.
        """
        dt, ahead = self._passed(at_ns)
        x, y = self._x + self._vx * ahead, self._y + self._vy * ahead
        centre = self._spread(dt, ahead) + _CENTRE_NOISE
        side = self._growth + _GROWTH * dt + _SIDE_NOISE
        spread = _SPREAD_WEIGHT * math.log(centre * side / _CERTAIN) + _OVERDUE_COST * overdue_s
        if not (0.0 < x < 1.0 and 0.0 < y < 1.0):
            spread += _OUTSIDE_COST
        size_x, h = self._size_x, self._h
        across, down = centre * size_x * size_x, centre * h * h
        wide, deviation = 1.0 / (_WIDTH_VARIANCE * side), math.sqrt(across)
        return Forecast(
            x, y, self._log_w, self._log_h, 1.0 / across, 1.0 / down, wide, 1.0 / side, spread, deviation
        )

    def _passed(self, at_ns: int) -> tuple[float, float]:
        """Return the time since its newest box, and for how much of it it is predicted to move, s."""
        passed_ns = at_ns - self._seen_ns
        dt = passed_ns / 1e9 if passed_ns > 0 else 0.0
        return dt, dt if dt < _MEMORY_S else _MEMORY_S

    def _spread(self, dt: float, ahead: float) -> float:
        known = self._pp + ahead * (2.0 * self._pv + ahead * self._vv)
        # Rounding may leave a negative variance after a velocity that nothing moves at.
        return (known if known > 0.0 else 0.0) + (_ACCELERATION * dt * dt / 3.0 + _WANDER) * dt

    def shift(self, across: float, down: float) -> None:
        """Move with the camera, by fractions of the frame."""
        self._x += across
        self._y += down

    def correct(self, box: Box, at_ns: int) -> None:
        """Add a detected box."""
        dt, ahead = self._passed(at_ns)
        x, y, log_w, log_h = measured(box)
        ahead_x, ahead_y = self._x + self._vx * ahead, self._y + self._vy * ahead
        off_x, off_y = x - ahead_x, y - ahead_y
        pp = self._doubt_velocity(off_x / self._size_x, off_y / self._h, dt, ahead)
        pv = self._pv + ahead * self._vv + _ACCELERATION * dt * dt / 2.0
        total = pp + _CENTRE_NOISE
        gain, gain_v = pp / total, pv / total
        self._x, self._y = ahead_x + gain * off_x, ahead_y + gain * off_y
        if dt > 0.0:
            self._vx += gain_v * off_x
            self._vy += gain_v * off_y
        self._pp, self._pv = (1.0 - gain) * pp, (1.0 - gain) * pv
        vv = self._vv + _ACCELERATION * dt - gain_v * pv
        self._vv = vv if vv > 0.0 else 0.0
        growth = self._growth + _GROWTH * dt
        share = growth / (growth + _SIDE_NOISE)
        self._log_w += share * (log_w - self._log_w)
        self._log_h += share * (log_h - self._log_h)
        self._growth = (1.0 - share) * growth
        self._seen_ns = at_ns
        self._hits += 1
        self._resize()

    def _doubt_velocity(self, across: float, down: float, dt: float, ahead: float) -> float:
        """Let the velocity explain a detection that is much farther off than it should be, in sizes.

        Return the variance of its place.
        """
        off, spread = across * across + down * down, self._spread(dt, ahead)
        if ahead <= 0.0 or off <= _SURPRISE * (spread + _CENTRE_NOISE):
            return spread
        self._vv = max(self._vv, min(_FASTEST, off / (ahead * ahead)))
        return self._spread(dt, ahead)


def measured(box: Box) -> tuple[float, float, float, float]:
    """Return what the filter sees of a detected box: its centre and the logarithms of its sides."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    return (
        (x0 + x1) / 2,
        (y0 + y1) / 2,
        math.log(w if w > _LEAST else _LEAST),
        math.log(h if h > _LEAST else _LEAST),
    )
