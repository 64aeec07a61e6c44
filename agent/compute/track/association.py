"""Associates detections with tracks: by overlap, or by distance for small fast objects.

It is greedy, best pair first: worse than the optimal assignment only in crowds that no box can resolve, for the
cost of a sort. There is no second round for weak detections as in ByteTrack (Zhang et al., ECCV 2022), because
the decoder has dropped what is below the stream's threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from agent.types import Box, Detection

_REACH, _REACH_YOUNG = 1.0, 1.5
"""Largest distance of centres, in mean diagonals of the two boxes; a young track has no velocity yet."""
_ALIKE = 3.0
"""Largest ratio of the areas of boxes that do not overlap."""
_POINT = 1e-9
_SAME = 0.5
"""Least overlap (IoU) of two boxes that stand for the same object."""


class PredictedBox(Struct, frozen=True, gc=False):
    """Predicted place of a track, and whether its velocity is known."""

    box: Box
    settled: bool


def associate(
    expected: Sequence[PredictedBox], found: Sequence[Box], iou_threshold: float
) -> list[tuple[int, int]]:
    """Return pairs of indices (expected, found), each index at most once; overlaps precede distances.

    `found` are detections of one label; an IoU of at least `iou_threshold` counts as an overlap.
    """
    taken: set[int] = set()
    given: set[int] = set()
    chosen = []
    for _, i, j in _candidates(expected, found, iou_threshold):
        if i not in taken and j not in given:
            taken.add(i)
            given.add(j)
            chosen.append((i, j))
    return chosen


def affinity(track: PredictedBox, box: Box, iou_threshold: float) -> float:
    """Return 1 + IoU for an overlap, 0..1 for a small distance, 0 for boxes that are too far apart."""
    ax0, ay0, ax1, ay1 = track.box
    bx0, by0, bx1, by1 = box
    aw, ah, bw, bh = ax1 - ax0, ay1 - ay0, bx1 - bx0, by1 - by0
    # Without halves and roots, because this runs for every pair of every frame.
    dx, dy = ax0 + ax1 - bx0 - bx1, ay0 + ay1 - by0 - by1
    reach = _REACH if track.settled else _REACH_YOUNG
    far = reach * reach * ((aw + bw) * (aw + bw) + (ah + bh) * (ah + bh)) + _POINT
    distance = dx * dx + dy * dy
    if distance >= far:
        return 0.0
    w = (ax1 if ax1 < bx1 else bx1) - (ax0 if ax0 > bx0 else bx0)
    h = (ay1 if ay1 < by1 else by1) - (ay0 if ay0 > by0 else by0)
    a, b = aw * ah, bw * bh
    if w > 0.0 and h > 0.0:
        union = a + b - w * h
        # Boxes may be so thin that they have no area.
        if union > 0.0 and w * h / union >= iou_threshold:
            return 1.0 + w * h / union
    return 1.0 - distance / far if a <= _ALIKE * b + _POINT and b <= _ALIKE * a + _POINT else 0.0


def _candidates(
    expected: Sequence[PredictedBox], found: Sequence[Box], iou_threshold: float
) -> list[tuple[float, int, int]]:
    pairs = []
    sums = [(x0 + x1, x1 - x0 + y1 - y0) for x0, y0, x1, y1 in found]
    for i, track in enumerate(expected):
        x0, y0, x1, y1 = track.box
        middle, size = x0 + x1, x1 - x0 + y1 - y0
        for j, (other, other_size) in enumerate(sums):
            # Most pairs are far apart; this test costs a fifth of `affinity`.
            if -_REACH_YOUNG * (size + other_size) <= middle - other <= _REACH_YOUNG * (size + other_size):
                value = affinity(track, found[j], iou_threshold)
                if value > 0.0:
                    pairs.append((value, i, j))
    pairs.sort(key=_strength)
    return pairs


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union, 0..1; 0 for boxes without area."""
    shared = overlap(a, b)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0.0 else 0.0


def detection_f1(found: Sequence[Detection], reference: Sequence[Detection]) -> float:
    """Return the agreement of two answers to one picture, 0..1: F1 of one against the other, 1 if both are empty.

    Detections match that have one label and an IoU of at least one half; without boxes the label decides.
    """
    left = list(reference)
    for detection in found:
        same = max(left, key=lambda other: _likeness(detection, other), default=None)
        if same is not None and _likeness(detection, same) >= _SAME:
            left.remove(same)
    matched, total = len(reference) - len(left), len(found) + len(reference)
    return 2.0 * matched / total if total else 1.0


def _likeness(one: Detection, other: Detection) -> float:
    if one.label != other.label:
        return -1.0
    return iou(one.box, other.box) if one.box and other.box else 1.0


def overlap(a: Box, b: Box) -> float:
    """Return the area of the intersection."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return w * h if w > 0.0 and h > 0.0 else 0.0


def _strength(pair: tuple[float, int, int]) -> float:
    return -pair[0]


_ALPHA = 0.7
"""Weight of the position's error: detected boxes jitter little against people's steps."""
_BETA = _ALPHA**2 / (2.0 - _ALPHA)
"""Weight of the velocity's error. Source: Benedict and Bordner, Synthesis of an Optimal Set of Radar
Track-While-Scan Smoothing Equations, IRE Trans. AC-7 (1962), eq. for the least transient error."""
_FIRST_BETA = 0.8
"""Weight of the first velocity, which comes from two boxes."""
_MEMORY_S = 1.0
"""An unseen object is predicted to move for so long, s, and then to stand."""


class AlphaBetaFilter:
    """Alpha-beta filter of one box at constant velocity, at rest at first. Units: fractions of the frame, s."""

    __slots__ = ("_h", "_hits", "_seen_ns", "_vx", "_vy", "_w", "_x", "_y")

    def __init__(self, box: Box, at_ns: int) -> None:
        x0, y0, x1, y1 = box
        self._x, self._y, self._w, self._h = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        self._vx = self._vy = 0.0
        self._seen_ns = at_ns
        self._hits = 1

    @property
    def settled(self) -> bool:
        """True if the velocity rests on more than two boxes."""
        return self._hits > 2

    def predict(self, at_ns: int) -> Box:
        """Return the predicted box, which may lie outside the frame."""
        dt = min(_MEMORY_S, max(0.0, (at_ns - self._seen_ns) / 1e9))
        x, y = self._x + self._vx * dt, self._y + self._vy * dt
        w, h = self._w / 2, self._h / 2
        return (x - w, y - h, x + w, y + h)

    def correct(self, box: Box, at_ns: int) -> None:
        """Add a detected box."""
        dt = max(0.0, (at_ns - self._seen_ns) / 1e9)
        ahead = min(_MEMORY_S, dt)
        x0, y0, x1, y1 = box
        x, y = self._x + self._vx * ahead, self._y + self._vy * ahead
        off_x, off_y = (x0 + x1) / 2 - x, (y0 + y1) / 2 - y
        self._x, self._y = x + _ALPHA * off_x, y + _ALPHA * off_y
        if dt > 0.0:
            beta = (_BETA if self._hits > 1 else _FIRST_BETA) / dt
            self._vx += beta * off_x
            self._vy += beta * off_y
        self._w += _ALPHA * (x1 - x0 - self._w)
        self._h += _ALPHA * (y1 - y0 - self._h)
        self._seen_ns = at_ns
        self._hits += 1
