"""State of one tracked object: the filter of its box, its place, and what was last reported of it.

Predicts the boxes of tracked objects, with how uncertain they are: a Kalman filter at constant velocity.

Time is in seconds, because the motion gate and the governor leave out pictures. Lengths are in sizes of the
object, so that one set of variances serves what is near and what is far: a step is the same share of a person's
height anywhere. Both axes then have the same variances, and one 2×2 covariance serves both.
Source: Bar-Shalom, Li and Kirubarajan, Estimation with Applications to Tracking and Navigation, 2001, section 6.2
(white noise acceleration). The variances were chosen with `scripts/bench/tracking.py`, on the half it does not
report.
"""

from __future__ import annotations

import math
from datetime import datetime

from msgspec import Struct

from agent.compute.track.places import TrackPlaces
from agent.types import Attribute, Box, Detection, Track

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
        pp = self._spread(dt, ahead)
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


class ExpectedTrack(Struct, frozen=True, gc=False):
    """A track to be found again.

    Attributes:
        forecast: where it should be.
        settled: True if its velocity is known.
        fresh: True if it was detected in the picture before.
    """

    forecast: Forecast
    settled: bool
    fresh: bool


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union, 0..1; 0 for boxes without area."""
    shared = overlap(a, b)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0.0 else 0.0


def overlap(a: Box, b: Box) -> float:
    """Return the area of the intersection."""
    ax0, ay0, ax1, ay1 = a
    bx0, by0, bx1, by1 = b
    w = (ax1 if ax1 < bx1 else bx1) - (ax0 if ax0 > bx0 else bx0)
    h = (ay1 if ay1 < by1 else by1) - (ay0 if ay0 > by0 else by0)
    return w * h if w > 0.0 and h > 0.0 else 0.0


_MOVED_IOU = 0.7
"""An object has moved if its box overlaps less than this with an earlier one."""
_LEFT_IOU = 0.5
"""A stationary object has left its place if its box overlaps less than this; detected boxes jitter."""
_SMOOTHING = 0.25
"""Weight of the newest box in the mean that is compared with the place, so that one odd box has no effect."""
_RESTING_NS = 1_000_000_000
"""Time for which the place of a stationary object is unsure, however long ago it was detected."""
_CLEARER = 0.1
"""Increase of the score since the newest event that gives an update."""


class TrackState:
    """State of one tracked object, private to the tracker. `id` is empty until it is announced.

    Attributes:
        motion: filter of its box; None without a box.
        due_ns: time at which it is lost unless seen before.
        missed: True if an inference since its newest detection did not find it.
        misses: inferences since its newest detection that did not find it.
        reported_ns: time of the newest event.
        seen_ns: time of the newest detection.
        place_ns: time since which it has been at its place.
        check_ns: time at which a stationary object needs an inference.
        renamed: consecutive inferences that found another label at its place.
        attributes: what secondary models tell about it.
        places: its zones and lines.
        has_moved: True if it has left the place where it was first seen.
    """

    def __init__(self, detection: Detection, at_ns: int, at: datetime, due_ns: int) -> None:
        self.id, self.detection, self.hits = "", detection, 1
        self.places, self.has_moved = TrackPlaces(), detection.box is None
        self.attributes: dict[str, Attribute] = {}
        self.motion = None if detection.box is None else BoxFilter(detection.box, at_ns)
        self.missed = self.stationary = False
        self.renamed, self.misses, self.due_ns = 0, 0, due_ns
        self.reported_ns = self.seen_ns = self.place_ns = self.check_ns = at_ns
        self._first_seen = self._last_seen = at
        self._best = self._reported_best = detection.score
        self._reported_box = self._place = self._mean = self._origin = detection.box

    def update(self, detection: Detection, at_ns: int, at: datetime, due_ns: int) -> None:
        """Add its newest detection."""
        self.detection = detection
        self.seen_ns = at_ns
        self.renamed = 0
        self.hits += 1
        if self.motion is not None and detection.box is not None:
            self.motion.correct(detection.box, at_ns)
            self._update_place(detection.box, at_ns)
        self.due_ns = due_ns
        self.missed = False
        self.misses = 0
        self._last_seen = at
        self._best = max(self._best, detection.score)

    def confirm(self, due_ns: int, check_ns: int) -> None:
        """Record that it is at its place under another label."""
        self.renamed += 1
        self.missed = False
        self.due_ns, self.check_ns = due_ns, check_ns

    def mark_present(self, at: datetime) -> None:
        """Record that it is at its place, because nothing moved there."""
        self._last_seen = at

    def _update_place(self, box: Box, at_ns: int) -> None:
        """Compare the mean of its boxes with its place; set a new place if it has left that."""
        mean, place = self._mean, self._place
        assert mean is not None
        assert place is not None
        x0, y0, x1, y1 = mean
        w = _SMOOTHING
        mean = (x0 + w * (box[0] - x0), y0 + w * (box[1] - y0), x1 + w * (box[2] - x1), y1 + w * (box[3] - y1))
        self._mean = mean
        if iou(mean, place) < (_LEFT_IOU if self.stationary else _MOVED_IOU):
            self._place, self.place_ns = mean, at_ns
            self.has_moved = self.has_moved or (self._origin is not None and iou(mean, self._origin) < _LEFT_IOU)

    @property
    def needs_inference(self) -> bool:
        """Return True if each picture must be inferred for it.

        That is so while an announced object moves, after a stationary one was missed, and for a candidate until
        it is missed or stationary.
        """
        if not self.id:
            return not (self.missed or self.stationary)
        return self.missed or not self.stationary

    @property
    def best_score(self) -> float:
        """Highest score so far."""
        return self._best

    def change_reason(self) -> str:
        """Return the change since the newest event: `moved`, `clearer`, or `still here`."""
        box, before = self.detection.box, self._reported_box
        if box is not None and before is not None and iou(box, before) < _MOVED_IOU:
            return "moved"
        return "clearer" if self._best >= self._reported_best + _CLEARER else "still here"

    def mark_reported(self, at_ns: int) -> None:
        """Record that an event has reported its present state."""
        self.reported_ns = at_ns
        self._reported_box = self.detection.box
        self._reported_best = self._best

    def expectation(self, at_ns: int, passed_ns: int) -> ExpectedTrack | None:
        """Return what is known for finding it again; None without a box.

        Args:
            at_ns: of the picture.
            passed_ns: since the picture before.
        """
        motion = self.motion
        if motion is None:
            return None
        if self.stationary:  # nothing moved there in the meantime
            at_ns = min(at_ns, self.seen_ns + _RESTING_NS)
        overdue_s = max(0, at_ns - passed_ns - self.seen_ns) / 1e9 if self.missed else 0.0
        return ExpectedTrack(motion.forecast(at_ns, overdue_s), motion.settled, not self.missed)

    def expected(self, at_ns: int) -> Box | None:
        """Return its predicted box; None without a box."""
        return None if self.motion is None else self.motion.predict(at_ns)

    def predicted(self, at_ns: int) -> Detection:
        """Return its newest detection, moved on to its predicted box, without what only a picture shows."""
        box = self.expected(at_ns)
        if box is None or self.stationary:
            return Detection(self.detection.label, self.detection.score, self.detection.box)
        x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in box)
        return Detection(self.detection.label, self.detection.score, (x0, y0, x1, y1))

    def track(self) -> Track:
        """Return its present state."""
        seen = self.detection
        return Track(
            self.id,
            seen.label,
            seen.score,
            self._best,
            self.hits,
            self._first_seen,
            self._last_seen,
            seen.box,
            seen.keypoints,
            seen.outline,
            seen.area,
            self.places.zones,
            self.stationary,
            attributes=self.attributes,
            crossed=self.places.crossed,
        )
